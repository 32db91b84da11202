#!/usr/bin/env python3
"""How far the fast mode is from float32, beside llama.cpp: fast_error.py --penstock PROGRAM (MODEL REFERENCE.json)…

Both score the reference's text from the same file, teacher-forced, with 8-bit activations and KV in F16, on two threads.
Printed are the mean and the largest difference of a token's log-probability from the reference, and that of the mean NLL, of
which the last is what is left of many that cancel: beside it stands its standard error.

Exits with 1 where one of Penstock's means is the larger one. By hand: it needs llama-cpp-python.
"""
import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from llama_cpp import Llama

THREADS = 2


def llama_logprobs(model, ids):
    """Of tokens 2 … N."""
    llama = Llama(model, n_ctx=len(ids), n_threads=THREADS, n_threads_batch=THREADS, logits_all=True, verbose=False)
    llama.eval(ids)
    logprobs = []
    for logits, token in zip(llama.scores, ids[1:]):
        logits = logits.astype(np.float64)
        top = logits.max()
        logprobs.append(logits[token] - top - math.log(np.exp(logits - top).sum()))
    llama.close()
    return np.array(logprobs)


def penstock_logprobs(program, model, reference, mode):
    with tempfile.NamedTemporaryFile("w") as text:
        text.write(reference["text"])
        text.flush()
        line = [program, "perplexity", model, "-f", text.name, "--tokens", reference["score_tokens"], "--activations", mode,
                "--device", "cpu", "--threads", THREADS, "--token-logprobs", "--json"]
        result = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"{result.args} ended with {result.returncode}: {result.stderr}")
    return np.array(json.loads(result.stdout)["token_logprobs"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True)
    parser.add_argument("pairs", nargs="+", metavar="MODEL REFERENCE.json")
    arguments = parser.parse_args()
    if len(arguments.pairs) % 2:
        parser.error("each model needs a reference")
    worse = 0
    print(f"{'':28} {'mean |difference|':>18} {'largest':>9} {'mean NLL off by':>16} {'± error':>9} {'in %':>8}")
    for model, path in zip(arguments.pairs[::2], arguments.pairs[1::2]):
        reference = json.loads(Path(path).read_text())
        expected = np.array(reference["token_logprobs"])
        sides = {
            "penstock f32": penstock_logprobs(arguments.penstock, model, reference, "f32"),
            "penstock fast": penstock_logprobs(arguments.penstock, model, reference, "fast"),
            "llama.cpp": llama_logprobs(model, reference["token_ids"]),
        }
        mean, nll = {}, {}
        for name, logprobs in sides.items():
            off = logprobs - expected
            mean[name], nll[name] = np.abs(off).mean(), -off.mean()
            print(f"{Path(model).stem:14.14} {name:13} {mean[name]:18.5f} {np.abs(off).max():9.4f} {nll[name]:+16.5f} "
                  f"{off.std() / math.sqrt(len(off)):9.5f} {100 * nll[name] / -expected.mean():+8.3f}")
        for what, by in ("mean |difference|", mean), ("|mean NLL off by|", nll):
            ratio = abs(by["penstock fast"] / by["llama.cpp"])
            worse |= int(ratio > 1)
            print(f"{Path(model).stem:14.14} {what}: Penstock's fast mode ÷ llama.cpp {ratio:.3f}")
    return worse


if __name__ == "__main__":
    sys.exit(main())
