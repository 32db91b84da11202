#!/usr/bin/env python3
"""Penstock against transformers, architecture by architecture: architectures.py --penstock PROGRAM ARCH [VARIANT…]

Makes the tiny random models of tiny_models.py, scores a text with each on 1, 2 and 3 ranks, and completes a prompt.
Log-probabilities must be those that transformers computes in float32: of every token of the text, and the best of every
step of the completion, teacher-forced with our own tokens. All numbers of ranks, each with chunks of another size, must
give the same digits. In the fast mode, whose 8-bit activations show in such models, they must be near on average.
Without torch it exits with 77, which ctest counts as skipped.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SKIPPED = 77
RANKS_AND_CHUNKS = (1, 300), (2, 128), (3, 23)
EXACT = 1e-3     # the largest difference of a log-probability in f32
FAST_MEAN = 0.1  # the mean one in fast mode
BEST = 20
PROMPT, COMPLETION = 100, 40

try:
    import tiny_models
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(SKIPPED)


class Program:
    """Penstock with one model, whose units' times are given, so that nothing is measured."""

    def __init__(self, arguments, model, layers, options, folder):
        self.arguments = arguments
        self.model = model
        self.options = options
        self.folder = folder
        names = ["embedding", *(f"block {layer}" for layer in range(layers)), "head"]
        (folder / "profile").write_text(json.dumps({"units": [{"name": name, "time_ms": 1} for name in names]}))
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        self.environment = {**os.environ, **root, "OMPI_MCA_rmaps_base_oversubscribe": "1"}

    def json(self, ranks, mode, command, text, *options):
        file = self.folder / "text"
        file.write_text(text)
        launcher = [] if ranks == 1 else [self.arguments.mpirun, "-np", str(ranks)]
        line = [*launcher, self.arguments.penstock, command, self.model, "--file", file, "--json",
                "--activations", mode, "--profile", self.folder / "profile", *self.options, *options]
        line = list(map(str, line))
        result = subprocess.run(line, capture_output=True, text=True, env=self.environment, timeout=300)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(line)}\nended with {result.returncode}: {result.stderr}")
        return json.loads(result.stdout)


def score_differences(expected, ids, scored):
    """Of tokens 2 … N."""
    assert scored["tokens"] == len(ids), f"{scored['tokens']} tokens were scored, not {len(ids)}"
    return [abs(ours - expected[i, token].item())
            for i, (token, ours) in enumerate(zip(ids[1:], scored["token_logprobs"], strict=True))]


def completion_differences(model, ids, output):
    """Of the best log-probabilities of every step, and of what transformers thinks is best there."""
    assert output["prompt_ids"] == ids, f"the prompt is {output['prompt_ids']}"
    assert len(output["output_ids"]) == COMPLETION, f"{len(output['output_ids'])} tokens came"
    expected = tiny_models.log_probabilities(model, ids + output["output_ids"])[len(ids) - 1:]
    for step, best in enumerate(output["logprobs"]):
        theirs = expected[step].topk(len(best)).values.tolist()
        for (token, ours), there in zip(best, theirs, strict=True):
            yield abs(ours - expected[step, token].item())
            yield abs(ours - there)


def check(arguments, architecture, variant, folder):
    """Prints a line; yields what is wrong."""
    path = folder / "model.gguf"
    model = tiny_models.make(variant)
    tiny_models.write(path, architecture, variant, model)
    text = tiny_models.text(variant.tokens)
    ids = tiny_models.encode(text)
    expected = tiny_models.log_probabilities(model, ids)
    program = Program(arguments, path, variant.config.num_hidden_layers, variant.options, folder)

    scored = [program.json(ranks, "f32", "perplexity", text, "--token-logprobs", "--max-num-batched-tokens", chunk)
              for ranks, chunk in RANKS_AND_CHUNKS]
    prompt = ["--ignore-eos", "-n", COMPLETION, "--logprobs", BEST]
    output = program.json(2, "f32", "run", text[:PROMPT], *prompt)
    exact = score_differences(expected, ids, scored[0])
    steps = list(completion_differences(model, ids[:PROMPT + 1], output))
    fast = score_differences(expected, ids, program.json(1, "fast", "perplexity", text, "--token-logprobs"))
    fast_mean = sum(fast) / len(fast)

    print(f"{architecture:8} {variant.name:8} {max(exact):10.6f} {max(steps):10.6f} {max(fast):10.4f} {fast_mean:8.4f}",
          flush=True)
    what = f"{architecture} {variant.name}"
    if not max(exact) <= EXACT:
        worst = exact.index(max(exact))
        yield f"{what}: log-probabilities are {max(exact):.6f} off, most at position {worst + 1} of {len(ids)}"
    if not max(steps) <= EXACT:
        yield f"{what}: log-probabilities of a completion are {max(steps):.6f} off"
    if not fast_mean <= FAST_MEAN:
        yield f"{what}: in fast mode log-probabilities are {fast_mean:.4f} off on average"
    if any(one != scored[0] for one in scored):
        yield f"{what}: 1, 2 and 3 ranks do not give the same digits"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("architecture", choices=tiny_models.ARCHITECTURES)
    parser.add_argument("variants", nargs="*", help="only these")
    arguments = parser.parse_args()

    wrong = []
    print(f"{'':18}{'f32: text':>10} {'completion':>10} {'fast: most':>10} {'mean':>8}")
    for variant in tiny_models.ARCHITECTURES[arguments.architecture]():
        if arguments.variants and variant.name not in arguments.variants:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                wrong += check(arguments, arguments.architecture, variant, Path(folder))
            except (RuntimeError, AssertionError) as error:
                wrong.append(f"{arguments.architecture} {variant.name}: {error}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
