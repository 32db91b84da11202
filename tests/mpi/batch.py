#!/usr/bin/env python3
"""penstock batch: batch.py PROGRAM MPIRUN [--model FILE]

Answers are those of `penstock run`, alone and on two ranks; what is wrong with a line is said in its place; and a batch
that is killed again and again, any process of it at any moment, or that meets a full disk, goes on by the same command
until every request is in the output exactly once, as if nothing had happened. With a model, only what depends on one.
"""
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
from pathlib import Path

from job import GONE_S, Launcher, processes_with, write_profile

SYNTHETIC = "synthetic:llama:layers=2,hidden=64,ffn=96,heads=4,kv_heads=2,vocab=300,context=512,type=f32"
USAGE, IO, INTERRUPTED = 2, 6, 8
KILLS = 20
PROMPTS = ["The capital of France is", "Once upon a time", "1 2 3 4 5 6 7", "x", "A list of colours:\n"]


def line(number, **body):
    return json.dumps({"custom_id": f"request {number}", "method": "POST", "url": "/v1/completions",
                       "body": {"model": "m", "prompt": PROMPTS[number % len(PROMPTS)], **body}})


def answers(path):
    """custom_id → answer, without what says when it was made."""
    found = {}
    for text in Path(path).read_text().splitlines():
        answer = json.loads(text)
        if answer["response"]:
            del answer["response"]["body"]["created"]
        key = answer["custom_id"] if answer["custom_id"] is not None else answer["error"]["line"]
        if key in found:
            raise AssertionError(f"{key} is there twice")
        found[key] = answer
    return found


class Batch(unittest.TestCase):
    model = None

    @classmethod
    def setUpClass(cls):
        cls.job = Launcher(*sys.argv[1:3])

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.input, self.output = self.folder / "in.jsonl", self.folder / "out.jsonl"
        self.journal = Path(f"{self.output}.journal")
        self.name = self.model or SYNTHETIC
        self.profile = write_profile(self.job, self.name, self.folder / "profile.json")

    def arguments(self, *more):
        return ["batch", self.name, "-i", self.input, "-o", self.output, "--profile", self.profile, "--workload", "8:8",
                "--threads", 1, "--max-model-len", 256, *more]

    def batch(self, *more, ranks=0, code=0, **how):
        outcome = self.job.run(*self.arguments(*more), ranks=ranks, limit=60, **how)
        self.assertEqual((outcome.code, outcome.left), (code, []), outcome.err)
        return outcome

    def run_alone(self, *options):
        return self.job.run("run", self.name, "--json", "--profile", self.profile, "--workload", "8:8", "--threads", 1,
                            *options).json()

    def test_answers_are_those_of_run(self):
        bodies = [{"max_tokens": 12, "temperature": 0}, {"max_tokens": 9, "seed": 5, "n": 3, "logprobs": 2, "top_p": 0.9},
                  {"max_tokens": 20, "seed": 1, "presence_penalty": 1, "frequency_penalty": 0.5, "temperature": 0.8},
                  {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "logit_bias": {"13": 100}},
                  {"max_tokens": 30, "temperature": 0, "repetition_penalty": 1.2, "min_tokens": 4}]
        self.input.write_text("".join(line(i, **body) + "\n" for i, body in enumerate(bodies)))
        self.batch()
        one = answers(self.output)
        for replicas in (1, 2):
            self.output.unlink()
            self.batch("--dp", replicas, ranks=2)
            self.assertEqual(answers(self.output), one)
        self.assertEqual(len(one), len(bodies))
        for i, body in enumerate(bodies):
            options = ["-p", PROMPTS[i], "-n", body["max_tokens"], "--temperature", body.get("temperature", 1)]
            for name in ("seed", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens",
                         "logprobs"):
                if name in body:
                    options += [f"--{name.replace('_', '-')}", body[name]]
            options += ["--ignore-eos"] * body.get("ignore_eos", False)
            options += ["--logit-bias", "13:100"] * ("logit_bias" in body)
            expected = self.run_alone(*options, "--choices", body.get("n", 1))
            response = one[f"request {i}"]["response"]
            self.assertEqual(response["status_code"], 200)
            choices = expected.get("choices", [expected])
            got = response["body"]["choices"]
            self.assertEqual([(c["text"], c["finish_reason"]) for c in got],
                             [(c["text"], c["finish_reason"]) for c in choices])
            self.assertEqual(response["body"]["usage"]["completion_tokens"],
                             sum(len(c["output_ids"]) for c in choices))
            if "logprobs" in body:
                best = [max(top.values()) for top in got[0]["logprobs"]["top_logprobs"]]
                self.assertEqual(best, [top[0][1] for top in choices[0]["logprobs"]])

    def test_forms_of_prompts(self):
        """Ids, several prompts, the prompt echoed and scored, stop strings."""
        text = self.run_alone("-p", PROMPTS[0], "-n", 16, "--ignore-eos", "--prompt-logprobs", 1)
        ids, whole = text["prompt_ids"], text["text"]
        greedy = {"temperature": 0, "ignore_eos": True, "max_tokens": 16}
        self.input.write_text("\n".join([
            line(0, **greedy), line(1, **{**greedy, "prompt": ids}), line(2, **{**greedy, "prompt": [ids, ids[:3]]}),
            line(3, **{**greedy, "prompt": [PROMPTS[0], PROMPTS[1]], "n": 2, "echo": True}),
            line(4, **{**greedy, "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}),
            line(5, **{**greedy, "prompt": ids, "stop": [whole[5:9], "never said"], "logprobs": 0}),
        ]))
        self.batch(ranks=2)
        bodies = {key: answer["response"]["body"] for key, answer in answers(self.output).items()}
        texts = [[c["text"] for c in bodies[f"request {i}"]["choices"]] for i in range(6)]
        self.assertEqual(texts[0], [whole])
        self.assertEqual(texts[1], [whole])
        self.assertEqual((texts[2][0], len(texts[2])), (whole, 2))
        self.assertEqual([c["index"] for c in bodies["request 3"]["choices"]], [0, 1, 2, 3])
        self.assertEqual(texts[3][:2], [PROMPTS[0] + whole] * 2)
        self.assertEqual(texts[3][2], texts[3][3])
        self.assertTrue(texts[3][2].startswith(PROMPTS[1]))
        scored = bodies["request 4"]["choices"][0]["logprobs"]
        self.assertEqual(len(scored["tokens"]), len(ids))
        self.assertIsNone(scored["token_logprobs"][0])
        for position in range(1, len(ids)):
            self.assertEqual(scored["token_logprobs"][position], dict(text["prompt_logprobs"][position])[ids[position]])
        self.assertEqual(bodies["request 4"]["usage"]["completion_tokens"], 0)
        stopped = bodies["request 5"]["choices"][0]
        self.assertEqual((stopped["text"], stopped["finish_reason"]), (whole[:whole.index(whole[5:9])], "stop"))
        self.assertTrue(all(offset < len(stopped["text"]) for offset in stopped["logprobs"]["text_offset"]))

    def test_lines_that_are_wrong(self):
        good = {"max_tokens": 2, "temperature": 0}
        self.input.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([
            line(1, **good), "", "nonsense", line(4, surprise=1), line(1, **good), line(6, prompt=[1, 1 << 30], **good),
            line(7, max_tokens=1000), line(8, **good).replace("/v1/", "/v1/chat/"), line(9, logit_bias={"99999999": 1}),
            line(10, **good), line(11, **good).replace("request", "\0"),
        ]).encode())
        outcome = self.batch("--json", ranks=2)
        self.assertEqual((json.loads(outcome.out)["requests"], json.loads(outcome.out)["failed"]), (10, 8))
        wrong = {}
        right = []
        for text in self.output.read_text().splitlines():
            answer = json.loads(text)
            if answer["error"]:
                wrong[answer["error"]["line"]] = (answer["custom_id"], answer["error"]["code"], answer["error"]["message"])
            else:
                right.append(answer["custom_id"])
        self.assertEqual(sorted(right), ["request 1", "request 10"])
        says = {3: (None, "invalid_json", "not a JSON"), 4: ("request 4", "invalid_request", "'surprise'"),
                5: ("request 1", "invalid_request", "custom_id"), 6: ("request 6", "invalid_request", "vocabulary"),
                7: ("request 7", "invalid_request", "longest sequence"), 8: ("request 8", "unsupported", "chat templates"),
                9: ("request 9", "invalid_request", "vocabulary"), 11: (None, "invalid_json", "not a JSON")}
        self.assertEqual(wrong.keys(), says.keys())
        for number, (custom_id, code, word) in says.items():
            self.assertEqual(wrong[number][:2], (custom_id, code))
            self.assertIn(word, wrong[number][2])

    def test_what_is_refused(self):
        self.input.write_text(line(1, max_tokens=1))
        def refused(word, code=USAGE, **how):
            outcome = self.batch(code=code, **how)
            self.assertEqual(len(outcome.complaints), 1, outcome.err)
            self.assertIn(word, outcome.complaints[0])
        self.output.write_text("mine\n")
        refused("exists", ranks=2)
        self.assertEqual(self.output.read_text(), "mine\n")
        self.assertFalse(self.journal.exists())
        self.output.unlink()
        self.journal.write_text("mine too\n")
        refused("no journal of penstock")
        self.assertEqual(self.journal.read_text(), "mine too\n")
        self.journal.unlink()
        self.input.unlink()
        refused("No such file", code=IO)
        self.input.write_text("")
        self.batch()
        self.assertEqual(self.output.read_text(), "")

    def requests(self, count):
        self.input.write_text("".join(
            line(i, max_tokens=20 + 37 * i % 150, n=1 + i % 2, logprobs=i % 3, ignore_eos=True) + "\n"
            for i in range(count)) + "nonsense\n" + line(0) + "\n")
        return count + 2

    def finish(self, expected, **how):
        """Goes on until it is done, and compares with what an undisturbed run says."""
        if self.journal.exists() or not self.output.exists():
            self.batch(**how)
        self.assertFalse(self.journal.exists())
        lines = self.output.read_text().splitlines()
        self.assertEqual(sorted(json.loads(text)["id"] for text in lines), expected["ids"])
        self.assertEqual(self.contents(), expected["contents"])

    def contents(self):
        found = [json.loads(text) for text in self.output.read_text().splitlines()]
        for answer in found:
            if answer["response"]:
                del answer["response"]["body"]["created"]
        return sorted(json.dumps(answer) for answer in found)

    def undisturbed(self, *more, **how):
        self.batch(*more, **how)
        self.expected = {"ids": sorted(json.loads(text)["id"] for text in self.output.read_text().splitlines()),
                         "contents": self.contents()}
        self.assertEqual(len(set(self.expected["ids"])), len(self.expected["ids"]))
        self.output.unlink()

    def start_marked(self, *more):
        """A job of two ranks and mpirun, in a process group of its own."""
        mark = uuid.uuid4().hex
        process = self.job.start(*self.arguments(*more), ranks=2, mark=mark, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        return process, mark

    def kill_some(self, process, mark, draw):
        """SIGKILL to mpirun, a rank, or all of them."""
        found = processes_with(mark)
        ranks = [pid for pid in found if pid != process.pid]
        whom = draw.choice(["mpirun", "rank", "rank", "all"])
        for pid in found if whom == "all" else [process.pid] if whom == "mpirun" or not ranks else [draw.choice(ranks)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def test_killed_again_and_again(self):
        lines = self.requests(60)
        self.undisturbed(ranks=2)
        self.assertEqual(len(self.expected["ids"]), lines)
        draw = random.Random(6)
        kills = progress = 0
        marks = []
        while kills < KILLS:
            process, mark = self.start_marked("--dp", draw.choice([1, 2]))  # which changes nothing
            marks.append(mark)
            before = self.output.stat().st_size if self.output.exists() else 0
            # Some die while they start, most a moment after they have written something.
            patience = time.monotonic() + (draw.uniform(0, 0.5) if draw.random() < 0.25 else 20)
            while time.monotonic() < patience and process.poll() is None:
                if self.output.exists() and self.output.stat().st_size > before:
                    time.sleep(draw.uniform(0, 0.03))
                    break
                time.sleep(0.002)
            if process.poll() is None:
                self.kill_some(process, mark, draw)
                kills += 1
            _, err = process.communicate()
            # Done in between: once more from the beginning.
            if process.returncode == 0 or (self.output.exists() and not self.journal.exists()):
                self.settle(*marks)
                self.assertEqual(self.contents(), self.expected["contents"], err)
                self.output.unlink()
                continue
            progress += self.output.exists() and self.output.stat().st_size > before
        self.assertGreater(progress, KILLS // 4)
        self.settle(*marks)  # ranks that outlive mpirun may even get to the end
        self.finish(self.expected, ranks=2)

    def test_lost_replica(self):
        """Where the launcher lets the others live, they finish everything, and it is said that one was lost."""
        self.requests(300)
        self.undisturbed("--dp", 2, ranks=4)
        mark = uuid.uuid4().hex
        process = self.job.start(*self.arguments("--dp", 2, "--json"), ranks=4, mark=mark, stdin=subprocess.DEVNULL,
                                 environment={"OMPI_MCA_orte_enable_recovery": "1"}, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while not (self.output.exists() and self.output.stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.001)
        for pid in processes_with(mark):
            if b"OMPI_COMM_WORLD_RANK=3\0" in Path(f"/proc/{pid}/environ").read_bytes():
                os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        self.assertEqual(json.loads(out)["lost_replicas"], 1, err)
        self.assertIn("1 replica lost", err)
        self.settle(mark)
        self.assertEqual(self.contents(), self.expected["contents"])

    def test_told_to_stop(self):
        """SIGUSR1: what has begun is answered, the rest another time."""
        lines = self.requests(60)
        self.undisturbed(ranks=2)
        process, mark = self.start_marked("--max-num-seqs", "4")
        while process.poll() is None and not (self.output.exists() and self.output.stat().st_size > 0):
            time.sleep(0.002)
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, INTERRUPTED, err)
        said = re.findall(r"^penstock: told to stop: .* has (\d+) of (\d+) answers; .*$", err, re.MULTILINE)
        self.assertEqual(len(said), 1, err)
        answered = len(self.output.read_text().splitlines())
        self.assertEqual((int(said[0][0]), int(said[0][1])), (answered, lines))
        self.assertTrue(0 < answered < lines, answered)
        self.settle(mark)
        self.finish(self.expected, ranks=2)

    def settle(self, *marks):
        deadline = time.monotonic() + 2 * GONE_S
        while (left := [pid for mark in marks for pid in processes_with(mark)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(left, [])

    def test_full_disk(self):
        self.requests(30)
        self.undisturbed()
        size = sum(len(text) for text in self.expected["contents"])
        full = 0
        for part in (0.01, 0.3, 0.31, 0.7):
            # A limit on the sizes of files is a full disk that needs no rights.
            def limit():
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(part * size), resource.RLIM_INFINITY))
            process = self.job.start(*self.arguments(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.PIPE, preexec_fn=limit)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, IO, err)
            complaints = [text for text in err.splitlines() if text.startswith("penstock:")]
            self.assertEqual(len(complaints), 1, err)
            self.assertIn("the same command goes on", complaints[0])
            full += self.output.exists() and self.output.stat().st_size > 0
        self.assertEqual(full, 4)
        self.finish(self.expected)

    def test_full_file_system(self):
        """A real one, where we may make it."""
        mount = self.folder / "mount"
        mount.mkdir()
        def system(*line):
            return subprocess.run(line, capture_output=True).returncode
        if system("mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", mount):
            self.skipTest("nothing can be mounted")
        self.addCleanup(system, "umount", mount)
        self.requests(30)
        self.undisturbed(ranks=2)
        self.output, self.journal = mount / "out.jsonl", mount / "out.jsonl.journal"
        outcome = self.batch(ranks=2, code=IO)
        self.assertEqual(len(outcome.complaints), 1, outcome.err)
        self.assertIn("the same command goes on", outcome.complaints[0])
        self.assertGreater(self.output.stat().st_size, 1000)
        self.assertEqual(system("mount", "-o", "remount,size=10m", mount), 0)
        self.assertIn("going on", self.job.run(*self.arguments(), ranks=2).err)
        self.assertEqual(self.contents(), self.expected["contents"])
        self.assertFalse(self.journal.exists())


if __name__ == "__main__":
    tests = []
    if "--model" in sys.argv:
        Batch.model = sys.argv[sys.argv.index("--model") + 1]
        tests = ["Batch.test_answers_are_those_of_run", "Batch.test_forms_of_prompts"]
    unittest.main(argv=sys.argv[:1] + tests)
