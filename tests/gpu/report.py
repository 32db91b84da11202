#!/usr/bin/env python3
"""What a GPU did, as tables and as one JSON object: report.py LINES [--json FILE], or report.py --of PROGRAM [ARGUMENT…]

LINES holds a JSON object a line, as run.sh, bench.c, limits.cu, bench.py and peer.py print them; of lines about the same
thing the last one counts. `kind` says what a line is: machine, check, limit, kernel, run or peer. Figures that have a
bound stand beside it, and where nothing was measured it says so. With --of the lines are those that a program prints,
and there have to be kernels among them.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

# What tells lines of a kind apart.
KEYS = {"machine": (), "check": ("part", "name"), "limit": ("name",), "run": ("name",), "peer": ("name",),
        "kernel": ("device", "op", "type", "rows", "streams", "context")}
MISSING = "not measured"


def read_lines(lines):
    """{kind: {key: line}}, in the order in which they came first."""
    found = {kind: {} for kind in KEYS}
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            found[line["kind"]][tuple(line[key] for key in KEYS[line["kind"]])] = line
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"report.py: line {number} is none that it knows ({error!r}): {text.strip()[:100]}")
    return found


# ---- Figures that have a bound ---------------------------------------------------------------------------------------

class Measured:
    """What was measured; a figure of what was not is None."""

    def __init__(self, found):
        self.runs = {name: line for (name,), line in found["run"].items()}
        self.limits = {name: line["value"] for (name,), line in found["limit"].items()}
        self.peers = {name: line for (name,), line in found["peer"].items()}

    def step_ms(self, run, rows, context):
        """What a step of decodes takes at least: its bytes at the speed of a copy, or its operations at the peak."""
        copied, peak = self.limits["copy"], self.limits["gemm bf16"]
        moved = run["step_bytes"] + rows * context * run["kv_bytes_per_token"]
        flops = rows * (run["flops_per_token"] + run["head_flops"] + context * run["attention_flops"])
        return max(moved / copied / 1e6, flops / peak / 1e9)

    def prefill_flops(self, run):
        rows = run["prompt_tokens"]
        pairs = rows * (rows + 1) / 2
        return rows * run["flops_per_token"] + pairs * run["attention_flops"] + run["head_flops"]

    def decode(self, name):
        run = self.runs[name]
        return run["decode_tokens_per_s"]

    def copy_share(self, name):
        run = self.runs[name]
        context = run["prompt_tokens"] + run["output_tokens"] / 2
        moved = run["step_bytes"] + context * run["kv_bytes_per_token"]
        return 100 * moved * run["decode_tokens_per_s"] / 1e9 / self.limits["copy"]

    def prefill(self, name):
        return self.runs[name]["prompt_tokens_per_s"]

    def peak_share(self, name):
        run = self.runs[name]
        seconds = run["prompt_tokens"] / run["prompt_tokens_per_s"]
        return 100 * self.prefill_flops(run) / seconds / 1e12 / self.limits["gemm bf16"]

    def roofline_share(self, name):
        run = self.runs[name]
        context = run["prompt_tokens"] + run["output_tokens"] / 2
        took_ms = 1e3 * run["streams"] / run["decode_tokens_per_s"]
        return 100 * self.step_ms(run, run["streams"], context) / took_ms

    def link_share(self, name):
        run = self.runs[name]
        return 100 * run["link_ms"] / run["tpot_ms"]

    def longer(self, name, alone):
        return 100 * (self.runs[name]["tpot_ms"] / self.runs[alone]["tpot_ms"] - 1)

    def peer(self, name, field):
        return self.peers[name][field]

    def ratio(self, name, field):
        return self.runs[name][field] / self.peers["transformers"][field]


# What it is, how it is found, its unit, and what it is to be at least (or, with <, less than).
FIGURES = [
    ("8B bf16, one stream", lambda m: m.decode("8b bf16"), "tok/s", None),
    ("  of the copy's bandwidth", lambda m: m.copy_share("8b bf16"), "%", ">= 85"),
    ("8B Q4_K, one stream", lambda m: m.decode("8b q4_k"), "tok/s", None),
    ("  of the copy's bandwidth", lambda m: m.copy_share("8b q4_k"), "%", ">= 60"),
    ("SmolLM2, one stream", lambda m: m.decode("smollm2"), "tok/s", ">= 2000"),
    ("8B bf16, prompt of 2048", lambda m: m.prefill("8b bf16"), "tok/s", None),
    ("  of cuBLASLt's peak", lambda m: m.peak_share("8b bf16"), "%", ">= 65"),
    ("8B Q4_K, prompt of 2048", lambda m: m.prefill("8b q4_k"), "tok/s", None),
    ("  of cuBLASLt's peak", lambda m: m.peak_share("8b q4_k"), "%", None),
    ("8B bf16, 64 streams", lambda m: m.decode("8b bf16 x64"), "tok/s", None),
    ("  of the roofline", lambda m: m.roofline_share("8b bf16 x64"), "%", ">= 70"),
    ("8B Q4_K, 64 streams", lambda m: m.decode("8b q4_k x64"), "tok/s", None),
    ("  of the roofline", lambda m: m.roofline_share("8b q4_k x64"), "%", None),
    ("8B bf16, 2 ranks on one GPU", lambda m: m.decode("8b bf16, 2 ranks"), "tok/s", None),
    ("  the link, of a step", lambda m: m.link_share("8b bf16, 2 ranks"), "%", "< 1"),
    ("  a step is longer than one rank's by", lambda m: m.longer("8b bf16, 2 ranks", "8b bf16"), "%", None),
    ("PyTorch + transformers, one stream", lambda m: m.peer("transformers", "decode_tokens_per_s"), "tok/s", None),
    ("  ours by theirs", lambda m: m.ratio("8b bf16", "decode_tokens_per_s"), "x", None),
    ("PyTorch + transformers, prompt of 2048", lambda m: m.peer("transformers", "prompt_tokens_per_s"), "tok/s", None),
    ("  ours by theirs", lambda m: m.ratio("8b bf16", "prompt_tokens_per_s"), "x", None),
]


def figures_of(found):
    measured, figures, about = Measured(found), [], ""
    for name, find, unit, bound in FIGURES:
        about = name if not name.startswith(" ") else about
        try:
            value = find(measured)
        except (KeyError, TypeError):  # a line is missing, or has null
            value = None
        holds = None
        if bound and value is not None:
            how, limit = bound.split()
            holds = value >= float(limit) if how == ">=" else value < float(limit)
        figures.append({"of": about, "name": name.strip(), "value": value, "unit": unit, "bound": bound,
                        "holds": holds, "shown": name})
    return figures


# ---- Tables ----------------------------------------------------------------------------------------------------------

def number(value):
    return MISSING if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def share(value, limit):
    return f"{100 * value / limit:4.0f} %" if limit else "   -  "


def print_kernels(found):
    limits = {name: line["value"] for (name,), line in found["limit"].items()}
    copied, peak = limits.get("copy"), limits.get("gemm bf16")
    print(f"| {'operation':17} | {'type':6} | {'rows':>5} | {'context':>7} | {'ms':>9} | {'GB/s':>8} | of copy |"
          f" {'TFLOP/s':>8} | of peak |")
    print("|" + "|".join("-" * width for width in (19, 8, 7, 9, 11, 10, 9, 10, 9)) + "|")
    for line in found["kernel"].values():
        print(f"| {line['op']:17} | {line['type']:6} | {line['rows']:5} | {line['context'] or '':>7} |"
              f" {line['ms']:9.4f} | {line['gb_s']:8.1f} | {share(line['gb_s'], copied):>7} |"
              f" {line['tflop_s']:8.2f} | {share(line['tflop_s'], peak):>7} |")


def print_figures(figures):
    print(f"| {'figure':38} | {'measured':>14} | {'bound':>7} |     |")
    print("|" + "-" * 40 + "|" + "-" * 16 + "|" + "-" * 9 + "|-----|")
    for figure in figures:
        value = number(figure["value"])
        value = value if value == MISSING else f"{value} {figure['unit']}"
        verdict = {None: "", True: "yes", False: "NO"}[figure["holds"]]
        print(f"| {figure['shown']:38} | {value:>14} | {figure['bound'] or '':>7} | {verdict:3} |")


def print_all(found, figures):
    for line in found["machine"].values():
        print(", ".join(f"{name} {value}" for name, value in line.items() if name != "kind"))
    print("limits: " + (", ".join(f"{line['name']} {number(line['value'])} {line['unit']}"
                                  for line in found["limit"].values()) or MISSING))
    if found["kernel"]:
        print()
        print_kernels(found)
    print()
    print_figures(figures)
    bad = [line for line in found["check"].values() if line["outcome"] == "failed"]
    for line in bad:
        print(f"FAILED: {line['part']} {line['name']}")


def program_lines(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"report.py: {command[0]} ended with {result.returncode}")
    return result.stdout.splitlines()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--of", nargs=argparse.REMAINDER, help="a program and its arguments")
    arguments = parser.parse_args()
    if bool(arguments.of) == bool(arguments.lines):
        parser.error("either LINES or --of PROGRAM")
    found = read_lines(program_lines(arguments.of) if arguments.of else arguments.lines.read_text().splitlines())
    wrong = [line for line in found["kernel"].values() if not line["ms"] > 0]
    if wrong or (arguments.of and not found["kernel"]):
        sys.exit(f"report.py: not a time: {wrong[0]}" if wrong else "report.py: no kernel was measured")
    figures = figures_of(found)
    print_all(found, figures)
    if arguments.json:
        counts = {outcome: sum(line["outcome"] == outcome for line in found["check"].values())
                  for outcome in ("passed", "failed", "skipped")}
        whole = {**{f"{kind}s": list(lines.values()) for kind, lines in found.items()}, **counts,
                 "figures": [{name: value for name, value in figure.items() if name != "shown"} for figure in figures]}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
