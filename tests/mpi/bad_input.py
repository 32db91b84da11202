#!/usr/bin/env python3
"""Bad input, alone and on several ranks: bad_input.py PROGRAM MPIRUN

Whatever is wrong, there is one line on standard error that begins with `penstock:` and says what, nothing on standard
output, the exit code of its kind, and soon no process of the job. Launchers may add lines of their own.
"""
import json
import re
import struct
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf_file
from job import Launcher, write_profile

USAGE, BAD_INPUT, UNSUPPORTED, NO_MEMORY, IO = 2, 3, 4, 5, 6
SYNTHETIC = "synthetic:llama:layers=3,hidden=64,ffn=96/160/64,heads=4,kv_heads=2,vocab=300,context=512,type=q4_0"
UNITS = 5
# Each rank in its own folder of the current one.
APART = 'cd "rank$RANK" && exec "$@"'


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.job = Launcher(*sys.argv[1:3])
        cls.pool = ThreadPoolExecutor(4)  # a job that fails mostly waits, for mpirun
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.temporary.name)
        cls.profile = write_profile(cls.job, SYNTHETIC, cls.folder / "profile.json")
        for rank in range(3):
            (cls.folder / f"rank{rank}").mkdir()

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def setUp(self):
        self.pending = []

    def tearDown(self):
        self.settle()

    def refused(self, status, words, *arguments, ranks=(0, 2), **how):
        """Starts jobs that must be refused with this status and these words; settle() looks at the outcome."""
        for count in ranks:
            outcome = self.pool.submit(self.job.run, *arguments, ranks=count, cwd=self.folder, limit=60, **how)
            self.pending.append((outcome, status, [words] if isinstance(words, str) else words))

    def settle(self):
        pending, self.pending = self.pending, []
        for future, status, words in pending:
            outcome = future.result()
            with self.subTest(line=" ".join(map(str, outcome.line))):
                self.assertEqual(len(outcome.complaints), 1, outcome.err)
                for word in words:
                    self.assertIn(word, outcome.complaints[0])
                self.assertEqual(outcome.code, status, outcome.err)
                self.assertEqual(outcome.out, "")
                self.assertEqual(outcome.left, [])

    def file_refused(self, status, words, data, ranks=(0, 2)):
        name = f"bad{len(self.pending)}.gguf"
        (self.folder / name).write_bytes(data)
        self.refused(status, [name, *([words] if isinstance(words, str) else words)], "run", name, "-p", "x",
                     ranks=ranks)

    def run_refused(self, status, words, *arguments, **how):
        self.refused(status, words, "run", SYNTHETIC, "--profile", self.profile, *arguments, **how)

    def works(self, *arguments, **how):
        outcome = self.job.run(*arguments, cwd=self.folder, **how)
        self.assertEqual((outcome.code, outcome.complaints, outcome.left), (0, [], []), outcome.err)
        return outcome

    # ---- Files ----

    def test_the_good_file_is_good(self):
        (self.folder / "good.gguf").write_bytes(gguf_file.model())
        for ranks in (0, 3):
            output = self.works("run", "good.gguf", "-p", "Hello", "-n", "3", "--json", "--cache", str(self.folder),
                                ranks=ranks).json()
            self.assertEqual(len(output["prompt_ids"]), 5)
            self.assertEqual(len(output["output_ids"]), 3)

    def test_truncated(self):
        data = gguf_file.model()
        self.file_refused(BAD_INPUT, "", data[: len(data) - 1])
        for length in (0, 3, 20, 300, len(data) // 2):
            self.file_refused(BAD_INPUT, "", data[:length], ranks=[0])

    def test_cut_behind_the_header(self):
        self.file_refused(BAD_INPUT, ["cut short", "missing, from tensor output_norm.weight on"],
                          gguf_file.model()[:-1])
        (self.folder / "cut.gguf").write_bytes(gguf_file.model()[:-70000])
        self.refused(BAD_INPUT, "cut short", "perplexity", "cut.gguf", "-f", "cut.gguf")
        for command in (["plan", "cut.gguf", "--stages", "2", "--cache", str(self.folder)], ["inspect", "cut.gguf"]):
            outcome = self.works(*command)
            warnings = [line for line in outcome.err.splitlines() if "warning" in line]
            self.assertEqual(len(warnings), 1, outcome.err)
            self.assertIn("cut.gguf is cut short", warnings[0])

    def test_header_of_a_model_larger_than_this_machine(self):
        data = gguf_file.header(layers=80, hidden=65536, ffn=262144, heads=512)
        self.assertLess(len(data), 50000)
        (self.folder / "huge.gguf").write_bytes(data)
        plan = self.works("plan", "huge.gguf", "--stages", "16", "--json").json()
        self.assertGreater(sum(unit["weight_bytes"] for unit in plan["units"]), 10 << 40)
        self.assertIn("estimated", plan["source"])
        self.refused(BAD_INPUT, "cut short", "run", "huge.gguf", "-p", "x")

    def test_split_files(self):
        paths = gguf_file.split(self.folder, "split", 4)
        (self.folder / "one.gguf").write_bytes(gguf_file.model())
        line = ["-p", "Hello", "-n", "8", "--json", "--cache", str(self.folder)]
        expected = self.works("run", "one.gguf", *line).json()["output_ids"]
        for ranks, part in ((0, 0), (2, 3), (3, 0)):
            self.assertEqual(self.works("run", paths[part].name, *line, ranks=ranks).json()["output_ids"], expected)
        self.assertEqual(self.works("inspect", paths[0].name, "--json").json()["files"], 4)
        self.assertTrue(self.works("plan", paths[1].name, "--stages", "2", "--cache", str(self.folder)).out)

        whole = paths[3].read_bytes()
        paths[3].write_bytes(whole[:-1])
        self.refused(BAD_INPUT, [f"{paths[3].name} is cut short", "1 are missing"], "run", paths[0].name, "-p", "x")
        self.assertIn(f"{paths[3].name} is cut short", self.works("inspect", paths[0].name).err)
        self.settle()
        paths[3].write_bytes(paths[2].read_bytes())
        self.refused(BAD_INPUT, [paths[3].name, "part 3 of 4"], "inspect", paths[0].name, ranks=[0])
        self.settle()
        paths[3].unlink()
        for command in (["run", "-p", "x"], ["plan"], ["inspect"]):
            self.refused(IO, [paths[3].name, "No such file"], command[0], paths[0].name, *command[1:], ranks=[0])

    def test_vocabulary_and_embedding_disagree(self):
        tokens = gguf_file.alphabet() + ["more"]
        short = gguf_file.model(shapes={"token_embd.weight": [32, 256]})
        self.file_refused(BAD_INPUT, f"the vocabulary has {len(tokens)} tokens, token_embd.weight has 256 rows", short)

    def test_no_gguf(self):
        self.file_refused(BAD_INPUT, "GGUF", b"This is not a model.\n" * 1000)
        self.file_refused(BAD_INPUT, "GGUF", bytes(100000), ranks=[0])
        self.refused(IO, "nowhere.gguf", "run", "nowhere.gguf", "-p", "x")
        self.refused(BAD_INPUT, "rank0", "run", "rank0", "-p", "x", ranks=[0])

    def test_corrupt(self):
        model, norm = gguf_file.model, "blk.1.attn_norm.weight"
        self.file_refused(BAD_INPUT, norm, model(offsets={norm: 1 << 40}))
        self.file_refused(BAD_INPUT, "", model(count=1 << 60))
        self.file_refused(BAD_INPUT, norm, model(shapes={norm: [1 << 62]}), ranks=[0])
        self.file_refused(BAD_INPUT, "", model(count=1 << 20), ranks=[0])
        self.file_refused(BAD_INPUT, norm, model(offsets={norm: 5}), ranks=[0])
        self.file_refused(BAD_INPUT, norm, model(shapes={norm: [64]}), ranks=[0])
        self.file_refused(BAD_INPUT, "block_count", model(keys={"llama.block_count": 0}), ranks=[0])
        self.file_refused(BAD_INPUT, "blk.2.", model(keys={"llama.block_count": 3}), ranks=[0])
        self.file_refused(BAD_INPUT, "embedding_length", model(keys={"llama.embedding_length": None}), ranks=[0])
        self.file_refused(BAD_INPUT, "tokenizer.ggml.merges", model(keys={"tokenizer.ggml.merges": ["none"]}))
        self.file_refused(UNSUPPORTED, "version", model().replace(b"GGUF\3", b"GGUF\7"), ranks=[0])

    def test_weights_that_are_no_numbers(self):
        data = gguf_file.model()
        nan = struct.pack("<f", float("nan"))
        self.file_refused(BAD_INPUT, "output_norm.weight", data[:-4] + nan)
        # A matrix's is said, once a tensor: perhaps it is never used. This one's makes all logits of a token NaN.
        (self.folder / "nan.gguf").write_bytes(data)
        start, _ = gguf_file.Reader(self.folder / "nan.gguf").tensors["token_embd.weight"]
        (self.folder / "nan.gguf").write_bytes(data[:start] + nan * 3 + data[start + 12:])
        outcome = self.job.run("run", "nan.gguf", "-p", "Hello", cwd=self.folder)
        self.assertEqual(outcome.err.count("nan.gguf: tensor token_embd.weight holds NaN or infinite values"), 1)
        self.assertEqual((outcome.code, len(outcome.complaints)), (BAD_INPUT, 1))
        self.file_refused(BAD_INPUT, "not a number", data[:-8000] + nan * 1000 + data[-4000:])

    def test_unknown_architecture(self):
        self.file_refused(UNSUPPORTED, ["martian", "llama"], gguf_file.model(keys={"general.architecture": "martian"}))
        self.refused(UNSUPPORTED, ["martian", "llama"], "run", "synthetic:martian:layers=2", "-p", "x")

    def test_unknown_type(self):
        for number in (99, 16):  # none there is, and one that others have
            self.file_refused(UNSUPPORTED, "blk.0.attn_q.weight", gguf_file.model(types={"blk.0.attn_q.weight": number}))

    def test_unknown_tokenizer(self):
        self.file_refused(UNSUPPORTED, "tokenizer.ggml.pre", gguf_file.model(keys={"tokenizer.ggml.pre": "martian"}))

    def test_files_differ(self):
        (self.folder / "rank0/model.gguf").write_bytes(gguf_file.model())
        for other in (gguf_file.model(layers=3), gguf_file.model(keys={"llama.rope.freq_base": 5e5})):
            for rank in (1, 2):
                (self.folder / f"rank{rank}/model.gguf").write_bytes(gguf_file.model())
            (self.folder / "rank1/model.gguf").write_bytes(other)
            self.refused(BAD_INPUT, ["rank 1", "model.gguf"], "run", "model.gguf", "-p", "x", ranks=[2, 3], shell=APART)
            self.settle()

    def test_file_is_missing_on_one_rank(self):
        for rank in (0, 1):
            (self.folder / f"rank{rank}/here.gguf").write_bytes(gguf_file.model())
        self.refused(IO, "here.gguf", "run", "here.gguf", "-p", "x", ranks=[3], shell=APART)
        self.settle()
        (self.folder / "rank0/here.gguf").unlink()
        self.refused(IO, "here.gguf", "run", "here.gguf", "-p", "x", ranks=[2], shell=APART)

    def test_columns_that_the_device_cannot_divide(self):
        odd = "synthetic:llama:layers=1,hidden=48,ffn=64,heads=4,vocab=300,type=f32"
        for mode in "fast", "f32":
            self.refused(UNSUPPORTED, ["token_embd.weight", "48 columns", "multiple of 32"], "run", odd, "-p", "x", "-n", "1",
                         "--activations", mode, ranks=[0])

    def test_heads_that_q8_0_cannot_divide(self):
        odd = "synthetic:llama:layers=1,hidden=96,ffn=64,heads=6,vocab=300"
        for command, ranks in (["plan"], 0), (["run", "-p", "x", "-n", "1"], 2):
            self.refused(UNSUPPORTED, ["--kv-type q8_0", "16 values", "multiple of 32"], command[0], odd, *command[1:],
                         "--kv-type", "q8_0", ranks=[ranks])

    # ---- The plan ----

    def test_more_stages_than_units(self):
        small = "synthetic:llama:layers=1,hidden=64,ffn=64,heads=4,vocab=300"
        self.refused(USAGE, ["4 stages", "3 units"], "run", small, "-p", "x", ranks=[4])
        self.refused(USAGE, ["9 stages", f"{UNITS} units"], "plan", SYNTHETIC, "--stages", "9", ranks=[0])

    def test_no_split_fits_the_memory(self):
        deep = "synthetic:llama:layers=12,hidden=512,ffn=2048,heads=8,vocab=300"
        path = write_profile(self.job, deep, self.folder / "deep.json")
        line = ["run", deep, "--profile", path, "-p", "x", "-n", "1", "--max-num-batched-tokens", "16", "--memory"]
        self.refused(NO_MEMORY, ["short by", " per stage would do", ", or ", " stages"], *line, "12MiB")
        # What it says would do does, and no less.
        said = self.job.run(*line, "12MiB", ranks=2).complaints[0]
        enough = int(re.search(r"\((\d+) bytes\) per stage would do", said)[1])
        self.works(*line, enough, ranks=2)
        self.refused(NO_MEMORY, "short by", *line, enough - 1, ranks=[2])
        self.works(*line, "12MiB", ranks=int(re.search(r", or (\d+) stages", said)[1]))

    def test_no_unit_fits_the_memory(self):
        self.run_refused(NO_MEMORY, ["alone needs", "limit of 100 KiB"], "-p", "x", "--memory", "100KiB")
        huge = "synthetic:llama:layers=2,hidden=262144,ffn=8192,heads=2048,vocab=500000,type=f32"
        path = write_profile(self.job, huge, self.folder / "huge.json")
        self.refused(NO_MEMORY, ["embedding", "alone needs", "limit"], "run", huge, "--profile", path, "-p", "x")

    def test_stages_that_were_not_started(self):
        for stages, also in (3, []), (2, ["mpirun -np 2, or --data-parallel-size 2"]):
            self.run_refused(USAGE, [f"--pipeline-parallel-size is {stages}", f"mpirun -np {stages}", *also], "-p", "x",
                             "--pp", stages, ranks=[4])

    def test_replicas_that_were_not_started(self):
        self.run_refused(USAGE, ["--data-parallel-size is 2", "1 process was started", "mpirun -np 2, or another"], "-p",
                         "x", "--dp", "2", ranks=[0, 1])
        self.run_refused(USAGE, ["3 processes were started", "mpirun -np 4, or another multiple of 2"], "-p", "x",
                         "--data-parallel-size", "2", ranks=[3])
        self.run_refused(USAGE, ["--data-parallel-size is 2 and --pipeline-parallel-size 3", "mpirun -np 6"], "-p", "x",
                         "--dp", "2", "--pp", "3", ranks=[4])
        self.run_refused(USAGE, "--dp: '0' is not a whole number from 1 to", "-p", "x", "--dp", "0", ranks=[2])
        self.run_refused(USAGE, "--link mpi does not fit 1 stage", "-p", "x", "--dp", "2", "--link", "mpi", ranks=[2])

    def test_profiles_that_do_not_match(self):
        (self.folder / "short.json").write_text(json.dumps({"units": [{"name": "a", "time_ms": 1}]}))
        self.refused(BAD_INPUT, ["short.json", f"{UNITS}"], "run", SYNTHETIC, "-p", "x", "--profile", "short.json")
        (self.folder / "broken.json").write_text('{"units": [')
        self.refused(BAD_INPUT, "broken.json", "run", SYNTHETIC, "-p", "x", "--profile", "broken.json")
        self.refused(IO, "none.json", "run", SYNTHETIC, "-p", "x", "--profile", "none.json")

    # ---- The request ----

    def test_prompt_is_longer_than_the_context(self):
        self.run_refused(USAGE, ["600 tokens", "512"], "-p", "x" * 600, "--json")
        self.run_refused(USAGE, ["10 tokens", "16"], "-p", "x" * 10, "-n", "7", "--max-model-len", "16", "--json")
        (self.folder / "long").write_text("x" * 513)
        self.refused(USAGE, ["513 tokens", "512"], "perplexity", SYNTHETIC, "--profile", self.profile, "-f", "long")

    def test_request_that_can_never_have_its_kv(self):
        self.run_refused(USAGE, ["--kv-tokens 32", "48 tokens"], "-p", "x" * 40, "-n", "5", "--kv-tokens", "32")
        some = "synthetic:gemma3:layers=7,hidden=64,ffn=96,heads=4,kv_heads=1,vocab=300,window=33,context=512"
        self.refused(USAGE, ["--kv-tokens 79", "80 tokens"], "run", some, "-p", "x" * 60, "-n", "15", "--kv-tokens", "79",
                     ranks=[0])
        bench = ["--cache", "-", "--prompt-tokens", "40", "--output-tokens", "8", "--num-prompts", "6"]
        self.refused(USAGE, ["--kv-tokens 47", "48 tokens"], "bench", SYNTHETIC, *bench, "--kv-tokens", "47", ranks=[0])
        # What one request needs is enough: the others wait. A model that sees nothing but a window holds no more.
        self.works("bench", SYNTHETIC, *bench, "--concurrency", "4", "--kv-tokens", "48", "--profile", self.profile)
        window = SYNTHETIC + ",window=20"
        self.works("run", window, "--profile", self.profile, "-p", "x" * 400, "-n", "5", "--kv-tokens", "16")

    def test_no_prompt(self):
        self.run_refused(USAGE, ["-p", "-f"], "-n", "3")
        self.run_refused(USAGE, "empty", "-p", "")
        self.run_refused(IO, "none.txt", "-f", "none.txt")
        self.run_refused(IO, "rank0", "-f", "rank0", ranks=[0])
        self.run_refused(USAGE, "--file", "-p", "x", "-f", "none.txt", ranks=[0])
        (self.folder / "short").write_text("x")
        self.refused(USAGE, "2 tokens", "perplexity", SYNTHETIC, "--profile", self.profile, "-f", "short")

    def test_no_model(self):
        self.refused(USAGE, "MODEL", "run", "-p", "x")
        self.refused(USAGE, "shape", "run", "synthetic:llama", "-p", "x")
        self.refused(USAGE, "ffn", "run", SYNTHETIC + ",ffn=3", "-p", "x", ranks=[0])

    # ---- The command line ----

    def test_bad_numbers(self):
        self.run_refused(USAGE, "'many'", "-p", "x", "-n", "many")
        for option, value in [("-n", "0"), ("-n", "-3"), ("-n", "1e3"), ("-n", "7x"), ("-n", ""), ("-n", "0x10"),
                              ("-n", "9" * 30), ("--temperature", "nan"), ("--temperature", "-1"), ("--top-p", "1.5"),
                              ("--min-p", "-0.1"), ("--top-k", "-1"), ("--seed", "-1"), ("--seed", "1.5"),
                              ("--threads", "0"), ("--memory", "12XB"), ("--memory", "-1GiB"), ("--memory", "0"),
                              ("--workload", "5"), ("--workload", "5:"), ("--workload", "0:1"), ("--logprobs", "21"),
                              ("--kv-tokens", "0"), ("--max-num-seqs", "0"), ("--max-num-batched-tokens", "0"),
                              ("--max-model-len", "0"), ("--step-timeout", "0"), ("--device", "tpu"), ("--isa", "sse"),
                              ("--activations", "int4"), ("--link", "rope"), ("--method", "luck")]:
            self.run_refused(USAGE, [option, f"'{value}'"], "-p", "x", option, value, ranks=[0])
        self.run_refused(USAGE, "8192", "-p", "x", "--max-model-len", "8192")
        self.run_refused(USAGE, "'few'", "-p", "x", ranks=[0], PENSTOCK_MAX_TOKENS="few")

    def test_unknown_words(self):
        self.run_refused(USAGE, "did you mean --temperature?", "-p", "x", "--temprature", "1")
        self.run_refused(USAGE, "--frobnicate", "-p", "x", "--frobnicate")
        self.run_refused(USAGE, "surplus", "-p", "x", "surplus", ranks=[0])
        self.run_refused(USAGE, "-n", "-p", "x", "-n", ranks=[0])
        self.refused(USAGE, "did you mean perplexity?", "perplexty", SYNTHETIC)
        self.refused(USAGE, "--svg", "run", SYNTHETIC, "-p", "x", "--svg", "x.svg", ranks=[0])

    def test_every_command_has_help(self):
        for command in ("run", "perplexity", "plan", "inspect"):
            for ranks in (0, 2):
                outcome = self.works(command, "--help", ranks=ranks)
                self.assertEqual(outcome.out.count("Usage:"), 1)
        self.assertIn("MPI", self.works("--version").out)

    # ---- Surroundings ----

    def test_slurm_without_a_common_world(self):
        for process in ("0", "3"):
            outcome = self.job.run("run", SYNTHETIC, "-p", "x", SLURM_STEP_NUM_TASKS="4", SLURM_PROCID=process)
            self.assertEqual((outcome.code, outcome.out), (USAGE, ""))
            # Of the four, the first says it.
            self.assertEqual(len(outcome.complaints), process == "0", outcome.err)
        self.run_refused(USAGE, ["Slurm", "4 tasks"], "-p", "x", ranks=[0], SLURM_STEP_NUM_TASKS="4")
        for arguments in (["plan", SYNTHETIC], ["inspect", SYNTHETIC], ["--help"], ["run", "--help"], ["--version"]):
            self.assertTrue(self.works(*arguments, SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="0").out)
        self.works("run", SYNTHETIC, "--profile", self.profile, "-p", "x", "-n", "1", ranks=2, SLURM_STEP_NUM_TASKS="2")

    def test_unwritable_cache_only_warns(self):
        small = "synthetic:llama:layers=1,hidden=64,ffn=64,heads=4,vocab=300"
        (self.folder / "plain").write_text("no folder")
        for ranks in (0, 2):
            outcome = self.works("run", small, "-p", "x", "-n", "2", "--json", "--cache", "plain/cache", ranks=ranks)
            self.assertEqual(len(outcome.json()["output_ids"]), 2)
            self.assertIn("warning: the profile cannot be kept", outcome.err)

    def test_output_that_cannot_be_written(self):
        for redirection in ("> /dev/full", ">&-"):
            for output in ([], ["--json"]):
                self.run_refused(IO, "standard output", "-p", "x", "-n", "3", *output, shell=f'exec "$@" {redirection}')
            self.refused(IO, "standard output", "plan", SYNTHETIC, ranks=[0], shell=f'exec "$@" {redirection}')
            self.refused(IO, "standard output", "plan", SYNTHETIC, "--json", ranks=[0], shell=f'exec "$@" {redirection}')

    def test_reader_that_went_away(self):
        # `true` ends at once; the run goes on until its output has nowhere to go.
        self.run_refused(IO, "standard output", "-p", "x", "-n", "400", ranks=[0],
                         shell='{ "$@"; echo $? > code; } | true; exit $(cat code)')


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
