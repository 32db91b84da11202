#!/usr/bin/env python3
"""The program as a person meets it: check_cli.py PROGRAM MPIRUN

What comes before any model runs: help, version, inspect, wrong usage and bad files. Every failure must be exactly one
line that starts with `penstock:`, with the exit status of its kind, from however many ranks.
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
from gguf_file import model as tiny_model  # noqa: E402

USAGE, BAD_INPUT, UNSUPPORTED, IO = 2, 3, 4, 6
SYNTHETIC = "synthetic:llama:layers=4,hidden=256,ffn=512/512/1024/512,heads=4,kv_heads=2,vocab=1000,type=q4_0"
MODEL = os.environ.get("PENSTOCK_TEST_MODEL")
# Where MPI_Init cannot succeed: no such transport exists. What is not meant to start MPI does not notice.
NO_MPI = {"OMPI_MCA_btl": "none-such", "OMPI_MCA_pml": "none-such"}


def run(*arguments, ranks=0, **environment):
    launcher = [MPIRUN, "-np", str(ranks)] if ranks else []
    return subprocess.run([*launcher, PROGRAM, *arguments], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})


class Program(unittest.TestCase):
    def refused(self, status, contains, *arguments, ranks=0):
        result = run(*arguments, ranks=ranks)
        ours = [line for line in result.stderr.splitlines() if line.startswith("penstock:")]
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(len(ours), 1, result.stderr)
        if not ranks:
            self.assertEqual(result.stderr.splitlines(), ours)
        self.assertIn(contains, ours[0])
        self.assertEqual(result.stdout, "")

    def inspected(self, model):
        result = run("inspect", model, "--json", **NO_MPI)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_help_and_version(self):
        for arguments in (["--help"], ["--version"], ["--completion", "bash"], ["run", "--help"], ["plan", "-h"]):
            result = run(*arguments, **NO_MPI)
            self.assertEqual((result.returncode, result.stderr), (0, ""), arguments)
            self.assertIn("penstock", result.stdout)
        self.assertIn("MPI:", run("--version").stdout)

    def test_help_is_printed_once(self):
        self.assertEqual(run("--help", ranks=2).stdout.count("Usage:"), 1)

    def test_wrong_usage(self):
        self.refused(USAGE, "no command")
        self.refused(USAGE, "did you mean inspect?", "inspekt", "m")
        self.refused(USAGE, "did you mean --threads?", "run", "m", "-p", "x", "--thread", "2")
        self.refused(USAGE, "-n: 'many'", "run", "m", "-p", "x", "-n", "many")

    def test_wrong_usage_on_two_ranks(self):
        self.refused(USAGE, "did you mean run?", "rnu", ranks=2)

    def test_inspect_synthetic(self):
        whole = self.inspected(SYNTHETIC)
        units = whole["units"]
        self.assertEqual([unit["name"] for unit in units], ["embedding", *(f"block {i}" for i in range(4)), "head"])
        for unit in units:
            self.assertEqual(unit["weight_bytes"], sum(tensor["bytes"] for tensor in unit["tensors"]))
        self.assertEqual(whole["weight_bytes"], sum(unit["weight_bytes"] for unit in units))
        # q4_0 is 18 bytes for 32 values; only block 2 is wider, by 512 rows or columns of three matrices.
        self.assertEqual(units[3]["weight_bytes"] - units[1]["weight_bytes"], 3 * 512 * 256 // 32 * 18)
        self.assertEqual(units[1]["kv_bytes_per_token"], 2 * 2 * 64 * 2)
        self.assertIn("block 2: ", run("inspect", SYNTHETIC).stdout)

    @unittest.skipUnless(MODEL, "PENSTOCK_TEST_MODEL is not set")
    def test_inspect_file(self):
        whole = self.inspected(MODEL)
        self.assertEqual(len(whole["units"]), 32)
        self.assertEqual(whole["architecture"], "llama")
        self.assertEqual(whole["metadata"]["llama.block_count"], "30")
        self.assertEqual(whole["files"], 1)
        self.assertLess(whole["weight_bytes"], whole["file_bytes"])
        tied = whole["units"][0]["tied_bytes"]
        self.assertEqual(tied, whole["units"][-1]["tied_bytes"])
        self.assertEqual(whole["weight_bytes"], sum(unit["weight_bytes"] for unit in whole["units"]) - tied)

    def test_bad_files(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            self.refused(IO, "model.gguf", "inspect", str(file))
            file.write_bytes(b"GGUF")
            self.refused(BAD_INPUT, "model.gguf", "inspect", str(file))
            file.write_text("This is not a model.\n" * 100)
            self.refused(BAD_INPUT, "model.gguf", "inspect", str(file))
        self.refused(UNSUPPORTED, "martian", "inspect", "synthetic:martian:layers=2")

    @unittest.skipUnless(MODEL, "PENSTOCK_TEST_MODEL is not set")
    def test_truncated_file(self):
        data = Path(MODEL).read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cut.gguf"
            for length in (23, 5000):
                file.write_bytes(data[:length])
                self.refused(BAD_INPUT, "cut.gguf", "inspect", str(file))
            for length in (len(data) // 2, len(data) - 1):  # the header is there
                file.write_bytes(data[:length])
                result = run("inspect", str(file))
                self.assertEqual(result.returncode, 0)
                self.assertIn("cut.gguf is cut short", result.stderr)
                self.refused(BAD_INPUT, f"{len(data) - length} are missing", "run", str(file), "-p", "x")

    @unittest.skipIf(len(os.sched_getaffinity(0)) < 2, "two cores are needed")
    def test_plan_on_two_numa_nodes(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            file.write_bytes(tiny_model())
            for topology, advised in (("numa:2 core:1 pu:1", True), ("numa:1 core:2 pu:1", False)):
                line = ["plan", str(file), "--device", "cpu", "--cache", "-", "--json"]
                result = run(*line, HWLOC_SYNTHETIC=topology, **NO_MPI)
                self.assertEqual(result.returncode, 0, result.stderr)
                notes = " ".join(json.loads(result.stdout)["notes"])
                self.assertEqual("mpirun -np 2 --map-by numa" in notes, advised, notes)

    def test_full_disk(self):
        with open("/dev/full", "w") as full:
            for arguments in (["--help"], ["inspect", SYNTHETIC], ["inspect", SYNTHETIC, "--json"]):
                result = subprocess.run([PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
                self.assertEqual(result.returncode, IO)
                self.assertEqual(result.stderr, "penstock: standard output cannot be written\n")


if __name__ == "__main__":
    PROGRAM, MPIRUN = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1])
