#!/usr/bin/env python3
"""Waiting has a name: waits.py ENGINE_RUN MPIRUN

A rank is stopped for a second and goes on. At log level debug those that wait for it say for whom, what for and in which
step; nobody says more than a line a second, and the run ends as if nothing had happened. On a machine that is busy with
something else there may be other waits of a tenth of a second: they are named, too, and not counted here.
"""
import os
import re
import signal
import subprocess
import sys
import time
import unittest

from job import Launcher

RANKS = 3
MODEL = "synthetic:llama:layers=12,hidden=512,ffn=2048,heads=8,kv_heads=4,vocab=8192,context=4096,type=q4_0"
STOPPED_S = 1.0


def run_with_stop(rank, phase, delay):
    """What each rank of a run says, where `rank` is stopped `delay` seconds after it has come to the phase; its results;
    and its seconds."""
    began = time.monotonic()
    process = JOB.start("--model", MODEL, "--announce", "--debug", "--requests", 2, "--prompt", 40, "--output", 400,
                        "--threads", 1, ranks=RANKS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pids = {}
    while len(pids) < RANKS:  # so that all are there
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(process.stderr.read())
        if match := re.fullmatch(rf"rank (\d) pid (\d+) {phase}\n", line):
            pids[int(match[1])] = int(match[2])
    time.sleep(delay)
    os.kill(pids[rank], signal.SIGSTOP)
    time.sleep(STOPPED_S)
    os.kill(pids[rank], signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    if process.returncode != 0:
        raise RuntimeError(err)
    lines = [[] for _ in range(RANKS)]
    for said, text in re.findall(r"^penstock\[(\d)\] debug: (.*)$", err, re.M):
        lines[int(said)].append(text)
    return lines, out, time.monotonic() - began


def wait_for(rank, link):
    return rf"has waited \d\.\d s for rank {rank} \(stage {rank} on \S+\): {link} link mpi, step [1-9]\d*$"


class Waits(unittest.TestCase):
    def check(self, lines, *wanted, seconds):
        for rank, pattern in wanted:
            self.assertTrue(any(re.match(pattern, line) for line in lines[rank]), (pattern, lines))
        for own in lines:
            self.assertLessEqual(len(own), seconds + 2, lines)  # at start-up and in the engine, each

    def test_run(self):
        """The leader waits for choices, the next stage for rows."""
        outs = set()
        for rank in range(RANKS):
            lines, out, seconds = run_with_stop(rank, "running", 0.3)
            outs.add("".join(line for line in out.splitlines(True) if line.startswith("request")))
            wanted = [(0, wait_for(RANKS - 1, "token"))] if rank > 0 else []
            wanted += [(rank + 1, wait_for(rank, "(activation|control)"))] if rank + 1 < RANKS else []
            self.check(lines, *wanted, seconds=seconds)
        self.assertEqual(len(outs), 1, outs)

    def test_start(self):
        """All wait for each other's arrival behind the loading."""
        lines, _, seconds = run_with_stop(1, "loading", 0.02)
        pattern = r"rank 0 has waited \d\.\d s for rank 1 \(stage 1 on \S+\) while loading$"
        self.check(lines, (0, pattern), seconds=seconds)


if __name__ == "__main__":
    JOB = Launcher(*sys.argv[1:3])
    unittest.main(argv=sys.argv[:1], verbosity=2)
