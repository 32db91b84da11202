#!/usr/bin/env python3
"""What the split is worth, for real: split.py PROGRAM MPIRUN [--rounds N] [--threads N] [--model SPEC]

The dynamic programme's split against the uniform one, on the prefill of a long prompt of a model whose layers' widths
differ by a factor of four, as a pipeline of two ranks. A round measures the layers and runs both; medians over the
rounds are compared. C chunks through stages of t ms take (C − 1)·max t + Σ t, so the plan of each split predicts its
time, and the two predict the gain. (A plan counts all rows of a microbatch at the end of the workload's prompt, while
these see half of it on average; attention is a small part here.)

Fails when the gain differs from the predicted one by more than --tolerance (0.1). Leave the machine alone meanwhile.
"""
import argparse
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "mpi"))
from job import Launcher

MODEL = ("synthetic:llama:layers=6,hidden=1024,ffn=8192*3/2048*3,heads=4,kv_heads=2,head_size=64,vocab=1024,"
         "type=q4_0")
RANKS = 2


@dataclass
class Run:
    took_ms: float  # to the first token
    chunks: int
    split: str
    planned: list   # ms of each stage for a chunk, by the plan
    measured: list  # … when the stages were tried alone, before the run

    def predicted_ms(self, stages):
        return (self.chunks - 1) * max(stages) + sum(stages)


def run(job, arguments, method, prompt, cache):
    tokens = arguments.prompt_tokens
    outcome = job.run("run", arguments.model, "-f", prompt, "-n", 1, "--json", "--method", method, "--cache", cache,
                      "--workload", f"{tokens}:1", "--threads", arguments.threads, "--max-num-batched-tokens",
                      arguments.chunk, ranks=RANKS, limit=600)
    output = outcome.json()
    table = re.findall(r"^ +\d+ +([\d.]+) ms +([\d.]+) ms$", outcome.err, flags=re.M)
    steps, rows = map(int, re.search(r"^ +0(?: +[\d.]+){4} +(\d+) +(\d+)$", outcome.err, flags=re.M).groups())
    assert len(table) == RANKS and rows == len(output["prompt_ids"]) == tokens
    share = tokens / steps / arguments.chunk  # the engine may prefer smaller chunks than those of the plan
    return Run(1000 * tokens / output["timings"]["prompt_tokens_per_s"], steps,
               re.search(r"; units ([\d/]+)", outcome.err)[1], [share * float(planned) for planned, _ in table],
               [share * float(measured) for _, measured in table])


def gain(rounds, ms):
    return median(ms(pair["uniform"]) / ms(pair["dp"]) for pair in rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("mpirun")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=128, help="tokens of the prompt in a microbatch, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tolerance", type=float, default=0.1)
    arguments = parser.parse_args()
    job, rounds = Launcher(arguments.program, arguments.mpirun), []

    print(f"{arguments.model}, {RANKS} ranks of {arguments.threads} thread(s), prompt of {arguments.prompt_tokens}\n"
          "method   units   chunks     ms per chunk: planned     measured   whole: planned  measured  run")
    with tempfile.TemporaryDirectory() as folder:
        prompt = Path(folder) / "prompt"
        prompt.write_text("".join(chr(32 + 7 * i % 95) for i in range(arguments.prompt_tokens)))
        for number in range(arguments.rounds):
            order = ("dp", "uniform") if number % 2 else ("uniform", "dp")
            cache = Path(folder) / f"cache{number}"
            rounds.append({method: run(job, arguments, method, prompt, cache) for method in order})
            for method, r in sorted(rounds[-1].items()):
                planned, measured = (" ".join(f"{ms:6.1f}" for ms in stages) for stages in (r.planned, r.measured))
                print(f"{method:8} {r.split:7} {r.chunks:6} {planned:>26} {measured:>15} "
                      f"{r.predicted_ms(r.planned):12.0f} {r.predicted_ms(r.measured):9.0f} {r.took_ms:7.0f}", flush=True)

    real = gain(rounds, lambda r: r.took_ms)
    predicted = gain(rounds, lambda r: r.predicted_ms(r.planned))
    print(f"gain {real:.3f}; predicted {predicted:.3f} by the plan, "
          f"{gain(rounds, lambda r: max(r.planned)):.3f} by its slowest stages alone, "
          f"{gain(rounds, lambda r: r.predicted_ms(r.measured)):.3f} by the stages as measured\n"
          f"gain ÷ predicted {real / predicted:.3f}")
    return abs(real / predicted - 1) > arguments.tolerance


if __name__ == "__main__":
    sys.exit(main())
