#!/usr/bin/env python3
"""How well ranks wait and make progress, by the program itself. Run it through progress.sh. Its parts:

links  16 streams on two ranks of one thread: pipeline efficiency and speed by default, with CMA off and over TCP, in
       turns; the median over the rounds of each round's ratio to the default. And from traces: the part of its time that
       a stage has nothing to do while what it waits for has been sent, be it rows or token ids on their way back.
trace  What --trace costs: recording a step (bench_trace) as a part of a step's time, which is the figure that has a
       bound; and the speed of the same load with and without it, in turns, which says no more than its spread.
idle   CPU time of every rank's threads while the program is up and nobody asks for anything. Beside it, measured just
       before and after, a process that only sleeps as long at a time: on a virtual machine waking up is most of it.
wake   One stream: from the end of a stage's step to the beginning of the next stage's, which waits for it. Beside it,
       from the end of the last stage's to the beginning of the first one's next, in which it also makes that step. With
       a core a rank, and with more ranks than cores.
deep   Requests a second or more apart: from the leader's step to the beginning of the next stage's.

All times are the trace's, which costs less than 1 %.
"""
import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "mpi"))
from job import Launcher, processes_with  # noqa: E402

SMALL = "synthetic:llama:layers=16,hidden=512,ffn=1536,heads=8,kv_heads=4,vocab=512,context=4096,type=q4_0"
TINY = "synthetic:llama:layers=8,hidden=64,ffn=96,heads=4,kv_heads=2,vocab=300,context=512,type=q4_0"
CONDITIONS = {
    "default": {},
    "cma off": {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"},
    "tcp": {"OMPI_MCA_btl": "tcp,self"},
}
DEEP_US = 1.05e6  # idle for as long: deep
SLICE_S = 0.0055  # then a rank sleeps so long at a time (runtime/wait.c)


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.launcher = Launcher(arguments.penstock, arguments.mpirun)
        self.folder = tempfile.mkdtemp()
        self.report = {}
        self.missed = 0

    def line(self, model, *more):
        """Profiles are cached, so that all runs of a model have the same plan."""
        return ["bench", model, "--json", "--threads", 1, "--cache", self.folder, *more]

    def trace(self, ranks, model, *more, **environment):
        """A run, and its slices [stage][step]: (begin, end) in µs."""
        path = Path(self.folder) / "trace.json"
        outcome = self.launcher.run(*self.line(model, "--trace", path, *more), ranks=ranks, limit=600, **environment)
        run = outcome.json()["runs"][0]
        stages = [[] for _ in range(ranks)]
        for event in json.loads(path.read_text())["traceEvents"]:
            if event["ph"] == "X":
                stages[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        return run, stages

    def show(self, part, what, value, unit, bound=None, least=False):
        """A figure, and beside it what it may be at most (or at least)."""
        met = bound is None or (value >= bound if least else value <= bound)
        self.missed += not met
        self.report.setdefault(part, {})[what] = {"value": value, "unit": unit, "bound": bound, "met": met}
        beside = "" if bound is None else f"  {'≥' if least else '≤'} {bound:g}{'' if met else '   MISSED'}"
        print(f"{part:6} {what:58} {value:10.3f} {unit:4}{beside}", flush=True)


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


# ---- Links ----------------------------------------------------------------------------------------------------------

def lost_on_the_way(stages):
    """The parts of its steady time that each stage loses to messages: it is free, and the step was sent to it or, to the
    first, the last ids that came before it began."""
    first, ids_sent, lost = stages[0], [end for _, end in stages[-1]], []
    steps = range(len(first) // 5, len(first) * 4 // 5)  # neither the beginning nor the end
    for s, stage in enumerate(stages):
        if s > 0:
            sent = [stages[s - 1][n][1] for n in steps]
        else:
            sent = [ids_sent[bisect(ids_sent, first[n][0]) - 1] for n in steps]
        waited = sum(stage[n][0] - max(stage[n - 1][1], at) for n, at in zip(steps, sent))
        lost.append(waited / (stage[steps[-1]][1] - stage[steps[0]][0]))
    return lost


def measure_links(bench, model):
    name = Path(model).name
    load = ["--concurrency", 16, "--num-prompts", 32, "--prompt-tokens", 128, "--output-tokens", 64]
    bench.trace(2, model, *load[:2], "--num-prompts", 1, *load[4:])  # measures the profile
    rounds = []
    for _ in range(bench.arguments.rounds):
        traces = {condition: bench.trace(2, model, *load, **environment)
                  for condition, environment in CONDITIONS.items()}
        rounds.append({condition: {**run, "lost": lost_on_the_way(stages)} for condition, (run, stages) in traces.items()})

    def median(of):
        return statistics.median(of(r) for r in rounds)

    for condition in CONDITIONS:
        def show(what, unit, of, *bound, **more):
            bench.show("links", f"{name}, {condition}: {what}", median(of), unit, *bound, **more)
        show("prompt and output", "t/s", lambda r: r[condition]["total_tokens_per_s"])
        for what in ("split", "schedule", "pipeline"):
            show(f"{what} efficiency", "", lambda r: r[condition][f"{what}_efficiency"])
        show("rows on their way, of stage 1's time", "%", lambda r: 100 * r[condition]["lost"][1])
        show("ids on their way, of stage 0's time", "%", lambda r: 100 * r[condition]["lost"][0], 1)
        if condition != "default":
            show("speed ÷ default's", "", lambda r: r[condition]["total_tokens_per_s"] / r["default"]["total_tokens_per_s"])
            show("pipeline efficiency ÷ default's", "",
                 lambda r: r[condition]["pipeline_efficiency"] / r["default"]["pipeline_efficiency"], 0.97, least=True)


# ---- Trace ----------------------------------------------------------------------------------------------------------

def measure_trace(bench, model):
    name = Path(model).name
    load = ["--concurrency", 16, "--num-prompts", 32, "--prompt-tokens", 128, "--output-tokens", 64]
    bench.trace(2, model, *load[:2], "--num-prompts", 1, *load[4:])  # measures the profile

    def plain():
        return bench.launcher.run(*bench.line(model, *load), ranks=2, limit=600).json()["runs"][0]

    def traced():
        return bench.trace(2, model, *load)[0]

    rounds = []
    for number in range(2 * bench.arguments.rounds):
        first, second = (plain, traced) if number % 2 == 0 else (traced, plain)
        a, b = first(), second()
        rounds.append((a, b) if number % 2 == 0 else (b, a))
    ratios = sorted(t["total_tokens_per_s"] / p["total_tokens_per_s"] for p, t in rounds)
    step_us = min(statistics.median(1e6 * p["stages"][s]["busy_s"] / p["stages"][s]["steps"] for p, _ in rounds)
                  for s in range(2))
    record = json.loads(subprocess.run([bench.arguments.penstock.parent / "tests/bench_trace"], check=True,
                                       stdout=subprocess.PIPE).stdout)
    bench.show("trace", "recording a step", record["record_ns"] / 1000, "us")
    bench.show("trace", f"{name}: the quickest stage's step", step_us, "us")
    bench.show("trace", f"{name}: recording, of a step's time", record["record_ns"] / 10 / step_us, "%", 1)
    bench.show("trace", f"{name}: speed with ÷ without, median of {len(ratios)}", statistics.median(ratios), "")
    bench.show("trace", f"{name}: the lowest of them", ratios[0], "")
    bench.show("trace", f"{name}: the highest of them", ratios[-1], "")


# ---- Idle -----------------------------------------------------------------------------------------------------------

def cpu_seconds(pid):
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) * 1e-9


def sleeper_share():
    """What the machine takes for the sleeping alone, in % of a core: no rank that looks as often can take less."""
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() < began + 5:
        time.sleep(SLICE_S)
    return 100 * (time.process_time() - used) / (time.monotonic() - began)


def measure_idle(bench, ranks):
    sleepers = [sleeper_share()]
    mark = f"idle-{os.getpid()}-{ranks}"
    # The first request would come after a quarter of an hour.
    line = bench.line(TINY, "--request-rate", 0.001, "--num-prompts", 1, "--prompt-tokens", 8, "--output-tokens", 4)
    process = bench.launcher.start(*line, ranks=ranks, mark=mark, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for text in process.stderr:
        if text.lstrip().startswith("measured:"):
            break
    drain = threading.Thread(target=process.stderr.read)
    drain.start()
    time.sleep(2)
    pids = [pid for pid in processes_with(mark) if pid != process.pid]
    if len(pids) != ranks:
        sys.exit(f"{len(pids)} processes of {ranks} ranks")
    before, began = [cpu_seconds(pid) for pid in pids], time.monotonic()
    time.sleep(bench.arguments.idle)
    used = [cpu_seconds(pid) - b for pid, b in zip(pids, before)]
    wall = time.monotonic() - began
    process.send_signal(signal.SIGTERM)
    process.wait()
    drain.join()
    sleepers.append(sleeper_share())
    shares, sleeper = [100 * u / wall for u in used], statistics.mean(sleepers)
    what = f"{ranks} ranks, {wall:.0f} s: a core's share of the busiest"
    bench.show("idle", what, max(shares), "%", 1)
    bench.show("idle", f"{ranks} ranks: a process that only sleeps {1000 * SLICE_S} ms at a time", sleeper, "%")
    bench.show("idle", f"{ranks} ranks: the busiest above it", max(shares) - sleeper, "%", 0.1)
    bench.show("idle", f"{ranks} ranks, {wall:.0f} s: CPU time of all", sum(used), "s")


# ---- Wake-up --------------------------------------------------------------------------------------------------------

def show_quantiles(bench, part, what, values, bound=None):
    bench.show(part, f"{what}: p50 of {len(values)}", quantile(values, 0.5), "us")
    bench.show(part, f"{what}: p99", quantile(values, 0.99), "us", bound)


def measure_wake(bench, ranks, what, bound):
    _, stages = bench.trace(ranks, SMALL, "--concurrency", 1, "--num-prompts", 1, "--prompt-tokens", 8,
                            "--output-tokens", 1000)
    steps = range(10, len(stages[0]))
    rows = [after[n][0] - before[n][1] for before, after in zip(stages, stages[1:]) for n in steps]
    show_quantiles(bench, "wake", f"{what}, rows", rows, bound)
    show_quantiles(bench, "wake", f"{what}, ids", [stages[0][n][0] - stages[-1][n - 1][1] for n in steps])


def measure_deep(bench):
    _, (first, second) = bench.trace(2, TINY, "--request-rate", 1, "--num-prompts", 35, "--prompt-tokens", 8,
                                     "--output-tokens", 1)
    values = [second[n][0] - first[n][0] for n in range(1, len(first)) if first[n][0] - second[n - 1][1] > DEEP_US]
    show_quantiles(bench, "deep", "idle for a second, 2 ranks", values, 6000)


# ---- All of it ------------------------------------------------------------------------------------------------------

def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True, type=Path)
    parser.add_argument("--model", action="append", help="for links and trace; may be given again")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=30, metavar="SECONDS")
    parser.add_argument("--only", default="links,trace,idle,wake,deep", metavar="PART,…")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    bench, parts = Bench(arguments), arguments.only.split(",")
    cores = len(os.sched_getaffinity(0))
    print(f"{processor()}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    try:
        if "wake" in parts:
            measure_wake(bench, 2, "2 ranks, which may spin", 50)
            measure_wake(bench, 2 * cores, f"{2 * cores} ranks, which may not", 250)
        if "deep" in parts:
            measure_deep(bench)
        for ranks in (2, 4, 8) if "idle" in parts else ():
            measure_idle(bench, ranks)
        for model in arguments.model or () if "links" in parts else ():
            measure_links(bench, model)
        for model in arguments.model or () if "trace" in parts else ():
            measure_trace(bench, model)
    finally:
        shutil.rmtree(bench.folder)
    print(f"{bench.missed} of the bounds missed")
    if arguments.json:
        report = {"processor": processor(), "cores": cores, "load": os.getloadavg(), "figures": bench.report}
        Path(arguments.json).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
