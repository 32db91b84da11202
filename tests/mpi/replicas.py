#!/usr/bin/env python3
"""Replicas from one world: replicas.py PROGRAM MPIRUN

On simulated devices, whose times the profile says: what each replica's plan is, by what the job says.
"""
import json
import re
import sys
import tempfile
import unittest
from pathlib import Path

from job import Launcher

BLOCKS = 10


def profile(path, **more):
    """12 units of 4 ms."""
    names = ["embedding", *(f"block {i}" for i in range(BLOCKS)), "head"]
    units = [{"name": name, "time_ms": 4, "weight_bytes": 1 << 20, "kv_bytes_per_token": 64} for name in names]
    path.write_text(json.dumps({"units": units, "hidden": 64, "sim": {"vocab": 300, "context": 512}, **more}))
    return f"sim:{path}"


class Replicas(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.job = Launcher(*sys.argv[1:3])
        cls.temporary = tempfile.TemporaryDirectory()
        cls.path = Path(cls.temporary.name) / "profile.json"

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def plans(self, ranks, *arguments, **more):
        """[(who, units per stage)] as the job shows its plans."""
        outcome = self.job.run("run", "--device", profile(self.path, **more), "--time-scale", 0.1, "-p", "1 2 3", "-n",
                               4, *arguments, ranks=ranks)
        self.assertEqual((outcome.code, outcome.complaints, outcome.left), (0, [], []), outcome.err)
        self.assertRegex(outcome.out, r"^(<\d+>){4}\n")
        parts = re.split(r"^((?:replica.*|\d+ replicas of this plan):)$", outcome.err, flags=re.M)
        parts = parts[1:] if len(parts) > 1 else ["", *parts]
        return [(who.rstrip(":"), [int(n) for n in re.search(r"; units ([\d/]+)", plan)[1].split("/")])
                for who, plan in zip(parts[::2], parts[1::2])]

    def test_equal_ones_have_one_plan(self):
        self.assertEqual(self.plans(2, "--dp", 2), [("2 replicas of this plan", [12])])
        self.assertEqual(self.plans(4, "--dp", 2), [("2 replicas of this plan", [6, 6])])
        self.assertEqual(self.plans(6, "--data-parallel-size", 3, "--pipeline-parallel-size", 2),
                         [("3 replicas of this plan", [6, 6])])

    def test_one_replica_is_as_before(self):
        self.assertEqual(self.plans(0), [("", [12])])
        self.assertEqual(self.plans(2, "--dp", 1), [("", [6, 6])])

    def test_devices_of_stages(self):
        self.assertEqual(self.plans(4, "--dp", 2, devices=[{"speed": 1}, {"speed": 2}]),
                         [("2 replicas of this plan", [4, 8])])

    def test_devices_of_ranks(self):
        devices = [{"speed": speed} for speed in (1, 1, 1, 2, 1, 1)]
        self.assertEqual(self.plans(6, "--dp", 3, devices=devices),
                         [("replicas 0, 2 of 3", [6, 6]), ("replica 1 of 3", [4, 8])])

    def test_slowdowns_are_not_planned_for(self):
        self.assertEqual(self.plans(2, "--dp", 2, sim={"vocab": 300, "slowdowns": [{"replica": 1, "factor": 2}]}),
                         [("2 replicas of this plan", [12])])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
