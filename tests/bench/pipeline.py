#!/usr/bin/env python3
"""What the pipeline is worth: pipeline.py BUILD MPIRUN MODEL [--llama DIR] [--rounds N] [--json FILE]

Two ranks of one thread beside one process of two threads (and of one), under three loads of 16 streams:

    mixed    prompts and outputs at the same time, the steady state of `penstock bench`
    outputs  prompts of one token: decoding alone, with the split that is best for it
    phases   first all prompts, then all outputs: what llama-batched-bench measures, with the mixed load's split

and in the phases llama.cpp on the same file: one process of two threads, with the best of its settings, and a pipeline
of two RPC servers of one thread each. All take turns, round by round, and medians are compared. Penstock plans at the
beginning of each round anew. Fails where a bound of the design is missed.

By their definitions pipeline efficiency ÷ split efficiency is schedule efficiency. What the pipeline has of the *plan's*
efficiency is shown beside it: there the profile is put to the test as well, and two cores that are not equally fast.

Speeds stand beside the machine's limits, as bench_limits measures them: weights read per second, and operations
(2 per weight and row) per second. Busy time beside the core time in it tells whether the cores were ours.
"""
import argparse
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "mpi"))
from job import Launcher

STREAMS = 16
PIPELINE, ALONE, ONE_THREAD = "2 ranks × 1 thread", "1 process × 2 threads", "1 process × 1 thread"
SETUPS = {PIPELINE: (2, 1), ALONE: (0, 2), ONE_THREAD: (0, 1)}  # ranks (0: without mpirun), threads
LLAMA, LLAMA_RPC = "llama.cpp, 2 threads", "llama.cpp, 2 RPC servers × 1 thread"
LOADS = {"mixed": (PIPELINE, ALONE, ONE_THREAD), "outputs": (PIPELINE, ALONE), "phases": (PIPELINE, ALONE)}
LLAMA_SETTINGS = [["-ub", "128", "-fa", "on"], ["-ub", "512", "-fa", "on"], ["-ub", "2048", "-fa", "on"],
                  ["-ub", "512", "-fa", "off"]]
CPU_SHARE_LEAST = 0.95  # below it somebody else had the cores


# ---- The machine and the model --------------------------------------------------------------------------------------

@dataclass
class Limits:
    read_gb_s: float
    int8_tops: float


@dataclass
class Sizes:
    """Of the layers and the head, where the head may be the embedding's table."""
    bytes: float
    layer_weights: float
    head_weights: float


def measure_limits(build):
    """Of two threads, the best of some tries."""
    line = [build / "tests" / "bench_limits", "2"]
    tries = [json.loads(subprocess.run(line, check=True, capture_output=True).stdout)["limits"][-1] for _ in range(3)]
    return Limits(max(t["read_gb_s"] for t in tries), max(t["int8_tops"] for t in tries))


def sizes_of(job, model):
    units = job.run("inspect", model, "--json").json()["units"]
    matrices = {unit["name"]: [t for t in unit["tensors"] if len(t["shape"]) > 1] for unit in units}
    embedding = matrices.pop("embedding")
    head = matrices.pop("head") or embedding
    layers = [tensor for tensors in matrices.values() for tensor in tensors]
    return Sizes(sum(t["bytes"] for t in head + layers), sum(math.prod(t["shape"]) for t in layers),
                 sum(math.prod(t["shape"]) for t in head))


@dataclass
class Speed:
    """A measurement: speeds, and shares of the limits, where known. Efficiencies only of a pipeline."""
    prompt: float
    decode: float
    total: float
    shares: dict
    efficiency: dict
    stages: list
    cpu_share: float = 1

    def __getitem__(self, name):
        return getattr(self, name)


class Shares:
    def __init__(self, limits, sizes):
        self.limits, self.sizes = limits, sizes

    def of(self, rows, logits, steps):
        """Of a second with so many rows, logit rows and passes through the weights."""
        operations = 2 * (rows * self.sizes.layer_weights + logits * self.sizes.head_weights)
        int8 = self.limits.int8_tops
        return {"memory": steps * self.sizes.bytes / self.limits.read_gb_s / 1e9,
                "int8": operations / int8 / 1e12 if int8 > 0 else 0}


# ---- Penstock -------------------------------------------------------------------------------------------------------

EFFICIENCIES = ("split", "schedule", "pipeline")


def efficiency_of(run):
    return {name: run[f"{name}_efficiency"] for name in EFFICIENCIES}


def run_penstock(job, arguments, shares, load, setup, cache):
    ranks, threads = SETUPS[setup]
    prompt, requests = 1 if load == "outputs" else arguments.prompt_tokens, arguments.requests
    options = ["--phases"] if load == "phases" else ["--num-prompts", requests]
    result = job.run("bench", arguments.model, "--json", "--prompt-tokens", prompt, "--output-tokens",
                     arguments.output_tokens, "--concurrency", STREAMS, "--threads", threads, "--cache", cache,
                     *options, ranks=ranks, limit=600).json()
    run, plan = result["runs"][0], result["plan"]
    busy = sum(stage["busy_s"] for stage in run["stages"])
    stages = [{"units": planned["last"] - planned["first"] + 1, "planned_ms": planned["time_ms"],
               "busy_ms": 1000 * stage["busy_s"] / stage["steps"], "rows": stage["rows"] / stage["steps"],
               "planned_share": planned["time_ms"] / sum(s["time_ms"] for s in plan["stages"]),
               "share": stage["busy_s"] / busy} for planned, stage in zip(plan["stages"], run["stages"])]
    planned_ms = plan["max_ms"] * plan["efficiency"]
    speed = Speed(run["prompt_tokens_per_s"], run["decode_tokens_per_s"], run["total_tokens_per_s"], {},
                  {**efficiency_of(run), "planned": plan["efficiency"], "bound": planned_ms / plan["lower_bound_ms"]},
                  stages, min(stage["busy_cpu_s"] / stage["busy_s"] for stage in run["stages"]))
    if load == "phases":
        for phase, what in run["phases"].items():
            rows = speed[{"prompts": "prompt", "outputs": "decode"}[phase]]
            logits = rows / arguments.prompt_tokens if phase == "prompts" else rows
            speed.shares[phase] = shares.of(rows, logits, what["stages"][0]["steps"] / what["seconds"])
            speed.efficiency[phase] = efficiency_of(what)
    else:
        speed.shares["all"] = shares.of(speed.prompt + speed.decode, speed.decode,
                                        run["stages"][0]["steps"] / run["seconds"])
    return speed


# ---- llama.cpp ------------------------------------------------------------------------------------------------------

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class RpcServers:
    """Two of them, while the block runs; `places` is what the client wants to hear."""

    def __init__(self, folder):
        names = [folder / name for name in ("rpc-server", "ggml-rpc-server")]
        self.program = next(path for path in names if path.exists())
        self.places = ""
        self.processes = []

    def __enter__(self):
        ports = [free_port() for _ in range(2)]
        self.processes = [subprocess.Popen([self.program, "-H", "127.0.0.1", "-p", str(port), "-t", "1"],
                                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for port in ports]
        for port in ports:
            self.await_port(port)
        self.places = ",".join(f"127.0.0.1:{port}" for port in ports)
        return self

    @staticmethod
    def await_port(port):
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def __exit__(self, *what):
        for process in self.processes:
            process.kill()
            process.wait()


class Llama:
    def __init__(self, folder, arguments, shares):
        self.folder, self.arguments, self.shares = Path(folder), arguments, shares
        self.settings = {}  # of LLAMA and LLAMA_RPC: the best ones

    def bench(self, settings, prompt, output_tokens, *options):
        context = STREAMS * 256 * math.ceil((prompt + output_tokens) / 256)
        line = [self.folder / "llama-batched-bench", "-m", self.arguments.model, "-c", str(context), "-b", "2048",
                "-npp", str(prompt), "-ntg", str(output_tokens), "-npl", str(STREAMS), "--output-format", "jsonl",
                *settings, *options]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600)
        found = re.search(r'^\{.*"speed_tg".*\}$', done.stdout + done.stderr, flags=re.M)
        if done.returncode != 0 or not found:
            sys.exit(f"{' '.join(map(str, line))}\nended with {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(found[0])

    def run(self, setup, settings, *lengths):
        if setup == LLAMA:
            return self.bench(settings, *lengths, "-t", "2")
        with RpcServers(self.folder) as servers:
            return self.bench(settings, *lengths, "-t", "1", "--rpc", servers.places, "-ngl", "99")

    def choose(self):
        """The settings that are best in a short run, for each setup."""
        for setup in (LLAMA, LLAMA_RPC):
            self.settings[setup] = max(LLAMA_SETTINGS, key=lambda s: self.run(setup, s, 64, 8)["speed"])

    def measure(self, setup):
        result = self.run(setup, self.settings[setup], self.arguments.prompt_tokens, self.arguments.output_tokens)
        prompt, decode = result["speed_pp"], result["speed_tg"]
        return Speed(prompt, decode, result["speed"],
                     {"prompts": self.shares.of(prompt, prompt / self.arguments.prompt_tokens, 0),
                      "outputs": self.shares.of(decode, decode, decode / STREAMS)}, {}, [])


# ---- Rounds ---------------------------------------------------------------------------------------------------------

def middle(values):
    """The median of numbers; of dicts and lists, field by field."""
    if isinstance(values[0], dict):
        return {key: middle([v[key] for v in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [middle(list(v)) for v in zip(*values)]
    return median(values)


def measure(job, arguments, shares, llama, folder):
    """{(load, setup): [Speed of each round]}"""
    turns = [(load, setup) for load, setups in LOADS.items() for setup in setups]
    if llama:
        turns += [("phases", LLAMA), ("phases", LLAMA_RPC)]
    rounds = {turn: [] for turn in turns}
    for number in range(arguments.rounds):
        cache = Path(folder) / f"cache{number}"
        for load, setup in turns if number % 2 == 0 else reversed(turns):
            speed = (llama.measure(setup) if setup in (LLAMA, LLAMA_RPC) else
                     run_penstock(job, arguments, shares, load, setup, cache))
            rounds[load, setup].append(speed)
            if speed.cpu_share < CPU_SHARE_LEAST:
                print(f"round {number + 1}, {load}, {setup}: it had a core for {100 * speed.cpu_share:.0f} % of its busy "
                      f"time; others use the machine", file=sys.stderr)
    return rounds


def medians(rounds):
    return {turn: Speed(**middle([vars(speed) for speed in speeds])) for turn, speeds in rounds.items()}


# ---- What it says ---------------------------------------------------------------------------------------------------

def percent(share):
    return f"{100 * share:5.0f} %"


def print_steady(title, load, found):
    print(f"\n{title}\n{'':36}  prompt t/s  decode t/s   total t/s   memory    int8")
    for setup in LOADS[load]:
        s = found[load, setup]
        print(f"{setup:36} {s.prompt:11.1f} {s.decode:11.1f} {s.total:11.1f}  {percent(s.shares['all']['memory'])} "
              f"{percent(s.shares['all']['int8'])}")
    e = found[load, PIPELINE].efficiency
    print(f"efficiency: planned {e['planned']:.3f} (no split can give more than {e['bound']:.3f}), split "
          f"{e['split']:.3f}, schedule {e['schedule']:.3f}, pipeline {e['pipeline']:.3f}: "
          f"{e['pipeline'] / e['split']:.3f} of the split's, {e['pipeline'] / e['planned']:.3f} of the plan's")
    for i, stage in enumerate(found[load, PIPELINE].stages):
        print(f"  stage {i}: {stage['units']:.0f} units, planned {stage['planned_ms']:.2f} ms, {percent(stage['planned_share'])}"
              f" of all; measured {stage['busy_ms']:.2f} ms for {stage['rows']:.1f} rows, {percent(stage['share'])}")


def print_phases(found, llama):
    print(f"\nfirst all prompts, then all outputs\n{'':36}  prompt t/s    int8  decode t/s   memory    int8   total t/s")
    for (load, setup), s in found.items():
        if load != "phases":
            continue
        prompts, outputs = s.shares["prompts"], s.shares["outputs"]
        settings = " ".join(llama.settings[setup]) if llama and setup in llama.settings else ""
        print(f"{setup:36} {s.prompt:11.1f} {percent(prompts['int8'])} {s.decode:11.1f}  {percent(outputs['memory'])} "
              f"{percent(outputs['int8'])} {s.total:11.1f}  {settings}")
    for phase in ("prompts", "outputs"):
        e = found["phases", PIPELINE].efficiency[phase]
        print(f"efficiency of {phase}: split {e['split']:.3f}, schedule {e['schedule']:.3f}, pipeline {e['pipeline']:.3f}")


def bounds_of(found, llama):
    """(what, value, bound)"""
    for load in ("mixed", "outputs"):
        e = found[load, PIPELINE].efficiency
        yield f"{load}: schedule efficiency", e["schedule"], 0.95
        yield f"{load}: pipeline efficiency ÷ split efficiency", e["pipeline"] / e["split"], 0.95
    yield ("mixed: 2 ranks ÷ 2 threads", found["mixed", PIPELINE].total / found["mixed", ALONE].total,
           0.95 * found["mixed", PIPELINE].efficiency["bound"])
    if llama:
        for what in ("prompt", "decode", "total"):
            ours, phases = found["phases", PIPELINE], "phases"
            yield f"{what}: 2 ranks ÷ llama.cpp's 2 servers", ours[what] / found[phases, LLAMA_RPC][what], 4
            yield f"{what}: 2 ranks ÷ llama.cpp's 2 threads", ours[what] / found[phases, LLAMA][what], 2


def print_bounds(bounds):
    print("\nbounds")
    for what, value, bound in bounds:
        print(f"  {what:46} {value:6.3f}, at least {bound:.2f}{'' if value >= bound else ': missed'}")


def processor():
    return re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), flags=re.M)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("mpirun")
    parser.add_argument("model")
    parser.add_argument("--llama", metavar="DIR", help="llama.cpp's programs; without them its lines are left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=3 * STREAMS, help="of a steady load")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    job = Launcher(arguments.build / "penstock", arguments.mpirun)

    limits = measure_limits(arguments.build)
    shares = Shares(limits, sizes_of(job, arguments.model))
    llama = Llama(arguments.llama, arguments, shares) if arguments.llama else None
    print(f"{processor()}, {os.cpu_count()} cores: {limits.read_gb_s:.1f} GB/s, {limits.int8_tops:.2f} int8 Tops\n"
          f"{Path(arguments.model).name}, {STREAMS} streams, prompts of {arguments.prompt_tokens} tokens, outputs of "
          f"{arguments.output_tokens}; medians of {arguments.rounds} rounds"
          f"{'' if llama else '; no llama.cpp: PENSTOCK_BENCH_LLAMA names no folder'}", flush=True)
    if llama:
        llama.choose()
    with tempfile.TemporaryDirectory() as folder:
        rounds = measure(job, arguments, shares, llama, folder)

    found = medians(rounds)
    print_steady("prompts and outputs at the same time, the steady state", "mixed", found)
    print(f"  1 thread → 2 threads: {found['mixed', ALONE].total / found['mixed', ONE_THREAD].total:.2f}×, "
          f"→ 2 ranks: {found['mixed', PIPELINE].total / found['mixed', ONE_THREAD].total:.2f}×")
    print_steady("outputs alone (prompts of one token)", "outputs", found)
    print_phases(found, llama)
    bounds = list(bounds_of(found, llama))
    print_bounds(bounds)
    if arguments.json:
        report = {"processor": processor(), "model": Path(arguments.model).name, "streams": STREAMS,
                  "prompt_tokens": arguments.prompt_tokens, "output_tokens": arguments.output_tokens,
                  "limits": vars(limits), "llama_settings": llama.settings if llama else {},
                  "rounds": [{"load": load, "setup": setup, **vars(speed)} for (load, setup), speeds in rounds.items()
                             for speed in speeds],
                  "median": [{"load": load, "setup": setup, **vars(speed)} for (load, setup), speed in found.items()],
                  "bounds": [{"what": what, "value": value, "bound": bound} for what, value, bound in bounds]}
        Path(arguments.json).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return any(value < bound for _, value, bound in bounds)


if __name__ == "__main__":
    sys.exit(main())
