#!/usr/bin/env python3
"""Penstock against the reference outputs: compare.py --penstock PROGRAM REFERENCE.json

Runs `penstock run` and `penstock perplexity` in both activation modes on 1, 2 and 3 ranks, prints how far off they are,
and fails past the tolerances (tests/reference/README.md). Besides, all numbers of ranks must give the same digits; with
more than the first number of them only one prompt is run, and the beginning of the text is scored, which saves time.
Without a model (--model) it exits with 77, which ctest counts as skipped.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

BEST = 10
GREEDY_TOKENS = 48
BEGINNING = 300  # tokens of the text
SKIPPED = 77


@dataclass
class Tolerance:
    logprob: float  # of the next token and of teacher-forced ones
    nll: float      # of the mean, relative
    margin: float   # greedy tokens are equal up to the first step whose margin is smaller


TOLERANCES = {"f32": Tolerance(0.02, 0.001, 0.02), "fast": Tolerance(0.5, 0.014, 0.25)}


class Program:
    """Penstock on some ranks in one mode, with given times for the model's units, so that next to nothing is measured."""

    def __init__(self, arguments, folder):
        self.arguments = arguments
        inspected = subprocess.run([arguments.penstock, "inspect", arguments.model, "--json"], capture_output=True,
                                   check=True)
        units = [{"name": unit["name"], "time_ms": 1} for unit in json.loads(inspected.stdout)["units"]]
        self.profile = folder / "profile"
        self.profile.write_text(json.dumps({"units": units}))
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        self.environment = {**os.environ, **root, "OMPI_MCA_rmaps_base_oversubscribe": "1"}

    def json(self, ranks, mode, command, *options):
        launcher = [] if ranks == 1 else [self.arguments.mpirun, "-np", str(ranks)]
        line = [*launcher, self.arguments.penstock, command, self.arguments.model, "--json", "--activations", mode,
                "--device", self.arguments.device, "--profile", self.profile, "--workload", "8:8", *options]
        result = subprocess.run(line, capture_output=True, text=True, env=self.environment, timeout=300)
        if result.returncode != 0:
            sys.exit(f"{' '.join(line)}\nended with {result.returncode}: {result.stderr}")
        return json.loads(result.stdout)


def equal_prefix(ours, reference, margins, margin):
    """Steps that must be equal and whether they are; ours may leave out the end-of-text token that ended it."""
    certain = next((i for i, gap in enumerate(margins) if gap < margin), len(reference))
    if certain == len(reference) and ours == reference[:-1]:
        certain -= 1
    return certain, ours[:certain] == reference[:certain]


def compare_prompt(entry, output, tolerance):
    """Yields what is wrong; returns the largest difference of a next-token log-probability."""
    wrong = []
    if output["prompt_ids"] != entry["ids"]:
        wrong.append(f"prompt ids {output['prompt_ids']} are not {entry['ids']}")
    best = dict(map(tuple, output["logprobs"][0]))
    least = min(best.values())
    # One of the reference's ten that is not among ours is at most as likely as our last.
    differences = [abs(best[token] - logprob) if token in best else max(0.0, logprob - least)
                   for token, logprob in zip(entry["top_ids"], entry["top_logprobs"])]
    if max(differences) > tolerance.logprob:
        wrong.append(f"next-token log-probabilities are {max(differences):.4f} off")
    certain, equal = equal_prefix(output["output_ids"], entry["greedy_ids"], entry["greedy_margins"], tolerance.margin)
    if not equal:
        wrong.append(f"greedy ids {output['output_ids']} are not {entry['greedy_ids']} in the first {certain} steps")
    return max(differences), wrong


def compare_score(reference, output, tokens, tolerance):
    expected = reference["token_logprobs"][:tokens - 1]
    differences = [abs(a - b) for a, b in zip(output["token_logprobs"], expected)]
    mean = sum(differences) / len(differences)
    relative = abs(output["mean_nll"] / (-sum(expected) / len(expected)) - 1)
    wrong = []
    if output["tokens"] != tokens or len(output["token_logprobs"]) != tokens - 1:
        wrong.append(f"{output['tokens']} tokens were scored, not {tokens}")
    if max(differences) > tolerance.logprob:
        wrong.append(f"teacher-forced log-probabilities are {max(differences):.4f} off")
    if relative > tolerance.nll:
        wrong.append(f"mean_nll is {100 * relative:.3f} % off")
    return (max(differences), mean, relative), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--model", help="the GGUF file; may be empty")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--ranks", default="1,2,3", help="numbers of ranks, with commas")
    parser.add_argument("--device", default="cpu", help="what computes (default: cpu)")
    parser.add_argument("--modes", default="f32,fast", help="activation modes, with commas")
    arguments = parser.parse_args()
    if not arguments.model:
        print("there is no model")
        sys.exit(SKIPPED)
    reference = json.loads(arguments.reference.read_text())

    failures = []
    with tempfile.TemporaryDirectory() as folder:
        program = Program(arguments, Path(folder))
        text = Path(folder) / "text"
        text.write_text(reference["text"])
        print("mode  ranks  next token  teacher-forced: max     mean  mean_nll")
        for mode in arguments.modes.split(","):
            tolerance, first = TOLERANCES[mode], None
            for ranks in map(int, arguments.ranks.split(",")):
                prompts = reference["prompts"][:1 if first else None]
                tokens = BEGINNING if first else reference["score_tokens"]
                runs = [program.json(ranks, mode, "run", "--prompt", entry["prompt"], "-n", str(GREEDY_TOKENS),
                                     "--logprobs", str(BEST)) for entry in prompts]
                scored = program.json(ranks, mode, "perplexity", "--file", str(text), "--tokens", str(tokens),
                                      "--token-logprobs")
                next_token = 0.0
                for entry, output in zip(prompts, runs):
                    difference, wrong = compare_prompt(entry, output, tolerance)
                    next_token = max(next_token, difference)
                    failures += [f"{mode}, {ranks} ranks, {entry['prompt']!r}: {what}" for what in wrong]
                (largest, mean, relative), wrong = compare_score(reference, scored, tokens, tolerance)
                failures += [f"{mode}, {ranks} ranks: {what}" for what in wrong]
                print(f"{mode:4} {ranks:6} {next_token:11.4f} {largest:20.4f} {mean:8.4f} {100 * relative:7.3f} %")

                digits = [runs[0]["output_ids"], runs[0]["logprobs"], scored["token_logprobs"][:BEGINNING - 1]]
                first = first or digits
                if digits != first:
                    failures.append(f"{mode}: {ranks} ranks and {arguments.ranks.split(',')[0]} give different digits")
    print(*failures, sep="\n", end="\n" if failures else "")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
