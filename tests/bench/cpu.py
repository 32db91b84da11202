#!/usr/bin/env python3
"""Penstock on a CPU beside llama.cpp and ik_llama.cpp, and what the machine would allow: cpu.py BUILD MODEL=FILE… [options]

The same file, the same lengths, the same number of threads, in turns; medians are compared. A case is so many prompts of
so many tokens, all processed first, and then their outputs together: `penstock bench --phases`, and llama-batched-bench of
the other two, each with the best of its settings (found in a short run for each model). Tokens are random; speed does not
depend on them. Many streams of the other two share one prompt, which saves their time and changes nothing in what is
reported of those cases, their decoding.

Each speed stands beside the roofline that follows from the machine's limits (bench_limits, roofline.py). Of multiplying
the best counts that was found before any case. Reading memory is measured before and after each run and their mean counts
for that run: on a virtual machine neighbours take up to half of it, for seconds or minutes. A case gets no further round once
it has taken --seconds. What others use of the machine's cores is measured, too, and said where it spoils a figure. Run it
through cpu.sh.
"""
import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from cpu_svg import draw
from roofline import Limits, Model, shares


@dataclass(frozen=True)
class Case:
    prompt: int
    output: int
    streams: int


SHORT, LONG = Case(512, 32, 1), Case(4096, 32, 1)
MANY = {streams: Case(128, 64 if streams == 1 else 32, streams) for streams in (1, 4, 16, 32)}
FIGURES = {  # what is reported of which case
    "prompt 512": (SHORT, "prompt"),
    "prompt 4,096": (LONG, "prompt"),
    **{f"decode, {n} stream{'s' if n > 1 else ''}": (case, "decode") for n, case in MANY.items()},
    "decode at 512": (SHORT, "decode"),
    "decode at 4,096": (LONG, "decode"),
}
PENSTOCK = "Penstock"
OTHERS_MOST = 0.1  # cores; a run during which others had more of them says little
SETTINGS = {"llama.cpp": [["-fa", "on"], ["-fa", "off"]],
            "ik_llama.cpp": [["-fa", "on"], ["-fa", "on", "-rtr"], ["-fa", "off"]]}


# ---- Engines --------------------------------------------------------------------------------------------------------

def core_seconds():
    """Of the whole machine, what a hypervisor took included; and of the processes that we waited for."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    own = os.times()
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK"), own.children_user + own.children_system


def run(line):
    """What it printed, to standard output and to the other; and the cores that others had meanwhile, on average."""
    begin, (all_before, own_before) = time.monotonic(), core_seconds()
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=tempfile.gettempdir())  # llama.log
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, line))}\nended with {done.returncode}: {done.stderr[-2000:]}")
    all_after, own_after = core_seconds()
    others = (all_after - all_before - (own_after - own_before)) / (time.monotonic() - begin)
    return done.stdout, done.stderr, max(others, 0)


class Penstock:
    def __init__(self, program, threads, cache):
        self.line = [program, "bench", "--phases", "--json", "--threads", threads, "--cache", cache]

    def prepare(self, path):
        self.measure(path, Case(16, 4, 1))  # also measures the profile, once

    def measure(self, path, case):
        out, _, others = run([*self.line, path, "--prompt-tokens", case.prompt, "--output-tokens", case.output, "--concurrency",
                      case.streams])
        found = json.loads(out)["runs"][0]
        return {"prompt": found["prompt_tokens_per_s"], "decode": found["decode_tokens_per_s"],
                "others": others}


class BatchedBench:
    """llama-batched-bench, llama.cpp's or ik_llama.cpp's."""

    def __init__(self, folder, threads, settings):
        self.line = [Path(folder).resolve() / "llama-batched-bench", "-t", threads, "-tb", threads, "-b", 2048, "-ub", 512]
        self.choice, self.settings = settings, settings[0]

    def prepare(self, path):
        def speed(settings):
            self.settings = settings
            found = self.measure(path, Case(128, 8, 2))
            return found["prompt"] + found["decode"]

        self.settings = max(self.choice, key=speed)

    def measure(self, path, case):
        context = case.streams * 256 * math.ceil((case.prompt + case.output) / 256)
        *said, others = run([*self.line, *self.settings, "-m", path, "-c", context, "-npp", case.prompt, "-ntg", case.output,
                    "-npl", case.streams, *(["-pps"] if case.streams > 1 else [])])
        row = re.search(rf"^\| +{case.prompt} \| +{case.output} \| +{case.streams} \|(.*)\|$", "\n".join(said),
                        flags=re.M)
        _, _, prompt, _, decode, *_ = map(float, row[1].split("|"))
        return {"prompt": prompt, "decode": decode, "others": others}


# ---- Rounds ---------------------------------------------------------------------------------------------------------

def measure_case(engines, limits, path, case, arguments):
    """{engine: [speeds of each round]}"""
    rounds = {name: [] for name in engines}
    begin = time.monotonic()
    limits.measure()
    before = limits.reading()
    for number in range(arguments.rounds):
        for name in list(engines)[:: 1 if number % 2 == 0 else -1]:
            found = engines[name].measure(path, case)
            after = limits.reading()
            found["read_gb_s"] = (before + after) / 2
            before = after
            rounds[name].append(found)
            disturbed = f"; others had {found['others']:.2f} cores" if found["others"] > OTHERS_MOST else ""
            print(f"{case.streams} × {case.prompt} + {case.output}, {name}: prompt {found['prompt']:.1f}, decode "
                  f"{found['decode']:.1f} tokens/s; memory {found['read_gb_s']:.1f} GB/s{disturbed}", file=sys.stderr, flush=True)
        if time.monotonic() - begin > arguments.seconds:
            break
    return rounds


def measure_model(name, path, engines, limits, arguments):
    wanted = {label: figure for label, figure in FIGURES.items() if selected(arguments.figures, label)}
    for engine in engines.values():
        engine.prepare(path)
    rounds = {case: measure_case(engines, limits, path, case, arguments)
              for case in dict.fromkeys(case for case, _ in wanted.values())}
    figures = {}
    for label, (case, phase) in wanted.items():
        figures[label] = {"case": asdict(case), "phase": phase, "engines": {
            engine: {"rounds": of_case, "tokens_per_s": median(speeds[phase] for speeds in of_case)}
            for engine, of_case in rounds[case].items()}}
    settings = {name: engine.settings for name, engine in engines.items() if name != PENSTOCK}
    return {"name": name, "file": path.name, "settings": settings, "figures": figures}


def add_shares(found, model, limits):
    """Once all is measured, as the limits are the best of all."""
    found["model"] = {**asdict(model), "windows": [w if w < math.inf else None for w in model.windows]}
    for figure in found["figures"].values():
        ours = figure["engines"][PENSTOCK]["tokens_per_s"]
        for engine in figure["engines"].values():
            of_rounds = [shares(model, limits, figure["phase"], Case(**figure["case"]), speeds) for speeds in engine["rounds"]]
            engine["shares"] = {key: median(found[key] for found in of_rounds) for key in of_rounds[0]}
            engine["ratio"] = ours / engine["tokens_per_s"]


# ---- What it says ---------------------------------------------------------------------------------------------------

def percent(share):
    return f"{100 * share:.0f} %" if share is not None else "–"


def table(found, others):
    """Markdown: each figure of a model a line."""
    head = ["", PENSTOCK, *(cell for other in others for cell in (other, "ratio")), "of the roofline", "memory", "int8", "of our operations"]
    lines = [f"| {found['name']}, tokens/s{' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for label, figure in found["figures"].items():
        ours = figure["engines"][PENSTOCK]
        cells = [label, f"{ours['tokens_per_s']:,.1f}"]
        for other in others:
            theirs = figure["engines"][other]
            cells += [f"{theirs['tokens_per_s']:,.1f}", f"{theirs['ratio']:.2f}"]
        cells += [percent(ours["shares"].get(key)) for key in ("roofline", "memory", "int8", "operations")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def limits_text(limits):
    lines = [f"| limits | reading memory, GB/s | int8 ({limits.instructions[0]}), Tops | f32 ({limits.instructions[1]}), "
             "Tflops |", "|---|---:|---:|---:|"]
    for threads, best in limits.counts.items():
        lines.append(f"| {threads} thread{'s' if threads > 1 else ''} | {best['read_gb_s']:.1f} | {best['int8_tops']:.2f} | "
                     f"{best['f32_tflops']:.3f} |")
    return "\n".join(lines) + "\n"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.processor()


def selected(words, name):
    return not words or any(word.strip().lower() in name.lower() for word in words.split(";"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--llama", metavar="DIR", help="a folder with llama.cpp's llama-batched-bench")
    parser.add_argument("--ik", metavar="DIR", help="the same of ik_llama.cpp")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="a case gets no further round after that (%(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help="models whose name has one of the words, "
                        "separated by semicolons")
    parser.add_argument("--figures", default="", metavar="WORDS", help=f"the same of figures: {'; '.join(FIGURES)}")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables to FILE")
    parser.add_argument("--svg", metavar="FILE", help="draw them to FILE")
    arguments = parser.parse_args()

    build = arguments.build.resolve()
    penstock = build / "penstock"
    limits = Limits(build / "tests" / "bench_limits", arguments.threads)
    with tempfile.TemporaryDirectory() as cache:
        engines = {PENSTOCK: Penstock(penstock, arguments.threads, cache)}
        folders = {"llama.cpp": arguments.llama, "ik_llama.cpp": arguments.ik}
        engines.update({name: BatchedBench(folder, arguments.threads, SETTINGS[name])
                        for name, folder in folders.items() if folder})
        results = []
        for name, path in (model.split("=", 1) for model in arguments.models):
            if not selected(arguments.only, name):
                continue
            path = Path(path).resolve()
            found = measure_model(name, path, engines, limits, arguments)
            add_shares(found, Model.inspect(penstock, path), limits)
            results.append((found, path))
            print(table(found, list(engines)[1:]), flush=True)

    for found, path in results:
        add_shares(found, Model.inspect(penstock, path), limits)
    report = {"processor": processor(), "threads": arguments.threads, "limits": limits.counts,
              "instructions": limits.instructions, "models": [found for found, _ in results]}
    text = "\n".join([limits_text(limits), *(table(found, list(engines)[1:]) for found, _ in results)])
    runs = [speeds for found, _ in results for figure in found["figures"].values()
            for engine in figure["engines"].values() for speeds in engine["rounds"]]
    read = sorted(speeds["read_gb_s"] for speeds in runs)
    text += f"\nReading memory beside the {len(runs)} runs: {read[0]:.1f} to {read[-1]:.1f} GB/s, median {median(read):.1f}; " \
            "each run's share of it is of what was measured just before and after.\n"
    if disturbed := sum(speeds["others"] > OTHERS_MOST for speeds in runs):
        text += f"In {disturbed} runs others had more than {OTHERS_MOST:g} cores, at most " \
                f"{max(speeds['others'] for speeds in runs):.2f}.\n"
    print(f"{processor()}, {arguments.threads} threads\n\n{text}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    if arguments.markdown:
        Path(arguments.markdown).write_text(text)
    if arguments.svg:
        Path(arguments.svg).write_text(draw(report))


if __name__ == "__main__":
    main()
