#!/usr/bin/env python3
"""The same tokens, always: same_tokens.py PROGRAM MPIRUN [--expect-difference] [--model FILE] [--device NAME]

Token ids and log-probabilities must be equal bit for bit however the work is divided: over replicas, stages, splits,
threads, chunks of the prompt and instruction sets, for every weight type and for K and
V in q8_0; greedy, sampled with a seed, with penalties, and
scoring a given text.
Every case is compared with the first of its model. The cases are drawn by a fixed seed so that each value of each
choice meets many values of the others, but not all of them.

--device: on another one than the CPU, small models only.

--expect-difference turns the outcome round: the program has an error planted, which must be seen.
"""
import argparse
import json
import os
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from job import Launcher

STAGES, THREADS, CHUNKS = (1, 2, 3, 4), (1, 2), (1, 3, 16, 17, 64, 512)
RANKS_MOST = 4
ISAS = ("avx512", "avxvnni", "avx2", "portable")
TEXT = ("The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs; how vexingly quick daft "
        "zebras jump! Sphinx of black quartz, judge my vow.")
LOGPROBS = ["--logprobs", "5", "--ignore-eos"]
COMMANDS = {
    "greedy": ["run", "-n", "12", "--temperature", "0", "--ignore-eos"],  # needs the largest logit only
    "sampled": ["run", "-n", "12", "--temperature", "0.8", "--top-p", "0.9", "--seed", "7", *LOGPROBS],
    "penalised": ["run", "-n", "12", "--temperature", "0.6", "--seed", "9", "--repetition-penalty", "1.4",
                  "--presence-penalty", "0.5", "--frequency-penalty", "0.3", "--logit-bias", "7:3,11:-4",
                  "--prompt-logprobs", "3", *LOGPROBS],
    "scored": ["perplexity", "--token-logprobs"],
}


@dataclass
class Model:
    name: str
    units: int
    cases: int  # of each command, beside the first
    options: list = field(default_factory=list)


def synthetic(type_name, shape, layers, *options, arch="llama"):
    name = f"synthetic:{arch}:layers={layers},type={type_name},context=512,{shape}"
    return Model(name, layers + 2, 3, list(options))


# Odd shapes, no two alike: vocabularies that end within a tile, heads of 8 to 64, layers of unequal width.
SYNTHETIC = [
    synthetic("q4_0", "hidden=96,ffn=160/32/288,heads=6,kv_heads=2,vocab=331", 3),
    synthetic("q4_1", "hidden=64,ffn=96,heads=4,kv_heads=1,vocab=263,tied=1", 2),
    synthetic("q8_0", "hidden=160,ffn=96/224/64/416,heads=5,vocab=401", 4),
    synthetic("f16", "hidden=96,ffn=64/128/256,heads=6,kv_heads=1,vocab=299", 3),
    synthetic("f32", "hidden=64,ffn=32/192/96,heads=8,kv_heads=4,vocab=257", 3),
    synthetic("q4_0", "hidden=128,ffn=96/512,heads=2,vocab=320", 2, "--activations", "f32"),
    synthetic("bf16", "hidden=96,ffn=64/160,heads=6,kv_heads=3,vocab=270", 2),
    synthetic("q5_0", "hidden=160,ffn=96/224/64,heads=5,vocab=307", 3),
    synthetic("q5_1", "hidden=96,ffn=32/288,heads=3,kv_heads=1,vocab=311", 2),
    synthetic("iq4_nl", "hidden=64,ffn=160/96/32,heads=4,kv_heads=2,vocab=293", 3),
    synthetic("mxfp4", "hidden=128,ffn=96/64,heads=4,vocab=277", 2),
    # Rows of these have 256, 512, … values.
    synthetic("q2_k", "hidden=256,ffn=256/512/256,heads=4,kv_heads=2,vocab=281", 3),
    synthetic("q3_k", "hidden=256,ffn=512/256,heads=2,kv_heads=1,vocab=283", 2),
    synthetic("q4_k", "hidden=512,ffn=256/768,heads=8,kv_heads=2,vocab=317", 2),
    synthetic("q5_k", "hidden=256,ffn=256/512,heads=4,vocab=337", 2),
    synthetic("q6_k", "hidden=256,ffn=768/256/512,heads=4,kv_heads=1,vocab=347", 3),
    synthetic("q6_k", "hidden=256,ffn=512,heads=2,vocab=349", 2, "--activations", "f32"),
    # Windows that the text outgrows: of all layers, and of some.
    synthetic("q8_0", "hidden=96,ffn=160,heads=6,kv_heads=2,vocab=331,window=21", 3),
    synthetic("q4_0", "hidden=64,ffn=96,heads=4,kv_heads=1,vocab=300,window=33", 7, arch="gemma3"),
    synthetic("q8_0", "hidden=96,ffn=128,heads=3,vocab=280", 3, arch="gpt2"),
    synthetic("q4_1", "hidden=64,ffn=96,heads=4,kv_heads=2,vocab=271,window=48", 3, arch="phi3"),
    synthetic("q8_0", "hidden=192,ffn=96/160/64,heads=6,kv_heads=2,vocab=273,window=37", 3, "--kv-type", "q8_0"),
]


# Two layers, for a device that is emulated.
SMALL = [
    synthetic("q4_0", "hidden=96,ffn=160/96,heads=6,kv_heads=2,vocab=331", 2),
    synthetic("q8_0", "hidden=64,ffn=96,heads=4,kv_heads=1,vocab=300,window=21", 2, arch="gemma3"),
    synthetic("f16", "hidden=96,ffn=128,heads=3,vocab=280", 2, arch="gpt2"),
]


@dataclass
class Case:
    replicas: int
    stages: int
    threads: int
    chunk: int
    isa: str
    layers: list  # units per stage

    def __str__(self):
        return (f"{self.replicas} replicas of {'/'.join(map(str, self.layers))} units, {self.threads} threads, chunks of "
                f"{self.chunk}, {self.isa}")

    def options(self):
        # The workload is small only so that measuring the stages takes no time.
        return ["--workload", "8:8", "--threads", self.threads, "--max-num-batched-tokens", self.chunk, "--isa", self.isa,
                "--layers", ",".join(map(str, self.layers)), "--dp", self.replicas]


def split(draw, units, stages):
    ends = sorted(draw.sample(range(1, units), stages - 1)) + [units]
    return [end - start for start, end in zip([0, *ends], ends)]


def in_turn(draw, values):
    """The values in a random order, and again in another: all come up before one does again."""
    while True:
        yield from draw.sample(values, len(values))


class Cases:
    """The first of a model: one stage, one thread, everything in one chunk. Then others, drawn."""

    def __init__(self, draw, isas):
        self.draw, self.best_isa = draw, isas[0]
        self.places = in_turn(draw, [(stages, threads) for stages in STAGES for threads in THREADS])
        self.replicas = in_turn(draw, (1, 2))
        self.chunks, self.isas = in_turn(draw, CHUNKS), in_turn(draw, isas)

    def of(self, model):
        yield Case(1, 1, 1, 512, self.best_isa, [model.units])
        for _ in range(model.cases):
            stages, threads = next(self.places)
            replicas = next(self.replicas) if 2 * stages <= RANKS_MOST else 1
            yield Case(replicas, stages, threads, next(self.chunks), next(self.isas),
                       split(self.draw, model.units, stages))


def isas_here(job):
    """Those that this machine has."""
    probe = [isa for isa in ISAS
             if job.run("run", SYNTHETIC[1].name, "--isa", isa, "--cache", "-", "-p", "x", "-n", "1").code == 0]
    return probe or sys.exit("no instruction set works")


def result(job, command, model, case, profile, text):
    options, ranks = COMMANDS[command], case.replicas * case.stages
    outcome = job.run(options[0], model.name, "-f", text, "--json", "--profile", profile, *options[1:], *model.options,
                      *case.options(), ranks=ranks if ranks > 1 else 0, limit=300)
    output = outcome.json()
    if options[0] == "perplexity":
        return output["token_logprobs"]
    logprobs = output["logprobs"] if "--logprobs" in options else 12 * [None]
    if len(output["output_ids"]) != 12 or len(logprobs) != 12:
        raise RuntimeError(f"{command}, {case}: not 12 tokens: {output}")
    return [*output.get("prompt_logprobs", []), *zip(output["output_ids"], logprobs)]


def first_difference(expected, got):
    at = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))
    return f"token {at} is {got[at] if at < len(got) else None}, not {expected[at] if at < len(expected) else None}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("mpirun")
    parser.add_argument("--expect-difference", action="store_true")
    parser.add_argument("--model", help="a file, instead of the synthetic models")
    parser.add_argument("--device", help="another one than the CPU")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of cases")
    arguments = parser.parse_args()
    job = Launcher(arguments.program, arguments.mpirun)
    isas, runs, differences = ["auto"] if arguments.device else isas_here(job), 0, []
    drawn = Cases(random.Random(arguments.seed), isas)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        text = Path(folder) / "text"
        text.write_text(TEXT[:45] if arguments.device else TEXT)
        models = SMALL if arguments.device else SYNTHETIC
        if arguments.model:
            units = len(job.run("inspect", arguments.model, "--json").json()["units"])
            models = [Model(arguments.model, units, 2)]
        for model in models:
            if arguments.device:
                model.options += ["--device", arguments.device]
                model.cases = 2
            # A profile that is made up serves: it decides who computes what, and --layers decides here.
            profile = Path(folder) / "profile.json"
            profile.write_text(json.dumps({"units": [{"name": f"unit {u}", "time_ms": 1} for u in range(model.units)]}))
            for command in COMMANDS:
                cases = list(drawn.of(model))
                results = list(pool.map(lambda case: result(job, command, model, case, profile, text), cases))
                runs += len(results)
                differences += [f"{model.name}, {command}, {case}: {first_difference(results[0], got)}"
                                for case, got in zip(cases[1:], results[1:]) if got != results[0]]
            if differences and arguments.expect_difference:
                break
    print(f"{runs} runs with {', '.join(isas)}: {len(differences)} differ", *differences, sep="\n")
    return bool(differences) != arguments.expect_difference


if __name__ == "__main__":
    sys.exit(main())
