#!/usr/bin/env python3
"""What sampling options do to a run: sampling.py PROGRAM MPIRUN [--model FILE]

Each option against what it says, from the outside: from the ids and log-probabilities that a run reports, and alike on
one rank and on three. Without a model the weights are random, and stop strings are looked for in the text of ids.
"""
import functools
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from job import Launcher, write_profile

# 20 ids: the 20 best log-probabilities are all of them.
SYNTHETIC = "synthetic:llama:layers=2,hidden=64,ffn=96,heads=4,kv_heads=2,vocab=20,context=512,type=f32"
LARGER = SYNTHETIC.replace("vocab=20", "vocab=300")
PROMPT = "The capital of France is"
TOLERANCE = 1e-4  # two tokens nearer than this may come in any order


class Job(unittest.TestCase):
    model = None

    @classmethod
    def setUpClass(cls):
        cls.job = Launcher(*sys.argv[1:3])
        cls.pool = ThreadPoolExecutor(2)
        cls.temporary = tempfile.TemporaryDirectory()
        cls.model_profile = Path(cls.temporary.name) / "model.json"
        cls.small_profile = write_profile(cls.job, SYNTHETIC, Path(cls.temporary.name) / "small.json")
        if cls.model:
            write_profile(cls.job, cls.model, cls.model_profile)

    @classmethod
    def tearDownClass(cls):
        cls.pool.shutdown()
        cls.temporary.cleanup()

    @classmethod
    @functools.cache
    def run_model(cls, *options, model=None, ranks=0):
        model = model or cls.model or SYNTHETIC
        profile = cls.model_profile if model == cls.model else cls.small_profile
        outcome = cls.job.run("run", model, "-p", PROMPT, "--json", "--profile", profile, "--workload", "8:8",
                              "--threads", "1", *options, ranks=ranks)
        if outcome.complaints:
            raise AssertionError(outcome.complaints)
        result = outcome.json()
        del result["timings"]
        return result

    def alike(self, *options, **how):
        """The run's result, which is the same on three ranks."""
        three = self.pool.submit(self.run_model, *options, ranks=3, **how)
        one = self.run_model(*options, **how)
        self.assertEqual(one, three.result())
        return one


class Texts(Job):
    """With random weights, or with the model."""

    def test_forced_token(self):
        result = self.alike("-n", 5, "--logit-bias", "13:100", "--ignore-eos", "--logprobs", 1)
        self.assertEqual(result["output_ids"], [13] * 5)
        # What is reported is the model's own opinion.
        self.assertTrue(any(best[0][0] != 13 for best in result["logprobs"]))

    def test_stop_strings(self):
        whole = self.run_model("-n", 30, "--ignore-eos")
        text = whole["text"]
        self.assertGreater(len(text), 20)
        for start, length in ((0, 2), (3, 5), (7, 1), (9, 11)):
            stop = text[start:start + length]
            result = self.alike("-n", 30, "--ignore-eos", f"--stop={stop}", "--stop", "never said")
            self.assertEqual(result["text"], text[:text.index(stop)])
            self.assertEqual(result["finish_reason"], "stop")
            count = len(result["output_ids"])
            self.assertEqual(result["output_ids"], whole["output_ids"][:count])
        # What only begins like a stop string comes out in the end.
        result = self.run_model("-n", 30, "--ignore-eos", f"--stop={text[-3:]}\u20ac")
        self.assertEqual((result["text"], result["finish_reason"]), (text, "length"))

    def test_streamed_text_ends_before_the_stop_string(self):
        whole = self.run_model("-n", 12, "--ignore-eos")["text"]
        outcome = self.job.run("run", self.model or SYNTHETIC, "-p", PROMPT, "-n", 12, "--ignore-eos", "--profile",
                               self.model_profile if self.model else self.small_profile, f"--stop={whole[6:10]}")
        self.assertEqual(outcome.out, whole[:whole.index(whole[6:10])] + "\n")

    def test_min_tokens_and_stop_strings(self):
        whole = self.run_model("-n", 30, "--ignore-eos")
        result = self.alike("-n", 30, "--ignore-eos", f"--stop={whole['text'][1:3]}", "--min-tokens", 12)
        self.assertGreaterEqual(len(result["output_ids"]), 12)
        self.assertTrue(result["text"].startswith(whole["text"][:6]))

    def test_min_tokens_and_the_end_of_text(self):
        if not self.model:
            self.skipTest("random weights have no end of text")
        short = self.run_model("-n", 60)
        self.assertEqual(short["finish_reason"], "stop")
        count = len(short["output_ids"])
        result = self.alike("-n", 60, "--min-tokens", count + 3)
        self.assertGreaterEqual(len(result["output_ids"]), count + 3)
        self.assertEqual(result["output_ids"][:count], short["output_ids"])
        # Where the end is not in sight, asking for fewer changes nothing.
        self.assertEqual(self.run_model("-n", 60, "--min-tokens", count)["output_ids"], short["output_ids"])

    def test_prompt_logprobs(self):
        result = self.alike("-n", 3, "--prompt-logprobs", 2, "--logprobs", 1)
        plain = self.run_model("-n", 3)
        self.assertEqual(result["output_ids"], plain["output_ids"])
        ids, lists = result["prompt_ids"], result["prompt_logprobs"]
        self.assertEqual(len(lists), len(ids))
        self.assertIsNone(lists[0])
        self.assertTrue(all(len(best) == 1 for best in result["logprobs"]))
        text = Path(self.temporary.name) / "text"
        text.write_text(PROMPT)
        scored = self.job.run("perplexity", self.model or SYNTHETIC, "-f", text, "--json", "--token-logprobs", "--profile",
                              self.model_profile if self.model else self.small_profile).json()["token_logprobs"]
        for token, best, logprob in zip(ids[1:], lists[1:], scored):
            self.assertIn(len(best), (2, 3))
            self.assertGreaterEqual(best[0][1], best[1][1])
            self.assertEqual(dict(best)[token], logprob)

    def test_choices(self):
        """The first is what one run says; each has its own draws, text and end, on whatever ranks and in few slots."""
        options = ["-n", 24, "--temperature", 1, "--seed", 5, "--ignore-eos", "--logprobs", 2, "--presence-penalty", 0.1,
                   "--prompt-logprobs", 1]
        one = self.run_model(*options)
        several = self.alike(*options, "--choices", 5)
        choices = several["choices"]
        self.assertEqual({key: value for key, value in several.items() if key != "choices"}, one)
        self.assertEqual([choice["index"] for choice in choices], list(range(5)))
        first = {key: one[key] for key in ("output_ids", "text", "finish_reason", "logprobs")}
        self.assertEqual(choices[0], {"index": 0, **first})
        self.assertEqual(len({tuple(choice["output_ids"]) for choice in choices}), 5)
        for choice in choices:
            self.assertEqual((len(choice["output_ids"]), len(choice["logprobs"])), (24, 24))
        for slots in (() if self.model else (1, 2)):
            self.assertEqual(self.run_model(*options, "--choices", 5, "--max-num-seqs", slots), several)
        # The stop string of one: the others go on.
        stop = choices[3]["text"][8:14]
        stopped = self.run_model(*options, "--choices", 5, f"--stop={stop}")["choices"]
        self.assertEqual(stopped[3]["finish_reason"], "stop")
        for before, after in zip(choices, stopped):
            self.assertEqual(after["text"], before["text"].partition(stop)[0])

    def test_seeds(self):
        runs = [self.alike("-n", 20, "--temperature", 1, "--ignore-eos", "--presence-penalty", 0.1, "--seed", seed)
                for seed in (1, 2)]
        self.assertNotEqual(runs[0]["output_ids"], runs[1]["output_ids"])


class Rules(Job):
    """Where all log-probabilities are known."""

    def check_greedy(self, options, score):
        """Every token is the best of what `score(id, logprob, prompt, output so far)` makes of all tokens."""
        result = self.alike("-n", 60, "--logprobs", 20, *options, "--ignore-eos", model=SYNTHETIC)
        plain = self.run_model("-n", 60, "--ignore-eos", model=SYNTHETIC)
        self.assertNotEqual(result["output_ids"], plain["output_ids"])
        for i, (token, best) in enumerate(zip(result["output_ids"], result["logprobs"])):
            self.assertEqual(len(best), 20)
            made = {id: score(id, logprob, result["prompt_ids"], result["output_ids"][:i]) for id, logprob in best}
            self.assertGreater(made[token], max(made.values()) - TOLERANCE, f"token {i}")
        return result

    def test_presence_and_frequency_penalties(self):
        for presence, frequency in ((1.5, 0), (0, 0.75), (-1, 0.5)):
            self.check_greedy(["--presence-penalty", presence, "--frequency-penalty", frequency],
                              lambda id, logprob, _, output: logprob - presence * (id in output)
                              - frequency * output.count(id))

    def test_logit_bias(self):
        bias = {3: 1.25, 7: -100, 11: 0.5}
        listed = ",".join(f"{id}:{value}" for id, value in bias.items())
        result = self.check_greedy(["--logit-bias", listed, "--presence-penalty", "0.1"],
                                   lambda id, logprob, _, output: logprob + bias.get(id, 0) - 0.1 * (id in output))
        self.assertNotIn(7, result["output_ids"])

    def test_repetition_penalty_over_prompt_and_output(self):
        """So strong a penalty leaves nothing of a logit, or makes it very low: what was said is never said again."""
        result = self.alike("-n", 60, "--repetition-penalty", 100, "--ignore-eos", model=LARGER)
        plain = self.run_model("-n", 60, "--ignore-eos", model=LARGER)["output_ids"]
        self.assertEqual(len(set(result["output_ids"])), 60)
        self.assertFalse(set(result["output_ids"]) & set(result["prompt_ids"]))
        self.assertLess(len(set(plain)), 60)

    def test_choices_are_shown_one_after_the_other(self):
        options = ["run", SYNTHETIC, "-p", PROMPT, "-n", 12, "--temperature", 1, "--ignore-eos", "--choices", 3,
                   "--profile", self.small_profile]
        texts = [choice["text"] for choice in self.job.run(*options, "--json").json()["choices"]]
        shown = "\n".join(f"[choice {i} of 3]\n{text}\n" for i, text in enumerate(texts, 1))
        for ranks in (0, 2):
            self.assertEqual(self.job.run(*options, ranks=ranks).out, shown)

    def test_bad_values(self):
        for words, options in (("--logit-bias: token 4000000 does not exist", ["--logit-bias", "4000000:1"]),
                               ("is not UTF-8", [b"--stop=\xff".decode(errors="surrogateescape")]),
                               ("--choices: '0' is not a whole number from 1 to 1024", ["--choices", 0]),
                               ("--min-tokens 9 is more than --max-tokens 8", ["--min-tokens", 9, "-n", 8])):
            for ranks in (0, 2):
                outcome = self.job.run("run", SYNTHETIC, "-p", "x", "--profile", self.small_profile, *options, ranks=ranks)
                self.assertEqual((outcome.code, outcome.out, len(outcome.complaints)), (2, "", 1), outcome.err)
                self.assertIn(words, outcome.complaints[0])


if __name__ == "__main__":
    if "--model" in sys.argv:
        Job.model = sys.argv[sys.argv.index("--model") + 1]
    unittest.main(argv=sys.argv[:1], defaultTest=["Texts"] if Job.model else ["Rules", "Texts"])
