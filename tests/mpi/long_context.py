#!/usr/bin/env python3
"""Contexts of thousands of tokens: long_context.py PROGRAM MPIRUN [--model FILE …]

8,192 tokens go through models with full attention, with a window in all layers and with a window in five layers of
six: as a prompt with its continuation, at 1, 2 and 3 ranks, and as a text to score, at 1 and 3. Tokens and
log-probabilities must be equal bit for bit, and what each rank of the run holds at its peak must be what the plan said,
within 5 %, and what a process has beside its stage: about as much as the same run of a tiny model has beside its own.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from job import Launcher, processes_with, write_profile

TOKENS, NEW_TOKENS = 8192, 12
RANKS = {"run": (1, 2, 3), "score": (1, 3)}
WITHIN = 0.05
SPREAD = 4 << 20  # by which what a process has beside its stage differs from model to model
MIB = 1 << 20
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
TINY = "synthetic:llama:layers=3,hidden=32,ffn=32,heads=1,vocab=2048,context=8192"
SHAPE = "hidden=256,ffn=512,heads=8,kv_heads=8,head_size=128,vocab=2048,context=8192"
SYNTHETIC = [f"synthetic:llama:layers=3,{SHAPE}", f"synthetic:llama:layers=3,window=4000,{SHAPE}",
             f"synthetic:gemma3:layers=12,window=1000,{SHAPE}"]
WORDS = ("of", "and", "to", "in", "river", "turbine", "pipe", "water", "falls", "through", "seven", "stages", "while",
         "others", "wait", "Nobody", "knows", "how", "long", "it", "takes")


class Watch(threading.Thread):
    """The most anonymous memory that each rank of a job is seen to hold."""

    def __init__(self, program, mark):
        super().__init__()
        self.program, self.mark, self.most, self.over = program, mark, {}, threading.Event()

    def look(self):
        for pid in processes_with(self.mark):
            try:
                if os.path.realpath(f"/proc/{pid}/exe") != os.path.realpath(self.program):
                    continue
                rank = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
                held = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            except OSError:  # it has ended
                continue
            number = int(rank[1]) if rank else 0
            if held:
                self.most[number] = max(self.most.get(number, 0), 1024 * int(held[1]))

    def run(self):
        while not self.over.wait(0.05):
            self.look()


COMMANDS = {
    "run": ["run", "-n", NEW_TOKENS, "--logprobs", 5, "--ignore-eos"],
    "score": ["perplexity", "--token-logprobs"],
}


def measure(job, folder, command, model, text, ranks):
    """The answer, what each rank held at most, and what the plan said."""
    profile = write_profile(job, model, folder / "profile.json")
    mark = uuid.uuid4().hex
    watch = Watch(job.program, mark)
    name, *options = COMMANDS[command]
    process = job.start(name, model, "-f", text, *options, "--json", "--profile", profile, "--workload", "8:8",
                        "--threads", 1, ranks=ranks, mark=mark, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watch.start()
    out, err = process.communicate(timeout=1200)
    watch.over.set()
    watch.join()
    if process.returncode != 0:
        raise RuntimeError(f"{model} at {ranks} ranks ended with {process.returncode}: {err}")
    planned = [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) ([KMG]iB) of", err)]
    answer = json.loads(out)
    answer.pop("timings", None)
    return answer, watch.most, planned


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("mpirun")
    parser.add_argument("--model", action="append", help="a file, instead of the synthetic models")
    arguments = parser.parse_args()
    job, wrong = Launcher(arguments.program, arguments.mpirun), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text"
        draw = random.Random(1)
        text.write_text(" ".join(draw.choice(WORDS) for _ in range(2 * TOKENS))[: TOKENS - NEW_TOKENS])
        besides = {}
        for ranks in RANKS["run"]:
            _, held, planned = measure(job, folder, "run", TINY, text, ranks)
            besides[ranks] = [held[rank] - planned[rank] for rank in range(ranks)]
        print("ranks  rank  planned MiB  held MiB  seconds  model")
        for model in arguments.model or SYNTHETIC:
            first = {}
            for command in COMMANDS:
                for ranks in RANKS[command]:
                    began = time.monotonic()
                    answer, held, planned = measure(job, folder, command, model, text, ranks)
                    seconds = time.monotonic() - began
                    if first.setdefault(command, answer) != answer:
                        wrong.append(f"{command} {model}: {ranks} ranks answer otherwise than 1")
                    for rank in range(ranks if command == "run" else 0):
                        own = held[rank] - besides[ranks][rank]
                        print(f"{ranks:5} {rank:5} {planned[rank] / MIB:12.1f} {own / MIB:9.1f} {seconds:8.1f}  {model}")
                        if abs(own - planned[rank]) > WITHIN * planned[rank] + SPREAD:
                            wrong.append(f"{model}: rank {rank} of {ranks} held {own / MIB:.1f} MiB, planned were "
                                         f"{planned[rank] / MIB:.1f}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
