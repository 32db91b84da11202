#!/usr/bin/env python3
"""The program on GPUs that are not there: cuda.py PROGRAM MPIRUN

PROGRAM is penstock with the emulated CUDA device (tests/gpu/emulate), which takes from its environment what the machine
pretends to be: without a driver, with so many GPUs, with little memory, with a GPU that is lost in the middle. Numbers
are compared with the CPU's; that all splits give the same tokens is same_tokens.py's.
"""
import math
import re
import sys
import tempfile
import unittest
from pathlib import Path

from job import Launcher, write_profile

UNSUPPORTED, NO_MEMORY, INTERNAL = 4, 5, 1
LLAMA = "synthetic:llama:layers=2,hidden=96,ffn=160/96,heads=6,kv_heads=2,vocab=331,context=256,type=q4_0"
MODELS = [LLAMA,
          "synthetic:gemma3:layers=2,hidden=64,ffn=96,heads=4,kv_heads=1,vocab=300,context=256,window=21,type=q8_0",
          "synthetic:gpt2:layers=2,hidden=96,ffn=128,heads=3,vocab=280,context=256,type=f16"]
TEXT = "The quick brown fox jumps over the lazy dog."
QUICK = ["--cache", "-", "--workload", "8:8"]
MIB = 1 << 20


def only(rank, **environment):
    """The shell text that gives one rank such an environment."""
    exports = " ".join(f"{name}={value}" for name, value in environment.items())
    return f'[ "$RANK" != {rank} ] || export {exports}; exec "$@"'


class Cuda(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.job = Launcher(*sys.argv[1:3])
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.temporary.name)
        (cls.folder / "text").write_text(TEXT)
        cls.profiles = {model: write_profile(cls.job, model, cls.folder / f"profile{i}.json")
                        for i, model in enumerate(MODELS)}

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def run_model(self, *arguments, device="cuda", tokens=8, **how):
        how = {name: str(value) if name.isupper() else value for name, value in how.items()}
        return self.job.run("run", LLAMA, "--profile", self.profiles[LLAMA], "-p", TEXT, "--ignore-eos", "-n", tokens,
                            "--device", device, *QUICK, *arguments, **how)

    def works(self, outcome):
        self.assertEqual((outcome.code, outcome.complaints, outcome.left), (0, [], []), outcome.err)
        return outcome

    def refused(self, status, words, outcome, out=""):
        self.assertEqual(len(outcome.complaints), 1, outcome.err)
        for word in words:
            self.assertIn(word, outcome.complaints[0])
        self.assertEqual((outcome.code, outcome.out, outcome.left), (status, out, []), outcome.err)

    def limits(self, outcome):
        """MiB that the stages may fill, by the plan."""
        return [float(mib) for mib in re.findall(r"of ([\d.]+) MiB, \d+ %", self.works(outcome).err)]

    def warnings(self, outcome):
        return [line for line in outcome.err.splitlines() if "warning" in line and "share the GPU" in line]

    # ---- Numbers ----

    def test_exact_perplexity_is_near_the_cpus(self):
        for model in MODELS:
            line = ["perplexity", model, "--profile", self.profiles[model], "-f", self.folder / "text", "--json",
                    "--activations", "f32", "--token-logprobs"]
            cpu = self.works(self.job.run(*line, "--device", "cpu")).json()
            for ranks in (0, 3):
                cuda = self.works(self.job.run(*line, "--device", "cuda", *QUICK, ranks=ranks)).json()
                self.assertEqual(cuda["tokens"], cpu["tokens"])
                self.assertTrue(math.isclose(cuda["mean_nll"], cpu["mean_nll"], rel_tol=1e-5), (model, ranks))
                for a, b in zip(cuda["token_logprobs"], cpu["token_logprobs"]):
                    self.assertAlmostEqual(a, b, places=3)

    def test_without_graphs(self):
        self.assertEqual(self.works(self.run_model("--enforce-eager")).out, self.works(self.run_model()).out)

    def test_layers_are_measured_on_the_gpu(self):
        small = "synthetic:llama:layers=2,hidden=32,ffn=32,heads=2,vocab=70,context=16,type=q8_0"
        outcome = self.works(self.job.run("run", small, "-p", "ab", "-n", "3", "--ignore-eos", "--device", "cuda",
                                          *QUICK, ranks=2))
        self.assertIn("measured on cuda Emulated GPU", outcome.err)

    # ---- Which device ----

    def test_without_a_gpu(self):
        machines = {"no-driver": "no NVIDIA driver", "old-driver": "CUDA 11.4: this build needs 13.0 or newer",
                    "no-device": "no GPU that this process may use"}
        for machine, why in machines.items():
            for ranks in (0, 2):
                self.refused(UNSUPPORTED, ["--device cuda: ", why, "--device auto takes the CPU"],
                             self.run_model(ranks=ranks, EMULATED_MACHINE=machine))
            outcome = self.works(self.run_model("--log-level", "info", device="auto", EMULATED_MACHINE=machine))
            self.assertEqual(sum("computes on the CPU" in line and why in line for line in outcome.err.splitlines()), 1)
        self.refused(UNSUPPORTED, ["no kernels for GPU 0"], self.run_model(EMULATED_MACHINE="other-gpu"))
        outcome = self.works(self.run_model(device="auto", EMULATED_MACHINE="other-gpu"))
        self.assertIn("computes on the CPU: this build has no kernels for GPU 0", outcome.err)

    def test_memory_of_gpus(self):
        free = 100 * MIB
        self.assertEqual(self.limits(self.run_model(EMULATED_MEMORY=free)), [90])
        self.assertEqual(self.limits(self.run_model("--gpu-memory-utilization", "0.5", EMULATED_MEMORY=free)), [50])
        shared = self.run_model(ranks=2, EMULATED_MEMORY=free)
        self.assertEqual(self.limits(shared), [45, 45])
        self.assertEqual(len(self.warnings(shared)), 1, shared.err)
        self.assertIn("2 ranks share the GPU at ffff:00:00.0", shared.err)
        apart = self.run_model(ranks=2, EMULATED_MEMORY=free, EMULATED_GPUS=2)
        self.assertEqual(self.limits(apart), [86.4, 86.4])  # of what NCCL left
        self.assertEqual(self.warnings(apart), [])
        self.refused(NO_MEMORY, ["embedding alone needs", "more than any stage's limit of 922 KiB"],
                     self.run_model(ranks=2, EMULATED_MEMORY=2 * MIB))
        self.refused(NO_MEMORY, ["short by", "MiB (", "bytes) per stage would do, the limit is 2.96 MiB, or 4 stages"],
                     self.run_model(EMULATED_MEMORY=3450000))

    def test_cpu_and_gpu_together(self):
        held = []
        for cpu in (0, 1):  # whichever of them plans
            outcome = self.run_model(device="auto", ranks=2, EMULATED_MEMORY=100 * MIB,
                                     shell=only(cpu, EMULATED_MACHINE="no-device"))
            self.assertEqual(self.limits(outcome), [90])  # the machine's is in GiB
            self.assertEqual(self.warnings(outcome), [])
            held.append(re.findall(r"([\d.]+ \w+) of [\d.]+ \w+, \d+ %", outcome.err))
        self.assertEqual((len(held[0]), held[0]), (2, held[1]))

    # ---- A GPU that fails ----

    def test_a_gpu_lost_while_it_runs(self):
        """One line, no hang, and no token that was computed from what the GPU never did."""
        good = self.works(self.run_model(tokens=80)).out
        load, measure, generate = 30, 200, 800  # what it does after so much work
        for rank, ranks, gpus, work in ((0, 0, 1, generate), (0, 2, 1, load), (1, 2, 1, measure), (0, 3, 3, measure),
                                        (1, 3, 3, generate), (2, 3, 3, load), (2, 3, 3, generate)):
            with self.subTest(rank=rank, ranks=ranks, gpus=gpus, work=work):
                outcome = self.run_model(tokens=80, ranks=ranks, limit=60, EMULATED_GPUS=gpus,
                                         shell=only(rank, EMULATED_LOST=work))
                self.assertTrue(good.startswith(outcome.out.rstrip("\n")), (good, outcome.out))
                self.refused(INTERNAL, [f"rank {rank} ", "cuda Emulated GPU failed in"], outcome, outcome.out)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
