#!/usr/bin/env python3
"""Penstock and llama.cpp on one file, in turns: prompt and single-stream decode speed, medians and ratios.

Both process the same token ids: the first --prompt-tokens of the reference text, and then the tokens that Penstock
generated. llama.cpp runs in a process of its own (--serve-llama) that is warmed up and stays loaded; its
decode steps are timed without any sampling, Penstock's with it. Run it through cpu.sh.
"""
import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = ROOT / "tests" / "reference" / "smollm2-135m-instruct-q4_1.json"


# ---- llama.cpp ------------------------------------------------------------------------------------------------------

class Llama:
    """The low-level API of llama-cpp-python: one model, one context, defaults but for batch and threads."""

    def __init__(self, model, threads, prompt_tokens, context):
        import llama_cpp
        self.api = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet  # kept alive as long as the library may call it
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, prompt_tokens, prompt_tokens
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)

    def detokenize(self, ids):
        out = ctypes.create_string_buffer(32 * len(ids))
        array = (self.api.llama_token * len(ids))(*ids)
        size = self.api.llama_detokenize(self.vocabulary, array, len(ids), out, len(out), False, True)
        return out.raw[:size].decode()

    def decode(self, ids):
        array = (self.api.llama_token * len(ids))(*ids)
        start = time.perf_counter()
        status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(ids)))
        self.api.llama_synchronize(self.context)
        if status != 0:
            sys.exit(f"llama_decode returned {status}")
        return time.perf_counter() - start

    def measure(self, prompt, output):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        prompt_s = self.decode(prompt)
        decode_s = sum(self.decode([token]) for token in output)
        return {"prompt": len(prompt) / prompt_s, "decode": len(output) / decode_s}


def serve_llama(arguments):
    """Answers one JSON line per request line, until standard input ends."""
    llama = Llama(arguments.model, arguments.threads, arguments.prompt_tokens,
                  arguments.prompt_tokens + arguments.output_tokens)
    for line in sys.stdin:
        request = json.loads(line)
        if "detokenize" in request:
            answer = {"text": llama.detokenize(request["detokenize"])}
        else:
            answer = llama.measure(request["prompt"], request["output"])
        print(json.dumps(answer), flush=True)


class LlamaProcess:
    def __init__(self, arguments):
        line = [sys.executable, __file__, "--serve-llama", "--penstock", "-", "--model", arguments.model, "--threads",
                str(arguments.threads), "--prompt-tokens", str(arguments.prompt_tokens), "--output-tokens",
                str(arguments.output_tokens)]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---- Penstock -------------------------------------------------------------------------------------------------------

def run_penstock(arguments, prompt_file, cache):
    line = [arguments.penstock, "run", arguments.model, "--file", prompt_file, "-n", str(arguments.output_tokens),
            "--ignore-eos", "--json", "--threads", str(arguments.threads), "--cache", cache]
    result = subprocess.run(line, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(line)}\nended with {result.returncode}: {result.stderr}")
    return json.loads(result.stdout)


def speeds(output):
    timings = output["timings"]
    return {"prompt": timings["prompt_tokens_per_s"], "decode": timings["decode_tokens_per_s"]}


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.processor()


def compare(arguments):
    llama = LlamaProcess(arguments)
    with tempfile.TemporaryDirectory() as folder:
        prompt_file = str(Path(folder) / "prompt")
        ids = json.loads(REFERENCE.read_text())["token_ids"][: arguments.prompt_tokens]
        Path(prompt_file).write_text(llama.ask(detokenize=ids)["text"])
        first = run_penstock(arguments, prompt_file, folder)  # also measures the profile, once
        if first["prompt_ids"] != ids or len(ids) != arguments.prompt_tokens:
            sys.exit(f"the prompt is {len(first['prompt_ids'])} tokens, not the first {len(ids)} of {REFERENCE.name}")
        request = {"prompt": ids, "output": first["output_ids"]}
        llama.ask(**request)  # warm-up

        rounds = []
        print(f"{processor()}, {arguments.threads} threads, {Path(arguments.model).name}, tokens per second")
        print(f"round  {'prompt ' + str(arguments.prompt_tokens):^31}  {'decode ' + str(len(request['output'])):^31}")
        print("       " + "  ".join([f"{'penstock':>10} {'llama.cpp':>11} {'ratio':>8}"] * 2))
        for number in range(1, arguments.rounds + 1):
            ours = speeds(run_penstock(arguments, prompt_file, folder))
            theirs = llama.ask(**request)
            rounds.append({"penstock": ours, "llama.cpp": theirs})
            show(str(number), ours, theirs)
    llama.close()

    median = {who: {what: statistics.median(r[who][what] for r in rounds) for what in ("prompt", "decode")}
              for who in ("penstock", "llama.cpp")}
    show("median", median["penstock"], median["llama.cpp"])
    ratios = {what: median["penstock"][what] / median["llama.cpp"][what] for what in ("prompt", "decode")}
    print(f"lowest ratio {min(ratios.values()):.2f}")
    if arguments.json:
        report = {"processor": processor(), "cores": os.cpu_count(), "threads": arguments.threads,
                  "model": Path(arguments.model).name, "prompt_tokens": arguments.prompt_tokens,
                  "output_tokens": arguments.output_tokens, "rounds": rounds, "median": median, "ratios": ratios,
                  "lowest_ratio": min(ratios.values())}
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


def show(label, ours, theirs):
    pairs = [(ours[what], theirs[what]) for what in ("prompt", "decode")]
    cells = [f"{a:10.1f} {b:11.1f} {a / b:8.2f}" for a, b in pairs]
    print(f"{label:6} " + "  ".join(cells), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--serve-llama", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    (serve_llama if arguments.serve_llama else compare)(arguments)


if __name__ == "__main__":
    main()
