#!/usr/bin/env python3
"""Rows from GPU to GPU without GPUs: links.py LINK_RUN PROGRAM MPIRUN

LINK_RUN (link_run.c) passes rows over whichever link its ranks choose, PROGRAM runs models; both have the emulated CUDA
device and the emulated NCCL of tests/gpu/emulate, which takes from the environment of each rank what it pretends.
"""
import sys
import tempfile
import unittest
from pathlib import Path

from job import Launcher, write_profile

UNSUPPORTED, PEER_LOST = 4, 7
LLAMA = "synthetic:llama:layers=2,hidden=96,ffn=160/96,heads=6,kv_heads=2,vocab=331,context=256,type=q4_0"
GEMMA = "synthetic:gemma3:layers=2,hidden=64,ffn=96,heads=4,kv_heads=1,vocab=300,context=256,window=21,type=q8_0"
LONG = LLAMA.replace("context=256", "context=8192")
GPUS = {"EMULATED_GPUS": "3"}


def only(rank, **environment):
    """The shell text that gives one rank such an environment."""
    exports = " ".join(f"{name}={value}" for name, value in environment.items())
    return f'[ "$RANK" != {rank} ] || export {exports}; exec "$@"'


class Links(unittest.TestCase):
    def pass_rows(self, *arguments, ranks=2, **how):
        return Launcher(sys.argv[1], sys.argv[3]).run(*arguments, ranks=ranks, **{**GPUS, **how})

    def works(self, link, why, outcome):
        self.assertEqual((outcome.code, outcome.out, outcome.left), (0, link + "\n", []), outcome.err)
        self.assertRegex(outcome.err, rf"rows go from stage to stage by {link}: .*{why}")

    def refused(self, status, words, outcome):
        self.assertEqual((outcome.code, len(outcome.complaints), outcome.left), (status, 1, []), outcome.err)
        self.assertRegex(outcome.complaints[0], words)

    def falls_back(self, why, forced=True, **how):
        self.works("mpi", why, self.pass_rows("--messages", 20, **how))
        if forced:
            self.refused(UNSUPPORTED, f"--link nccl: .*{why}", self.pass_rows("--link", "nccl", **how))

    def test_rows_arrive_as_they_were_sent(self):
        for ranks, seed in ((2, 1), (3, 2)):
            for link in ("nccl", "mpi"):
                outcome = self.pass_rows("--seed", seed, "--link", link, ranks=ranks)
                self.works(link, "as asked for" if link == "mpi" else "all ranks have GPUs and NCCL 2.28.9", outcome)
        self.works("mpi", "rank 0 computes on no GPU", self.pass_rows("--device", "cpu", ranks=3))

    def test_ranks_on_one_gpu(self):
        shared = "ranks 0 and 1 have one GPU between them"
        self.falls_back(shared, EMULATED_GPUS="1")
        self.falls_back(shared, forced=False, EMULATED_GPUS="1", EMULATED_NCCL="23001")
        self.works("nccl", "NCCL 2.30.1",
                   self.pass_rows(EMULATED_GPUS="1", EMULATED_NCCL="23001", NCCL_MULTI_RANK_GPU_ENABLE="1"))

    def test_nccl_that_is_missing_or_differs(self):
        self.falls_back("rank 1 cannot use NCCL: .*libnccl", forced=False, shell=only(1, EMULATED_NCCL=0))
        self.falls_back("rank 0 has NCCL 2.28.9 and rank 1 has NCCL 2.27.3", shell=only(1, EMULATED_NCCL=22703))

    def test_nccl_that_does_not_come_up(self):
        self.falls_back("NCCL: (unhandled system error|remote process exited)",
                        shell=only(1, EMULATED_NCCL_FAULT="connect"))
        self.falls_back("rows from rank 0 .*arrive changed", ranks=3, shell=only(1, EMULATED_NCCL_FAULT="corrupt"))

    def test_a_silent_neighbour(self):
        """What is under way on the GPU must not hold up those who give up: they close the link and leave."""
        for link in ("nccl", "mpi"):  # of the one in the middle
            outcome = self.pass_rows("--link", link, "--silent", 1, "--patience", 1, ranks=3, limit=30)
            self.assertEqual((outcome.code, outcome.left), (PEER_LOST, []), outcome.err)
            self.assertRegex(outcome.err, r"penstock: silence for 1 s after 10\d of 200 messages")
            self.assertRegex(outcome.err, r"rank \d closed its link")


class Program(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.job = Launcher(*sys.argv[2:4])
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.temporary.name)
        cls.profiles = {model: write_profile(cls.job, model, cls.folder / f"profile{i}.json")
                        for i, model in enumerate((LLAMA, GEMMA, LONG))}

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def line(self, model, *arguments):
        return ["run", model, "--profile", self.profiles[model], "--ignore-eos", "--device", "cuda", "--cache", "-",
                "--workload", "8:8", "--log-level", "info", "-p", "The quick brown fox jumps over the lazy dog.",
                *arguments]

    def test_same_tokens_over_every_link(self):
        for model, runs in ((LLAMA, ((2, "auto"), (3, "nccl"), (3, "mpi"))), (GEMMA, ((2, "nccl"),))):
            line = self.line(model, "-n", "24", "--json", "--max-num-batched-tokens", "5")
            one = self.job.run(*line).json()["output_ids"]
            for ranks, link in runs:
                outcome = self.job.run(*line, "--link", link, ranks=ranks, **GPUS)
                self.assertEqual(outcome.json()["output_ids"], one, (model, ranks, link))
                self.assertIn("by mpi: as asked" if link == "mpi" else "by nccl: all ranks have", outcome.err)

    def test_links_are_timed(self):
        small = "synthetic:llama:layers=2,hidden=32,ffn=32,heads=2,vocab=70,context=16,type=q8_0"
        line = ["run", small, "-p", "ab", "-n", "3", "--device", "cuda", "--cache", "-", "--link", "nccl", "--log-level",
                "info"]
        outcome = self.job.run(*line, ranks=3, **GPUS)
        self.assertEqual((outcome.code, outcome.left), (0, []), outcome.err)
        for stage in (0, 1):
            self.assertRegex(outcome.err, rf"\[{stage}\] info: \d+ bytes take [\d.]+ ms to stage {stage + 1} by nccl")

    def test_it_ends_with_a_gpu_that_is_lost(self):
        outcome = self.job.run(*self.line(LLAMA, "-n", "200", "--link", "nccl"), ranks=2, limit=60,
                               shell=only(1, EMULATED_LOST=3000), **GPUS)
        self.assertEqual((len(outcome.complaints), outcome.left), (1, []), outcome.err)
        self.assertRegex(outcome.complaints[0], r"rank 1 .*cuda Emulated GPU failed in")

    def test_it_ends_with_a_rank_that_stops(self):
        line = self.line(LONG, "-n", "4000", "--link", "nccl", "--step-timeout", "2")
        stop = '[ "$RANK" != 1 ] || (sleep 3; kill -STOP $$) & exec "$@"'
        outcome = self.job.run(*line, ranks=3, limit=60, shell=stop, **GPUS)
        self.assertEqual((outcome.code, len(outcome.complaints), outcome.left), (PEER_LOST, 1, []), outcome.err)
        self.assertRegex(outcome.complaints[0], r"rank 1 .*did not answer for")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
