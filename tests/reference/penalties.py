#!/usr/bin/env python3
"""Penalties against transformers: penalties.py --penstock PROGRAM [--mpirun MPIRUN]

Tiny random models complete a prompt greedily with penalties and biases. Teacher-forced with our own tokens, each must be
the best of the logits that transformers computes, after its own repetition penalty and the presence and frequency
penalties written down as vLLM defines them. Without torch it exits with 77, which ctest counts as skipped.
"""
import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from architectures import COMPLETION, PROMPT, Program, tiny_models  # exits with 77 where there is no torch

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

NEAR = 1e-3  # two logits nearer than this may come in any order
CASES = [  # repetition, presence, frequency, bias
    (1.0, 0.0, 0.0, {}),
    (1.3, 0.0, 0.0, {}),
    (0.7, 0.0, 0.0, {}),
    (1.0, 0.8, 0.0, {}),
    (1.0, -0.5, 0.4, {5: 2.0, 40: -100.0}),
    (1.2, 0.3, -0.2, {17: 1.5}),
    (5.0, 1.0, 1.0, {60: -0.5}),
]


def processed(logits, ids, prompt_count, case):
    repetition, presence, frequency, biases = case
    for token, bias in biases.items():
        logits[token] += bias
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(repetition)] if repetition != 1 else [])
    logits = processors(torch.tensor([ids]), logits[None])[0]
    for token in set(ids[prompt_count:]):
        logits[token] -= presence + frequency * ids[prompt_count:].count(token)
    return logits


def check(program, model, text, case, ranks):
    repetition, presence, frequency, biases = case
    options = ["--repetition-penalty", repetition, "--presence-penalty", presence, "--frequency-penalty", frequency]
    options += [f"--logit-bias={token}:{bias}" for token, bias in biases.items()]
    output = program.json(ranks, "f32", "run", text, "--ignore-eos", "-n", COMPLETION, *options)
    prompt, ids = output["prompt_ids"], output["prompt_ids"] + output["output_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    for step in range(len(prompt), len(ids)):
        after = processed(logits[step - 1].clone(), ids[:step], len(prompt), case)
        if not after[ids[step]] > after.max() - NEAR:
            return None, f"{case}, {ranks} ranks: token {step - len(prompt)} is {ids[step]}, not {after.argmax()}"
    return output["output_ids"], None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--mpirun", default="mpirun")
    arguments = parser.parse_args()
    wrong, seen = [], set()
    for architecture in ("llama", "qwen3"):
        variant = next(iter(tiny_models.ARCHITECTURES[architecture]()))
        model = tiny_models.make(variant)
        text = tiny_models.text(variant.tokens)[:PROMPT]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            tiny_models.write(path, architecture, variant, model)
            program = Program(arguments, path, variant.config.num_hidden_layers, variant.options, Path(folder))
            for case, ranks in zip(CASES, itertools.cycle((1, 2, 3))):
                output, problem = check(program, model, text, case, ranks)
                seen.add(tuple(output or []))
                wrong += [f"{architecture}: {problem}"] if problem else []
        print(f"{architecture}: {len(CASES)} cases", flush=True)
    if len(seen) < len(CASES):
        wrong.append(f"only {len(seen)} different outputs: the penalties hardly matter here")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
