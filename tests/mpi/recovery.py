#!/usr/bin/env python3
"""Ranks are lost while requests run: recovery.py PENSTOCK MPIRUN FRONT_RUN

Where the launcher lets the others live (mpirun --enable-recovery) the other replicas go on with what a lost one had,
and nobody sees a difference: a batch's output is the same, and the log and the journal say what was lost. Without
rank 0 the job ends, and its journal lets the next one go on.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
from pathlib import Path

from job import GONE_S, Launcher, processes_with, write_profile

MODEL = "synthetic:llama:layers=6,hidden=256,ffn=512,heads=4,kv_heads=2,vocab=300,context=512,type=q8_0"
RECOVERY = {"OMPI_MCA_orte_enable_recovery": "1"}
TCP = {"OMPI_MCA_btl": "tcp,self"}
LOST, REQUESTS = 7, 90


def rank_of(pid):
    match = re.search(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
    return int(match[1]) if match else None


class Recovery(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.job = Launcher(sys.argv[1], sys.argv[2])
        cls.front = Launcher(sys.argv[3], sys.argv[2])

    # ---- The front end, at random (front_run.c) ----

    def lose(self, ranks, victim, *more, code=0, environment=RECOVERY):
        outcome = self.front.run("--victim", victim, "--steal", *more, ranks=ranks, limit=90, **environment)
        self.assertEqual((outcome.code, outcome.left), (code, []), outcome.err)
        return outcome

    def test_requests_go_on_where_they_were(self):
        """Killed or stopped, a leader or another stage, with long queues and short ones."""
        for seed, (ranks, victim, *more) in enumerate([
                (2, 1, "--dp", 2), (3, 1, "--dp", 3, "--policy", "weighted", "--max-queue", 8),
                (3, 2, "--dp", 3, "--stop", "--timeout", 2, "--policy", "round-robin"), (4, 2, "--dp", 2, "--preempts"),
                (4, 3, "--dp", 2, "--blocks", 20), (4, 3, "--dp", 2, "--stop", "--timeout", 2, "--after", 3000)]):
            outcome = self.lose(ranks, victim, "--seed", seed, *more)
            self.assertRegex(outcome.out, r"^400 requests, \d+ tokens, 0 differences, .*, 1 lost\n$")
            self.assertRegex(outcome.err, r"penstock\[0\] warning: rank \d .*: replica \d is lost, and the \d+ requests")

    def test_two_are_lost(self):
        """One after the other: what came from the first goes to the second and on."""
        outcome = self.lose(4, 1, "--dp", 4, "--and", 3, "--policy", "least-requests")
        self.assertRegex(outcome.out, r"^400 requests, \d+ tokens, 0 differences, .*, 2 lost\n$")

    def test_over_tcp(self):
        outcome = self.lose(4, 2, "--dp", 2, environment={**RECOVERY, **TCP})
        self.assertRegex(outcome.out, r"^400 requests, \d+ tokens, 0 differences, .*, 1 lost\n$")

    def test_without_the_first_replica_the_job_ends(self):
        for victim in (0, 1):
            outcome = self.lose(4, victim, "--dp", 2, code=1)
            self.assertIn(f"penstock: rank {victim} (replica 0, stage {victim} on ", outcome.err)

    def test_without_recovery_the_job_ends(self):
        for ranks, victim in ((2, 1), (4, 3)):
            outcome = self.lose(ranks, victim, "--dp", 2, "--stop", "--timeout", 1, code=LOST, environment={})
            self.assertEqual(len(outcome.complaints), 1, outcome.err)
            self.assertRegex(outcome.complaints[0], rf"^penstock: rank {victim} \(replica 1, stage {victim - ranks // 2} on "
                                                    r"\S+\) (has said nothing|did not answer) for \d\.\d s")

    def test_who_pauses_is_not_lost(self):
        """Rank 0 stands still for longer than it would wait for others, and another leader for less than that."""
        for rank, seconds in ((0, 3), (1, 0.7)):
            mark = uuid.uuid4().hex
            process = self.front.start("--dp", 2, "--steal", "--timeout", 1, "--requests", 3000, ranks=2, mark=mark,
                                       environment=RECOVERY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(0.8)
            pid, = (pid for pid in processes_with(mark) if rank_of(pid) == rank)
            os.kill(pid, signal.SIGSTOP)
            self.assertIsNone(process.poll())
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
            out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, err)
            self.assertRegex(out, r"^6000 requests, \d+ tokens, 0 differences, .*, 0 lost\n")

    # ---- A batch ----

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.input, self.output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        self.journal = Path(f"{self.output}.journal")

    def arguments(self, replicas):
        return ["batch", MODEL, "-i", self.input, "-o", self.output, "--profile", self.profile, "--workload", "8:8",
                "--threads", 1, "--max-model-len", 256, "--dp", replicas, "--step-timeout", 3, "--steal", "on", "--json"]

    def prepare(self):
        self.profile = write_profile(self.job, MODEL, self.folder / "profile.json")
        self.input.write_text("".join(
            json.dumps({"custom_id": f"request {i}", "method": "POST", "url": "/v1/completions",
                        "body": {"model": "m", "prompt": "1 2 3 4 5 6 7"[:1 + i % 13], "max_tokens": 20 + 37 * i % 150,
                                 "n": 1 + i % 3 // 2, "logprobs": i % 3, "ignore_eos": True, "seed": i}}) + "\n"
            for i in range(REQUESTS)))
        outcome = self.job.run(*self.arguments(1))
        self.assertEqual(outcome.code, 0, outcome.err)
        self.expected = self.contents()
        self.output.unlink()

    def contents(self):
        found = [json.loads(text) for text in self.output.read_text().splitlines()]
        for answer in found:
            del answer["response"]["body"]["created"]
        return sorted(json.dumps(answer) for answer in found)

    def run_and_strike(self, ranks, replicas, victim, number):
        """Strikes when a tenth is there; the outcome of the job."""
        mark = uuid.uuid4().hex
        process = self.job.start(*self.arguments(replicas), ranks=ranks, mark=mark, environment=RECOVERY,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        patience = time.monotonic() + 30
        while not self.output.exists() or self.output.read_bytes().count(b"\n") < REQUESTS // 10:
            self.assertLess(time.monotonic(), patience)
            self.assertIsNone(process.poll())
            time.sleep(0.002)
        for pid in processes_with(mark):
            if rank_of(pid) == victim:
                os.kill(pid, number)
        out, err = process.communicate(timeout=60)
        deadline = time.monotonic() + GONE_S
        while (left := processes_with(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(left, [], err)
        return process.returncode, out, err

    def test_batch_goes_on(self):
        self.prepare()
        for ranks, replicas, victim, number in ((3, 3, 1, signal.SIGKILL), (4, 2, 2, signal.SIGKILL),
                                                (4, 2, 3, signal.SIGKILL), (3, 3, 2, signal.SIGSTOP)):
            code, out, err = self.run_and_strike(ranks, replicas, victim, number)
            self.assertEqual(code, 0, err)
            lost = victim // (ranks // replicas)
            self.assertRegex(err, rf"warning: rank \d .*: replica {lost} is lost, and the \d+ requests that it had go to")
            self.assertEqual(json.loads(out)["lost_replicas"], 1)
            self.assertEqual(self.contents(), self.expected)
            self.assertFalse(self.journal.exists())
            self.output.unlink()

    def test_batch_without_rank_0_goes_on_with_the_next_job(self):
        self.prepare()
        code, _, err = self.run_and_strike(4, 2, 0, signal.SIGKILL)
        self.assertNotEqual(code, 0, err)
        self.assertIn("penstock: rank 0 (replica 0, stage 0 on ", err)
        self.assertTrue(self.journal.exists())
        code, out, err = self.run_and_strike(4, 2, 3, signal.SIGKILL)
        self.assertEqual(code, 0, err)
        self.assertGreater(json.loads(out)["earlier"], 0)
        self.assertEqual(self.contents(), self.expected)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
