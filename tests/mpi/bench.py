#!/usr/bin/env python3
"""What bench prints, alone and on two and three ranks: bench.py PROGRAM MPIRUN

Lengths and counts are exact, the JSON has all its fields, seeded loads are the same again, and what must add up does.
"""
import sys
import unittest

from job import Launcher

MODEL = "synthetic:llama:layers=4,hidden=64,ffn=96,heads=4,kv_heads=2,vocab=300,context=512,type=q4_0"
P, G = 40, 12
LOAD = ["bench", MODEL, "--prompt-tokens", P, "--output-tokens", G, "--threads", 1, "--cache", "-"]
STATISTICS = {"mean", "p50", "p90", "p99"}


class Bench(unittest.TestCase):
    def bench(self, *options, ranks=0):
        result = JOB.run(*LOAD, "--json", *options, ranks=ranks).json()
        self.assertEqual((result["prompt_tokens"], result["output_tokens"]), (P, G))
        self.assertEqual(len(result["plan"]["stages"]), ranks or 1)
        self.assertEqual(result["plan"]["workload"]["prompt_tokens"], P)
        # What the split is for is what the schedule makes: alone all in one; 0 is one more than there are stages.
        self.assertIn(result["plan"]["workload"]["microbatches"], (0, ranks) if ranks else (1,))
        return result["runs"]

    def check_run(self, run, ranks):
        for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"):
            self.assertEqual(set(run[name]), STATISTICS)
            self.assertLessEqual(run[name]["p50"], run[name]["p90"])
            self.assertLessEqual(run[name]["p90"], run[name]["p99"])
            self.assertGreater(run[name]["mean"], 0)
        self.assertLess(run["ttft_ms"]["p50"], run["e2el_ms"]["p50"])
        for name in ("split", "schedule", "pipeline"):
            self.assertTrue(0 < run[f"{name}_efficiency"] < 1.02, run)
        self.assertEqual(len(run["stages"]), ranks)
        for stage in run["stages"]:
            # The four states are all of the time, but for what the word of a lap's end takes to arrive, on a busy machine too.
            total = sum(stage[key] for key in ("busy_s", "wait_recv_s", "wait_send_s", "idle_s"))
            self.assertAlmostEqual(total, run["seconds"], delta=0.1 * run["seconds"] + 0.3)
        self.assertEqual(len(run["replicas"]), 1)
        for name in ("utilisation", "requests", "stolen", "busy_s", "queue_mean", "queue_most", "e2el_ms"):
            self.assertIn(name, run["replicas"][0])
        self.assertEqual((run["replicas"][0]["stolen"], run["load_balance_factor"]), (0, 1))
        self.assertGreater(run["predicted"]["decode_tokens_per_s"], 0)

    def test_closed_load(self):
        for ranks in (1, 2, 3):
            one, many = self.bench("--concurrency", "1,4", ranks=ranks)
            self.check_run(one, ranks)
            self.check_run(many, ranks)
            self.assertEqual((one["concurrency"], one["requests"], one["steady"]), (1, 8, False))
            # Every row once on every stage: the last token of an output is not fed back.
            for stage in one["stages"]:
                self.assertEqual(stage["rows"], 8 * (P + G - 1))
            self.assertEqual((many["concurrency"], many["requests"], many["steady"]), (4, 32, True))
            # From the first completion to the last admission, which is the 28th completion.
            self.assertEqual(many["replicas"][0]["requests"], 27)
            rows = many["seconds"] * (many["prompt_tokens_per_s"] + many["decode_tokens_per_s"])
            for stage in many["stages"]:
                self.assertAlmostEqual(stage["rows"], rows, delta=0.15 * rows)

    def test_phases(self):
        run, = self.bench("--concurrency", "5", "--phases", ranks=2)
        self.check_run(run, 2)
        prompts, outputs = run["phases"]["prompts"], run["phases"]["outputs"]
        for stage in prompts["stages"]:
            self.assertEqual(stage["rows"], 5 * P)
        for stage in outputs["stages"]:
            self.assertEqual(stage["rows"], 5 * (G - 1))
        self.assertAlmostEqual(run["prompt_tokens_per_s"], 5 * P / prompts["seconds"], places=3)
        self.assertAlmostEqual(run["decode_tokens_per_s"], 5 * (G - 1) / outputs["seconds"], places=3)

    def test_open_load(self):
        # 20 arrivals at 20 a second take about a second, whoever serves them; with one seed always the same.
        first, again, other = (self.bench("--concurrency", "8", "--num-prompts", "20", "--request-rate", "20",
                                          "--seed", seed, ranks=2)[0] for seed in (1, 1, 3))
        self.assertTrue(first["steady"])
        self.check_run(first, 2)
        # From the first completion to the last arrival, which the seed sets.
        self.assertAlmostEqual(first["seconds"], again["seconds"], delta=0.3)
        self.assertTrue(0.4 < first["seconds"] < 2.5, first["seconds"])
        self.assertNotAlmostEqual(first["seconds"], other["seconds"], delta=0.001)

    def test_spread_lengths(self):
        one, again, other = (self.bench("--concurrency", "4", "--num-prompts", "4", "--length-spread", spread, ranks=2)[0]
                             for spread in (0.6, 0.6, 0))
        self.check_run(one, 2)
        self.assertEqual(one["stages"][0]["rows"], again["stages"][0]["rows"])
        self.assertEqual(other["stages"][0]["rows"], 4 * (P + G - 1))
        self.assertNotEqual(one["stages"][0]["rows"], other["stages"][0]["rows"])

    def test_few_requests_have_no_steady_state(self):
        run, = self.bench("--concurrency", "8", "--num-prompts", "3")
        self.assertEqual((run["steady"], run["requests"], run["replicas"][0]["requests"]), (False, 3, 3))
        self.assertEqual(run["stages"][0]["rows"], 3 * (P + G - 1))

    def test_table(self):
        outcome = JOB.run(*LOAD, "--concurrency", "1,2", ranks=2)
        title, runs, stages = outcome.out.split("\n\n")
        self.assertIn(f"2 stages, prompts of {P} tokens, outputs of {G}", title)
        for table, firsts in ((runs, ["1", "2"]), (stages, ["1", "1", "2", "2"])):
            lines = [line.split("|")[1:-1] for line in table.splitlines()]
            self.assertEqual({len(line) for line in lines}, {len(lines[0])})
            self.assertEqual({len(line) for line in table.splitlines()}, {len(table.splitlines()[0])})
            self.assertEqual([line[0].strip() for line in lines[2:]], firsts)

    def test_too_long(self):
        outcome = JOB.run(*LOAD[:2], "--prompt-tokens", 510, "--output-tokens", 3)
        self.assertEqual((outcome.code, len(outcome.complaints)), (2, 1), outcome.err)


if __name__ == "__main__":
    JOB = Launcher(*sys.argv[1:3])
    unittest.main(argv=[sys.argv[0], "-v"])
