#!/usr/bin/env python3
"""How soon a model is ready, and what it takes in memory. Run it through start.sh. Its parts:

ready   From the start of the process, or of mpirun, until the first request's first step can begin: when each step of the
        start is done, by when the log says so, medians over the rounds. The profile is cached, the file in the page cache.
        Beside it how long mpirun takes to start two processes that only say so; from there to the end of MPI_Init it is
        MPI_Init's time.
memory  Of each rank when all is loaded and it waits for work, with little KV: RssAnon against the rank's own tensors in the
        file. What a stage plans for weights, KV and scratch (which fills as batches get larger) is the log's; the rest is
        tokeniser, header and MPI. No page of the file stays mapped.
"""
import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "mpi"))
from gguf_file import Reader  # noqa: E402
from job import ENVIRONMENT, Launcher, processes_with  # noqa: E402
from memory import memory_of, rank_of  # noqa: E402

RANKS = (0, 2)  # 0: without mpirun
MIB = 1 << 20
READY_S = 1.0            # for a model of at most …
SMALL_BYTES = 128 << 20
RESIDENT = 1.25          # of the rank's own tensors
STEPS = ("MPI_Init", "opening the model", "comparing memories", "preparing the request", "sharing the plan",
         "loading the model")


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.launcher = Launcher(arguments.penstock, arguments.mpirun)
        self.folder = tempfile.mkdtemp()
        self.report = []
        self.missed = 0

    def show(self, model, ranks, what, value, unit, bound=None):
        where = f"{Path(model).stem:.20}, {f'{ranks} ranks' if ranks else '1 process'}"
        met = bound is None or value <= bound
        self.missed += not met
        self.report.append({"model": Path(model).name, "ranks": ranks, "what": what, "value": value, "unit": unit,
                            "bound": bound})
        beside = "" if bound is None else f"  ≤ {bound:g}{'' if met else '   MISSED'}"
        print(f"{where:32} {what:44} {value:9.3f} {unit:4}{beside}", flush=True)

    def line(self, command, model, *more):
        return [command, model, "--cache", self.folder, "--log-level", "debug", *more]


# ---- Ready ----------------------------------------------------------------------------------------------------------

def start_once(bench, model, ranks):
    """When each step was done, in seconds, and when all was."""
    mark, began = uuid.uuid4().hex, time.monotonic()
    process = bench.launcher.start(*bench.line("run", model, "-p", "Hello", "-n", 1), ranks=ranks, mark=mark,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    done = {}
    for text in process.stderr:
        step = re.match(r"penstock(\[0\])? debug: done: (.*)", text)
        if step:
            done[step[2]] = time.monotonic() - began
        elif text.lstrip().startswith("measured:"):
            done["ready"] = time.monotonic() - began
    if process.wait() != 0:
        sys.exit(f"{process.args} ended with {process.returncode}")
    return done


def launcher_alone(bench):
    began = time.monotonic()
    process = subprocess.Popen([bench.arguments.mpirun, "-np", "2", "echo"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    process.stdout.readline()
    seconds = time.monotonic() - began
    process.communicate()
    return seconds


def measure_ready(bench, model):
    for ranks in RANKS:
        start_once(bench, model, ranks)  # measures the profile, fills the page cache
    rounds = [{ranks: start_once(bench, model, ranks) for ranks in RANKS} for _ in range(bench.arguments.rounds)]
    launcher = statistics.median(launcher_alone(bench) for _ in rounds)
    bound = READY_S if os.path.getsize(model) <= SMALL_BYTES else None
    for ranks in RANKS:
        if ranks:
            bench.show(model, ranks, "mpirun alone, until its first process", launcher, "s")
        for step in STEPS:
            if all(step in r[ranks] for r in rounds):
                bench.show(model, ranks, f"done: {step}", statistics.median(r[ranks][step] for r in rounds), "s")
        bench.show(model, ranks, f"ready, median of {len(rounds)}", statistics.median(r[ranks]["ready"] for r in rounds),
                   "s", bound)


# ---- Memory ---------------------------------------------------------------------------------------------------------

def look(bench, model, ranks):
    """Each rank's (RssAnon, VmHWM), its units as (first, last), and what its stage planned: weights, KV, scratch."""
    mark = uuid.uuid4().hex
    # The first request would come after a quarter of an hour.
    line = bench.line("bench", model, "--request-rate", 0.001, "--num-prompts", 1, "--prompt-tokens", 8,
                      "--output-tokens", 4)
    process = bench.launcher.start(*line, ranks=ranks, mark=mark, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
    count, planned, units, first = max(ranks, 1), {}, [], 0
    for text in process.stderr:
        if told := re.match(r"penstock(?:\[(\d)\])? debug: bytes of the stage: weights (\d+), KV (\d+), scratch (\d+)",
                            text):
            planned[int(told[1] or 0)] = tuple(map(int, told.groups()[1:]))
        elif stage := re.match(r" +(\d+)  \S.* (\d+) +[\d.]+ ms .* of ", text):
            units.append((first, first + int(stage[2]) - 1))
            first += int(stage[2])
        elif text.lstrip().startswith("measured:"):
            break
    drain = threading.Thread(target=process.stderr.read)
    drain.start()
    time.sleep(0.5)
    pids = {rank_of(pid): pid for pid in processes_with(mark) if pid != process.pid} if ranks else {0: process.pid}
    measured = [memory_of(pids[rank]) for rank in range(count)]
    process.terminate()
    process.wait()
    drain.join()
    return measured, units, [planned[rank] for rank in range(count)]


def measure_memory(bench, model):
    file, units = Reader(model), bench.launcher.run("inspect", model, "--json").json()["units"]
    for ranks in RANKS:
        look(bench, model, ranks)  # measures the profile
        for rank, ((anonymous, peak), (first, last), planned) in enumerate(zip(*look(bench, model, ranks))):
            names = {tensor["name"] for unit in units[first:last + 1] for tensor in unit["tensors"]}
            own = sum(end - start for start, end in (file.tensors[name] for name in names))
            for what, size in zip(("own tensors in the file", "weights planned", "KV planned", "scratch planned, at most",
                                   "RssAnon", "VmHWM"), (own, *planned, anonymous, peak)):
                bench.show(model, ranks, f"rank {rank}: {what}", size / MIB, "MiB")
            bench.show(model, ranks, f"rank {rank}: RssAnon ÷ own tensors", anonymous / own, "", RESIDENT)


# ---- All of it ------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True, type=Path)
    parser.add_argument("--model", action="append", required=True, help="may be given again")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="ready,memory", metavar="PART,…")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    bench, parts = Bench(arguments), arguments.only.split(",")
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    try:
        for model in arguments.model:
            if "ready" in parts:
                measure_ready(bench, model)
            if "memory" in parts:
                measure_memory(bench, model)
    finally:
        shutil.rmtree(bench.folder)
    print(f"{bench.missed} of the bounds missed")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(bench.report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
