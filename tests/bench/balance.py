#!/usr/bin/env python3
"""Replicas under skewed loads: balance.py BUILD MPIRUN [--cases LIST] [--quick] [--svg FILE] [--markdown FILE] [--json FILE]

On simulated devices, SmolLM2 on one core each, every policy with and without stealing:

    turns      outputs of 10, 100 and 50 tokens in turn on 3 replicas: round-robin gives one of them all the long ones
    lognormal  log-normal lengths on 4, as many requests at a time as run at a time
    bursts     the same lengths, arriving in bursts
    slowed     2 replicas, one of them half as fast as its plan says
    mixed      devices of speed 1, 1, 2 and 3

On the CPU, with the model that PENSTOCK_TEST_MODEL names:

    real       two lengths in turn on 2 replicas of a thread each

What is compared are whole runs, from the first request to the last token. Of `weighted` with stealing against
round-robin without: at least GAIN times the throughput with p99 latency no worse, or p99 at most CUT times as long with
throughput no worse. Of `weighted` with stealing alone: how even it is, what a slowed replica gets, what stealing costs.
"""
import argparse
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/mpi"))
from job import Launcher

PROFILE = ROOT / "tests/bench/smollm2-one-core.json"
POLICIES = ("round-robin", "least-requests", "least-cost", "weighted")
SETUPS = [(policy, steal) for policy in POLICIES for steal in ("off", "on")]
BASE, OURS = ("round-robin", "off"), ("weighted", "on")
GAIN, CUT = 1.20, 0.70
FACTOR = 1.10        # the largest busy time of a replica ÷ the smallest
DESERVED = 0.05      # a slowed replica's share of the tokens, against its share of the speed
STEAL_CORE = 0.001   # of a core, of any replica
UTILISATION, QUEUE = 0.8, 5  # the targets of a replica, under a load that allows them
SLOTS = 8            # requests that run at a time in a replica
CPU_SHARE_LEAST = 0.9


@dataclass
class Case:
    about: str
    replicas: int
    load: list
    profile: dict = field(default_factory=dict)  # besides PROFILE
    speeds: list = None  # of the replicas, where they differ
    time_scale: float = 1  # such that a step takes far longer than waking a process
    meets_targets: bool = False  # of utilisation and queue
    waits: bool = True  # requests wait all the time, but at the end
    real: bool = False


def load(requests, slots=SLOTS, **options):
    return ["--max-num-seqs", slots, "--num-prompts", requests,
            *(word for name, value in options.items() for word in ("--" + name.replace("_", "-"), value))]


CASES = {
    "turns": Case("outputs of 10/100/50 tokens in turn", 3,
                  load(360, prompt_tokens=32, output_tokens="10,100,50", concurrency=72)),
    "lognormal": Case("log-normal lengths", 4,
                      load(180, slots=2, prompt_tokens=32, output_tokens=64, length_spread=1.2, concurrency=12),
                      time_scale=2, meets_targets=True),
    "bursts": Case("log-normal lengths in bursts", 4,
                   load(200, slots=2, prompt_tokens=32, output_tokens=64, length_spread=1, concurrency=8, request_rate=17,
                        burstiness=0.2), time_scale=2, waits=False),
    "slowed": Case("one replica slowed 2×", 2, load(160, prompt_tokens=32, output_tokens=64, concurrency=48),
                   {"sim": {"slowdowns": [{"replica": 1, "factor": 2}]}}, speeds=[1, 0.5]),
    "mixed": Case("devices of speed 1, 1, 2, 3", 4,
                  load(420, prompt_tokens=32, output_tokens=64, concurrency=96),
                  {"devices": [{"name": f"speed {speed}", "speed": speed} for speed in (1, 1, 2, 3)]}, speeds=[1, 1, 2, 3],
                  time_scale=2),
    "real": Case("outputs of 16 and 128 tokens in turn, SmolLM2 on the CPU", 2,
                 load(160, slots=4, prompt_tokens=32, output_tokens="16,128", concurrency=32), real=True),
}
QUICK = Case("outputs of 10/100/50 tokens in turn", 3,
             load(120, prompt_tokens=32, output_tokens="10,100,50", concurrency=72), time_scale=0.6)
QUICK_GAIN = 1.10


@dataclass
class Run:
    result: dict
    series: list  # [second][replica] utilisation

    @property
    def throughput(self):
        return self.result["whole"]["total_tokens_per_s"]

    @property
    def p99(self):
        return self.result["whole"]["e2el_ms"]["p99"]

    @property
    def replicas(self):
        return self.result["replicas"]

    def mean(self, key):
        return sum(replica[key] for replica in self.replicas) / len(self.replicas)

    @property
    def cpu_share(self):
        return sum(s["busy_cpu_s"] for s in self.result["stages"]) / sum(s["busy_s"] for s in self.result["stages"])


@dataclass
class Bound:
    what: str
    said: str
    good: bool

    def __str__(self):
        return f"{self.what:44} {self.said}{'' if self.good else ': MISSED'}"


def series_of(log):
    lines = re.findall(r"info: replica (0: utilisation .*)", log)
    return [[float(value) for value in re.findall(r"\d+: utilisation ([\d.]+)", line)] for line in lines][1:]


class Bench:
    def __init__(self, arguments, folder):
        self.job = Launcher(arguments.build / "penstock", arguments.mpirun)
        self.folder = folder
        self.jobs = arguments.jobs
        self.bounds = []
        self.runs = {}

    def device(self, name, case):
        if case.real:
            return [os.environ["PENSTOCK_TEST_MODEL"], "--threads", 1, "--cache", self.folder]
        profile = json.loads(PROFILE.read_text())
        for key, value in case.profile.items():
            profile[key] = {**profile[key], **value} if isinstance(profile.get(key), dict) else value
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(profile))
        return ["--device", f"sim:{path}", "--time-scale", case.time_scale]

    def run(self, case, device, setup):
        outcome = self.job.run("bench", *device, "--dp", case.replicas, *case.load, "--policy", setup[0], "--steal",
                               setup[1], "--max-queue", 1000, "--queue-timeout", 600, "--log-level", "info", "--json",
                               ranks=case.replicas, limit=300)
        return Run(outcome.json()["runs"][0], series_of(outcome.err))

    def compare(self, name, case, setups=SETUPS):
        """All setups of a case; simulated ones side by side, and first the two that are compared."""
        device = self.device(name, case)
        order = sorted(setups, key=lambda setup: setup not in (BASE, OURS))
        with ThreadPoolExecutor(1 if case.real else self.jobs) as pool:
            runs = dict(zip(order, pool.map(lambda setup: self.run(case, device, setup), order)))
        self.runs[name] = {setup: runs[setup] for setup in setups}
        return self.runs[name]

    def bound(self, what, said, good):
        self.bounds.append(Bound(what, said, good))


# ---- Bounds ---------------------------------------------------------------------------------------------------------

def check_gain(bench, name, runs):
    base, ours = runs[BASE], runs[OURS]
    gain, cut = ours.throughput / base.throughput, ours.p99 / base.p99
    bench.bound(f"{name}: against round-robin", f"{gain:.2f} × throughput, {cut:.2f} × p99 latency (one of: at least "
                f"{GAIN} ×, p99 no longer; p99 at most {CUT} ×, no fewer tokens)",
                gain >= GAIN and cut <= 1 or cut <= CUT and gain >= 1)


def check_evenness(bench, name, case, ours):
    result = ours.result
    worst = result["worst_window_factor"] if result["windows"] else None
    said = f"{result['load_balance_factor']:.3f}" + (f", worst of {result['windows']} windows {worst:.3f}" if worst else "")
    bench.bound(f"{name}: load-balance factor", f"{said} (below {FACTOR})",
                result["load_balance_factor"] < FACTOR and (not case.waits or (worst or FACTOR) < FACTOR) and
                (worst or 0) < FACTOR)


def check_share(bench, name, case, ours):
    tokens, speeds = [replica["tokens"] for replica in ours.replicas], case.speeds
    off = max(abs(t / sum(tokens) * sum(speeds) / s - 1) for t, s in zip(tokens, speeds))
    shares = "/".join(f"{100 * t / sum(tokens):.1f}" for t in tokens)
    deserved = "/".join(f"{100 * s / sum(speeds):.1f}" for s in speeds)
    bench.bound(f"{name}: share of the tokens, %", f"{shares}, deserved {deserved}, {100 * off:.1f} % apart (within "
                f"{100 * DESERVED:.0f} %)", off <= DESERVED)


def check_targets(bench, name, ours):
    least = min(replica["utilisation"] for replica in ours.replicas)
    longest = max(replica["queue_mean"] for replica in ours.replicas)
    bench.bound(f"{name}: utilisation, queue", f"at least {least:.3f}, at most {longest:.2f} (targets: above {UTILISATION}, "
                f"below {QUEUE})", least > UTILISATION and longest < QUEUE)


def check_stealing(bench, name, runs):
    most = max(replica["steal_core_share"] for run in runs.values() for replica in run.replicas)
    bench.bound(f"{name}: stealing, of a core", f"{100 * most:.4f} % (below {100 * STEAL_CORE} %)", most < STEAL_CORE)


def core_share(runs):
    """Of their busy time, what the two that are compared had a core for."""
    return min(runs[BASE].cpu_share, runs[OURS].cpu_share)


def check(bench, name, case, runs):
    if not case.real or core_share(runs) >= CPU_SHARE_LEAST:
        check_gain(bench, name, runs)
        check_evenness(bench, name, case, runs[OURS])
    if case.speeds:
        check_share(bench, name, case, runs[OURS])
    if case.meets_targets:
        check_targets(bench, name, runs[OURS])
    check_stealing(bench, name, runs)


# ---- As a table -----------------------------------------------------------------------------------------------------

HEAD = ("| policy | stealing | tokens/s | against round-robin | steady tokens/s | latency ms p50 / p99 | utilisation | queue "
        "mean / most | factor, worst window | stolen | stealing, of a core | TTFT ms predicted / measured, off by |\n"
        "|--------|----------|---------:|--------------------:|----------------:|---------------------:|------------:|"
        "--------------------:|---------------------:|-------:|--------------------:|--------------------------------------:|")


def factor_text(factor):
    return "∞" if factor is None else f"{factor:.2f}"


def row(setup, run, base):
    result, whole = run.result, run.result["whole"]
    replicas = run.replicas
    worst = factor_text(result["worst_window_factor"]) if result["windows"] else "—"
    return (f"| {setup[0]} | {setup[1]} | {run.throughput:.0f} | {100 * (run.throughput / base.throughput - 1):+.0f} % "
            f"| {result['total_tokens_per_s']:.0f} | {whole['e2el_ms']['p50']:.0f} / {run.p99:.0f} "
            f"| {min(r['utilisation'] for r in replicas):.2f} … {max(r['utilisation'] for r in replicas):.2f} "
            f"| {run.mean('queue_mean'):.1f} / {max(r['queue_most'] for r in replicas)} "
            f"| {factor_text(result['load_balance_factor'])}, {worst} | {sum(r['stolen'] for r in replicas)} "
            f"| {100 * max(r['steal_core_share'] for r in replicas):.4f} % "
            f"| {whole['predicted_ttft_ms']['mean']:.0f} / {whole['ttft_ms']['mean']:.0f}, "
            f"{whole['prediction_error_ms']['mean']:.0f} |")


def table(name, case, runs):
    lines = [f"{name}: {case.about}, {case.replicas} replicas", "", HEAD]
    lines += [row(setup, run, runs[BASE]) for setup, run in runs.items()]
    return "\n".join(lines) + "\n"


# ---- As a picture ---------------------------------------------------------------------------------------------------

WIDTH, LEFT = 900, 56
COLOURS = {"round-robin": "#8a94a0", "least-requests": "#e5893a", "least-cost": "#4aa564", "weighted": "#4c8bd0"}
LINES = ("#4c8bd0", "#e5893a", "#4aa564", "#c8577a")
STYLE = ("text{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#25303b}.title{font-size:16px;font-weight:600}"
         ".faint{fill:#687684}.small{font-size:11px}.ground{fill:#fff}.grid{stroke:#dfe4e9}"
         ".r0{fill:#4c8bd0}.r1{fill:#e5893a}.r2{fill:#4aa564}@media(prefers-color-scheme:dark){text{fill:#e3e8ed}.faint{fill:#93a0ad}.ground{fill:#12171d}.grid{stroke:#2b343d}}")


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def grid(y, label, right=WIDTH - 24):
    return f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>' + text(LEFT - 8, y + 4, label, "faint small", "end")


def draw_bars(bench, top, height):
    """Throughput of every setup of every case, against round-robin."""
    most = max(run.throughput / runs[BASE].throughput for runs in bench.runs.values() for run in runs.values())
    y_of = lambda value: top + height * (1 - value / (1.05 * most))
    parts = [grid(y_of(value), f"{value:g} ×") for value in (0, 0.5, 1, 1.5, 2) if value < 1.05 * most]
    group = (WIDTH - 24 - LEFT) / len(bench.runs)
    bar = (group - 28) / len(SETUPS)
    for g, (name, runs) in enumerate(bench.runs.items()):
        left = LEFT + g * group + 14
        for i, (setup, run) in enumerate(runs.items()):
            value = run.throughput / runs[BASE].throughput
            parts.append(f'<rect x="{left + i * bar:.1f}" y="{y_of(value):.1f}" width="{bar - 2:.1f}" '
                         f'height="{y_of(0) - y_of(value):.1f}" rx="1.5" fill="{COLOURS[setup[0]]}" '
                         f'fill-opacity="{1 if setup[1] == "on" else 0.45}"><title>{name}, {setup[0]}, stealing {setup[1]}: '
                         f'{run.throughput:.0f} tokens/s</title></rect>')
        ours = runs[OURS].throughput / runs[BASE].throughput
        parts.append(text(left + (len(SETUPS) - 0.5) * bar, y_of(ours) - 5, f"{100 * (ours - 1):+.0f} %", "small", "middle"))
        parts.append(text(left + group / 2 - 14, y_of(0) + 17, f"{name}, R = {len(runs[BASE].replicas)}", "", "middle"))
    return parts


def draw_legend(y):
    parts, x = [], LEFT
    for policy, colour in COLOURS.items():
        parts += [f'<rect x="{x}" y="{y - 10}" width="10" height="12" rx="1.5" fill="{colour}" fill-opacity="0.45"/>',
                  f'<rect x="{x + 12}" y="{y - 10}" width="10" height="12" rx="1.5" fill="{colour}"/>',
                  text(x + 28, y, policy)]
        x += 140
    return parts + [text(x, y, "pale: without stealing", "faint")]


def draw_series(run, title, left, right, top, height, seconds):
    parts = [text(left, top - 12, title)]
    y_of = lambda value: top + height * (1 - value)
    x_of = lambda second: left + (right - left) * second / seconds
    for value in (0, 0.5, 1):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}"/>')
        parts.append(text(left - 8, y_of(value) + 4, f"{100 * value:.0f} %", "faint small", "end"))
    for second in range(0, int(seconds) + 1, 10):
        parts.append(text(x_of(second), top + height + 17, f"{second} s", "faint small", "middle"))
    for r in range(len(run.replicas)):
        points = [(i + 1, values[r]) for i, values in enumerate(run.series)]
        line = " ".join(f"{x_of(x):.1f},{y_of(min(y, 1)):.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{LINES[r % len(LINES)]}" stroke-width="1.8">'
                     f"<title>replica {r}</title></polyline>")
    return parts


def draw(bench):
    parts = [text(LEFT, 30, "Tokens per second against round-robin", "title"),
             text(LEFT, 50, "whole runs, simulated replicas", "faint"), *draw_bars(bench, 70, 200),
             *draw_legend(318)]
    bottom = 340
    if "turns" in bench.runs:
        base, ours = (bench.runs["turns"][setup] for setup in (BASE, OURS))
        seconds = max(len(base.series), len(ours.series)) + 1
        middle = LEFT + (WIDTH - 24 - LEFT) / 2
        parts += [text(LEFT, 372, "How busy each replica is, outputs of 10/100/50 tokens in turn", "title"),
                  *(text(WIDTH - 24 - 90 * (2 - r), 372, f"● replica {r}", f"r{r}", "end") for r in range(3)),
                  *draw_series(base, "round-robin", LEFT, middle - 30, 412, 110, seconds),
                  *draw_series(ours, "weighted, with stealing", middle + 30, WIDTH - 24, 412, 110, seconds)]
        bottom = 556
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" role="img" '
            f'aria-label="Throughput of each policy, and how busy replicas are">\n<style>{STYLE}</style>\n'
            f'<rect class="ground" width="{WIDTH}" height="{bottom}"/>\n' + "\n".join(parts) + "\n</svg>\n")


# ---- All of it ------------------------------------------------------------------------------------------------------

def quick(bench):
    """The worst of round-robin, in a few seconds: what must hold on any machine that is not quite drowned."""
    runs = bench.compare("quick", QUICK, (BASE, OURS))
    print(table("quick", QUICK, runs), flush=True)
    base, ours = runs[BASE], runs[OURS]
    gain = ours.throughput / base.throughput
    bench.bound("quick: against round-robin", f"{gain:.2f} × throughput (above {QUICK_GAIN})", gain > QUICK_GAIN)
    bench.bound("quick: load-balance factors", f"{base.result['load_balance_factor']:.2f} and "
                f"{ours.result['load_balance_factor']:.2f}",
                ours.result["load_balance_factor"] < 1.25 < 1.5 < base.result["load_balance_factor"])
    for setup, run in runs.items():
        bench.bound(f"quick: {setup[0]}: a line a second", f"{len(run.series)} lines",
                    len(run.series) >= 2 and all(len(values) == QUICK.replicas for values in run.series) and
                    all(0 <= value <= 1 for values in run.series for value in values))


def cases(bench, names):
    tables = []
    for name in names:
        case = CASES[name]
        if case.real and not os.environ.get("PENSTOCK_TEST_MODEL"):
            print(f"{name}: left out, PENSTOCK_TEST_MODEL names no model\n", flush=True)
            continue
        runs = bench.compare(name, case)
        tables.append(table(name, case, runs))
        print(tables[-1], flush=True)
        if case.real and core_share(runs) < CPU_SHARE_LEAST:
            print(f"no bounds: others used the cores, {100 * core_share(runs):.0f} % of the busy time were ours\n", flush=True)
        check(bench, name, case, runs)
    return tables


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("mpirun")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--jobs", type=int, default=4, help="simulated runs at a time")
    parser.add_argument("--quick", action="store_true", help="one small case, for a test")
    parser.add_argument("--svg", metavar="FILE", help="draw the figures to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables to FILE")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        tables = quick(bench) if arguments.quick else cases(bench, arguments.cases.split(","))
    print("bounds")
    for bound in bench.bounds:
        print(f"  {bound}")
    if arguments.svg:
        Path(arguments.svg).write_text(draw(bench))
    if arguments.markdown:
        Path(arguments.markdown).write_text("\n".join(tables))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(
            {"runs": {name: [{"policy": setup[0], "steal": setup[1], "utilisation": run.series, **run.result}
                             for setup, run in runs.items()] for name, runs in bench.runs.items()},
             "bounds": [vars(bound) for bound in bench.bounds]}, indent=1) + "\n")
    return not all(bound.good for bound in bench.bounds)


if __name__ == "__main__":
    sys.exit(main())
