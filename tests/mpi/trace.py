#!/usr/bin/env python3
"""The file of --trace: trace.py PROGRAM MPIRUN

Every step once on every stage, slices that do not overlap, arrows that pair up and lead on, counters that return to
where they began. Where Perfetto's trace processor is here (perfetto_query.py), it opens the file.
"""
import json
import sys
import tempfile
import unittest
from pathlib import Path

from job import Launcher
from perfetto_query import Missing, ask

MODEL = "synthetic:llama:layers=4,hidden=64,ffn=96,heads=4,kv_heads=2,vocab=300,context=512,type=q4_0"
P, G = 40, 12
BENCH = ["bench", MODEL, "--prompt-tokens", P, "--output-tokens", G, "--concurrency", 4, "--num-prompts", 12,
         "--threads", 1, "--cache", "-"]
RANKS = 3


def by_kind(events, kind):
    return [event for event in events if event["ph"] == kind]


class Trace(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = str(Path(cls.folder.name) / "trace.json")
        outcome = JOB.run(*BENCH, "--trace", cls.path, ranks=RANKS)
        assert outcome.code == 0, outcome.err
        cls.events = json.loads(Path(cls.path).read_text())["traceEvents"]
        cls.tracks = [[e for e in by_kind(cls.events, "X") if e["tid"] == s] for s in range(RANKS)]

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_slices(self):
        """A track per stage; on each every step, in order, one after the other, with all rows of the load."""
        steps = [slice["args"]["step"] for slice in self.tracks[0]]
        self.assertEqual(steps, list(range(len(steps))))
        for track in self.tracks:
            self.assertEqual([slice["args"]["step"] for slice in track], steps)
            self.assertEqual([slice["args"] for slice in track], [slice["args"] for slice in self.tracks[0]])
            self.assertEqual(sum(slice["args"]["rows"] for slice in track), 12 * (P + G - 1))
            alone = sum(slice["args"]["decode_rows"] for slice in track) - 12 * (G - 1)
            self.assertIn(alone, range(12 + 1))  # a prompt's last row may come by itself, too
            self.assertEqual(max(slice["args"]["context"] for slice in track), P + G - 1)
            for before, after in zip(track, track[1:]):
                self.assertLessEqual(before["ts"] + before["dur"], after["ts"] + 1e-3)
        for slice in by_kind(self.events, "X"):
            self.assertGreaterEqual(slice["ts"], 0)
            self.assertGreater(slice["dur"], 0)
            self.assertEqual(slice["args"]["rows"], slice["args"]["prompt_rows"] + slice["args"]["decode_rows"])

    def test_arrows(self):
        """One for each step and link, from within its slice to the beginning of the next stage's slice."""
        starts = {event["id"]: event for event in by_kind(self.events, "s")}
        ends = {event["id"]: event for event in by_kind(self.events, "f")}
        self.assertEqual(set(starts), set(ends))
        self.assertEqual(len(starts), len(by_kind(self.events, "s")))
        self.assertEqual(len(starts), (RANKS - 1) * len(self.tracks[0]))
        for id, start in starts.items():
            end = ends[id]
            self.assertEqual(end["tid"], start["tid"] + 1)
            self.assertLess(start["ts"], end["ts"])
            step = id // RANKS
            slice, next_slice = self.tracks[start["tid"]][step], self.tracks[end["tid"]][step]
            self.assertTrue(slice["ts"] <= start["ts"] <= slice["ts"] + slice["dur"])
            self.assertEqual(end["ts"], next_slice["ts"])

    def test_replicas(self):
        """A process for each, with tracks and arrows of its own; together they have done all of it."""
        path = str(Path(self.folder.name) / "replicas.json")
        outcome = JOB.run(*BENCH, "--dp", 2, "--trace", path, ranks=4)
        self.assertEqual(outcome.code, 0, outcome.err)
        events = json.loads(Path(path).read_text())["traceEvents"]
        names = {event["pid"]: event["args"]["name"] for event in by_kind(events, "M") if event["name"] == "process_name"}
        self.assertEqual(names, {0: "replica 0", 1: "replica 1"})
        for stage in range(2):
            self.assertEqual(sum(slice["args"]["rows"] for slice in by_kind(events, "X") if slice["tid"] == stage),
                             12 * (P + G - 1))
        starts = {event["id"]: event for event in by_kind(events, "s")}
        ends = {event["id"]: event for event in by_kind(events, "f")}
        self.assertEqual(len(starts), len(by_kind(events, "X")) // 2)
        self.assertEqual({id: (start["pid"], start["tid"] + 1) for id, start in starts.items()},
                         {id: (end["pid"], end["tid"]) for id, end in ends.items()})

    def test_counters(self):
        requests = [event["args"] for event in by_kind(self.events, "C") if event["name"] == "requests"]
        blocks = [event["args"]["blocks"] for event in by_kind(self.events, "C") if event["name"] == "free KV"]
        self.assertEqual(len(requests), len(blocks))
        self.assertGreater(len(requests), len(self.tracks[0]))
        self.assertEqual(max(sample["running"] for sample in requests), 4)
        self.assertEqual(requests[-1], {"waiting": 0, "running": 0})
        self.assertEqual(blocks[-1], max(blocks))
        self.assertLess(min(blocks), max(blocks))

    def test_of_run(self):
        path = str(Path(self.folder.name) / "run.json")
        outcome = JOB.run("run", MODEL, "-p", "x", "-n", 5, "--ignore-eos", "--cache", "-", "--trace", path)
        self.assertEqual(outcome.code, 0, outcome.err)
        events = json.loads(Path(path).read_text())["traceEvents"]
        self.assertEqual([e["name"] for e in by_kind(events, "X")][1:], ["decode"] * 4)
        self.assertEqual(by_kind(events, "s"), [])

    def test_unwritable(self):
        outcome = JOB.run("run", MODEL, "-p", "x", "--trace", "/nowhere/trace", ranks=2)
        self.assertEqual((outcome.code, len(outcome.complaints)), (6, 1), outcome.err)

    def test_perfetto_opens_it(self):
        try:
            tracks, flows, errors = ask(
                self.path,
                "select t.name as track, count(*) as slices from slice s join thread_track r on s.track_id = r.id "
                "join thread t using (utid) group by t.name order by t.name",
                "select count(*) as n from flow",
                "select name, value from stats where severity in ('error', 'data_loss') and value > 0")
        except Missing as problem:
            self.skipTest(f"no perfetto: {problem}")
        self.assertEqual(tracks, [(f"stage {s}", len(self.tracks[s])) for s in range(RANKS)])
        self.assertEqual(flows, [((RANKS - 1) * len(self.tracks[0]),)])
        self.assertEqual(errors, [])


if __name__ == "__main__":
    JOB = Launcher(*sys.argv[1:3])
    unittest.main(argv=[sys.argv[0], "-v"])
