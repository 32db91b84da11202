#!/usr/bin/env python3
"""The program's speed on a GPU, a line of JSON a load: bench.py --penstock PROGRAM [--smollm2 FILE] [--only NAME]

Runs `penstock bench --json` on random models of Llama 8B's shape and on SmolLM2, and says with each load what a step of
it has to move and to compute: report.py makes shares of what the GPU can do of them. A load that fails is told on
standard error, and the others run all the same; then the exit status is 1. With --tiny models are tiny, to see that it
runs.
"""
import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

SHAPES = {False: "layers=32,hidden=4096,ffn=14336,heads=32,kv_heads=8,vocab=128256,context=8192",
          True: "layers=2,hidden=64,ffn=128,heads=4,kv_heads=2,vocab=128,context=4096"}


@dataclass
class Load:
    name: str
    model: str
    streams: int
    prompt: int
    output: int
    ranks: int = 1
    phases: bool = False  # prompts first, then all decode together
    environment: dict = field(default_factory=dict)  # options by their names there


def loads_of(arguments):
    bf16, q4_k = (f"synthetic:llama:{SHAPES[arguments.tiny]},type={kind}"
                  for kind in ("bf16", "q8_0" if arguments.tiny else "q4_k"))
    prompt, output, many = (128, 8, 3) if arguments.tiny else (2048, 128, 64)
    loads = [Load("8b bf16", bf16, 1, prompt, output), Load("8b q4_k", q4_k, 1, prompt, output)]
    if arguments.smollm2:
        loads.append(Load("smollm2", arguments.smollm2, 1, prompt // 8, 2 * output))
        loads.append(Load("smollm2, eager", arguments.smollm2, 1, prompt // 8, 2 * output,
                          environment={"PENSTOCK_ENFORCE_EAGER": "1"}))
    loads += [Load("8b bf16, deterministic", bf16, 1, prompt, output // 4,
                   environment={"PENSTOCK_DETERMINISTIC": "1"}),
              Load("8b bf16 x64", bf16, many, prompt // 4, output, phases=True),
              Load("8b q4_k x64", q4_k, many, prompt // 4, output, phases=True),
              Load("8b bf16, 2 ranks", bf16, 1, prompt, output, ranks=2)]
    loads = [load for load in loads if arguments.only in (None, load.name)]
    if not loads:
        sys.exit(f"bench.py: there is no load {arguments.only}")
    return loads


def inspect(arguments, model):
    """What a step costs: bytes and operations that follow from the shape."""
    result = subprocess.run([arguments.penstock, "inspect", model, "--json"], capture_output=True, text=True, check=True)
    whole = json.loads(result.stdout)
    shape, units = whole["hparams"], {unit["name"]: unit for unit in whole["units"]}
    head = units["head"]

    def matrices(unit):
        return [tensor for tensor in unit["tensors"] if len(tensor["shape"]) == 2]

    def values(tensors):
        return sum(tensor["shape"][0] * tensor["shape"][1] for tensor in tensors)

    blocks = [unit for name, unit in units.items() if name.startswith("block")]
    head_values = shape["vocab"] * shape["hidden"]
    # Of the embedding a step reads a row a token; with tied embeddings the head is the embedding.
    step_bytes = sum(unit["weight_bytes"] for unit in blocks) + max(head["weight_bytes"], head["tied_bytes"])
    return {"step_bytes": step_bytes, "kv_bytes_per_token": whole["kv_bytes_per_token"],
            "flops_per_token": 2 * sum(values(matrices(unit)) for unit in blocks), "head_flops": 2 * head_values,
            "attention_flops": 4 * shape["layers"] * shape["heads"] * shape["head_size"]}


def run(arguments, load):
    # Ranks divide the cores that they are given, and two would be given two.
    launcher = [arguments.mpirun, "-np", str(load.ranks), "--oversubscribe", "--bind-to", "none"]
    launcher = launcher if load.ranks > 1 else []
    line = [*launcher, arguments.penstock, "bench", load.model, "--json", "--device", arguments.device,
            "--concurrency", str(load.streams), "--prompt-tokens", str(load.prompt), "--output-tokens",
            str(load.output), *(["--phases"] if load.phases else ["--num-prompts", "3"])]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    result = subprocess.run(line, capture_output=True, text=True, timeout=arguments.timeout,
                            env={**os.environ, **root, **load.environment})
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(line)} ended with {result.returncode}: {result.stderr.strip()[-2000:]}")
    whole = json.loads(result.stdout)
    measured = whole["runs"][0]
    costs = [device.get("send_ms", 0) + device.get("wire_ms", 0) for device in whole["plan"]["devices"]]
    name = f"tiny: {load.name}" if arguments.tiny else load.name  # no figure of the report
    return {"kind": "run", "name": name, "model": load.model, "ranks": load.ranks, "streams": load.streams,
            "prompt_tokens": load.prompt, "output_tokens": load.output,
            "prompt_tokens_per_s": measured["prompt_tokens_per_s"],
            "decode_tokens_per_s": measured["decode_tokens_per_s"], "tpot_ms": measured["tpot_ms"]["p50"],
            "ttft_ms": measured["ttft_ms"]["p50"], "link_ms": sum(costs), "stages": measured["stages"],
            **inspect(arguments, load.model)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smollm2", help="the GGUF file; without it that load is left out")
    parser.add_argument("--only", help="the name of one load")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for a load (default: 180)")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    failed = 0
    for load in loads_of(arguments):
        try:
            print(json.dumps(run(arguments, load)), flush=True)
        except (RuntimeError, subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            print(f"bench.py: {load.name}: {error}", file=sys.stderr, flush=True)
            failed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
