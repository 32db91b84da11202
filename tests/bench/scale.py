#!/usr/bin/env python3
"""Pipelines of up to 64 stages: scale.py BUILD MPIRUN [--parts LIST] [--stages LIST] [--tries N] [--json FILE]

On simulated devices, GPT-3 175B's profile, under mpirun, with the simulator's figures beside the measured ones:

    steady    a closed load, 8 sequences for each microbatch in flight
    poisson   log-normal lengths at random times, at 80 % of the speed that the plan promises
    split     the exact split against the others on 8 stages: what the plan promised, and what became of it

In the simulator alone:

    schedule  the schedule against the plain one (fixed chunks, undivided decode) under four loads, on GPT-3's profile,
              whose units take one time per microbatch, so that it matters little what is in one, and on one core with
              SmolLM2, where it does

On the CPU, with each model that PENSTOCK_TEST_MODEL and PENSTOCK_TEST_GEMMA name:

    cpu       2 and 3 ranks of one thread, measured and simulated: tokens a second where the cores were ours, and else
              what a row costs a stage, by the clock of its own thread

All times are before --time-scale, which is such that the slowest stage takes STEP_MS. Fails where a bound is missed,
after --tries tries: whatever else runs on the machine makes a run slower, never faster.
"""
import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/mpi"))
from job import Launcher

PROFILE = ROOT / "launch/examples/gpt3-175b.json"
CPU_PROFILE = ROOT / "tests/bench/smollm2-one-core.json"
PARTS = ("steady", "poisson", "split", "schedule", "cpu")
STREAMS_EACH = 8  # for each of S + 1 microbatches
PROMPT, OUTPUT = 64, 8
SPREAD = 0.8
LOAD = 0.8  # of what the plan promises
STEADY_LEAST, POISSON_LEAST = 0.97, 0.90  # of schedule efficiency
PLAIN_LEAST = 1.2  # times the plain schedule's efficiency, where what is in a microbatch matters
SIM_WITHIN, SPLIT_WITHIN, CPU_WITHIN = 0.03, 0.03, 0.10
SPLIT_STAGES = 8
METHODS = ("dp", "uniform", "parameters")
CPU_STREAMS, CPU_PROMPT, CPU_OUTPUT = 16, 128, 64
CPU_SHARE_LEAST = 0.95  # below it somebody else had the cores


def step_ms(stages):
    """Of the slowest stage: what two cores can wake so many processes for."""
    return 30 if stages <= 32 else 40


@dataclass
class Bound:
    what: str
    value: float
    least: float = None
    within: float = None  # of 0

    @property
    def good(self):
        return self.value >= self.least if self.within is None else abs(self.value) <= self.within

    def __str__(self):
        said = (f"{self.value:8.3f}, at least {self.least}" if self.within is None else
                f"{100 * self.value:+7.2f} %, within {100 * self.within:.0f} %")
        return f"{self.what:62} {said}{'' if self.good else ': MISSED'}"


class Bench:
    def __init__(self, arguments):
        self.job = Launcher(arguments.build / "penstock", arguments.mpirun)
        self.harness = arguments.build / "tests/bench_schedule"
        self.tries = arguments.tries
        self.bounds = []
        self.report = {}

    def plan_ms(self, stages):
        return self.job.run("plan", "--profile", PROFILE, "--stages", stages, "--memory", "100TiB", "--json").json()["max_ms"]

    def simulate_devices(self, stages, *options):
        """A run on simulated devices; its streams fill the pipeline."""
        streams = STREAMS_EACH * (stages + 1)
        return self.job.run("bench", "--device", f"sim:{PROFILE}", "--time-scale", step_ms(stages) / self.plan_ms(stages),
                            "--memory", "100TiB", "--prompt-tokens", PROMPT, "--output-tokens", OUTPUT, "--concurrency",
                            streams, "--num-prompts", (2 if stages > 8 else 6) * streams, "--json", *options, ranks=stages,
                            limit=600).json()["runs"][0]

    def best(self, run, bounds_of):
        """Of some tries the one that misses its bounds least."""
        best = None
        for _ in range(self.tries):
            result = run()
            bounds = list(bounds_of(result))
            missed = sum(not bound.good for bound in bounds)
            if best is None or missed < best[0]:
                best = missed, result, bounds
            if missed == 0:
                break
        self.bounds += best[2]
        return best[1]

    def finish(self, file):
        print("\nbounds")
        for bound in self.bounds:
            print(f"  {bound}")
        if file:
            self.report["bounds"] = [{**vars(bound), "good": bound.good} for bound in self.bounds]
            Path(file).write_text(json.dumps(self.report, indent=1) + "\n")
        return not all(bound.good for bound in self.bounds)


# ---- On simulated devices -------------------------------------------------------------------------------------------

def apart(run, key):
    return run[key] / run["simulated"][key] - 1


def print_head(title):
    print(f"\n{title}\n\n"
          "| stages | schedule (simulator) | pipeline |    split | decode t/s (simulator) apart | (plan) | TTFT ms p50 (simulator) "
          "| ITL ms p50/p99 (simulator)        |\n"
          "|-------:|---------------------:|---------:|---------:|-----------------------------:|-------:|------------------------:"
          "|----------------------------------:|", flush=True)


def print_run(stages, run):
    simulated = run["simulated"]
    print(f"| {stages:6} | {run['schedule_efficiency']:11.3f} ({simulated['schedule_efficiency']:.3f}) "
          f"| {run['pipeline_efficiency']:8.3f} | {run['split_efficiency']:8.3f} "
          f"| {run['decode_tokens_per_s']:8.2f} ({simulated['decode_tokens_per_s']:8.2f}) {100 * apart(run, 'decode_tokens_per_s'):+6.2f} % "
          f"| {run['predicted']['decode_tokens_per_s']:6.1f} "
          f"| {run['ttft_ms']['p50']:12.0f} ({simulated['ttft_ms']['p50']:8.0f}) "
          f"| {run['itl_ms']['p50']:7.0f}/{run['itl_ms']['p99']:<7.0f} ({simulated['itl_ms']['p50']:7.0f}/{simulated['itl_ms']['p99']:<7.0f}) |",
          flush=True)


def run_bounds(name, stages, least):
    def bounds(run):
        yield Bound(f"{name}, {stages} stages: schedule efficiency", run["schedule_efficiency"], least=least)
        yield Bound(f"{name}, {stages} stages: run against simulator, tokens/s", apart(run, "decode_tokens_per_s"),
                    within=SIM_WITHIN)
    return bounds


def steady(bench, stages_list):
    print_head(f"steady: {STREAMS_EACH} (S + 1) streams, prompts of {PROMPT} tokens, outputs of {OUTPUT}")
    rows = bench.report["steady"] = {}
    for stages in stages_list:
        rows[stages] = bench.best(lambda: bench.simulate_devices(stages), run_bounds("steady", stages, STEADY_LEAST))
        print_run(stages, rows[stages])


def poisson(bench, stages_list):
    print_head(f"poisson: {100 * LOAD:.0f} % of what the plan promises, lengths log-normal around the same means "
               f"({SPREAD} of their logarithm)")
    rows = bench.report["poisson"] = {}
    for stages in stages_list[::2]:  # the simulator has them all, below
        streams, slowest = STREAMS_EACH * (stages + 1), bench.plan_ms(stages)
        rate = LOAD * streams / (stages * slowest / 1000 * OUTPUT)  # a token of every stream while S microbatches pass
        rows[stages] = bench.best(lambda: bench.simulate_devices(stages, "--request-rate", rate, "--length-spread", SPREAD),
                                  run_bounds("poisson", stages, POISSON_LEAST))
        rows[stages]["request_rate"] = rate
        print_run(stages, rows[stages])


def split(bench, _):
    print(f"\nsplit: the steady load on {SPLIT_STAGES} stages\n\n| method     | slowest ms | decode t/s | dp's speed over it | promised |\n"
          "|------------|-----------:|-----------:|-------------------:|---------:|", flush=True)
    rows = bench.report["split"] = {}
    dp = None
    for method in METHODS:  # the first one is what the others are compared with
        plan = bench.job.run("plan", "--profile", PROFILE, "--stages", SPLIT_STAGES, "--method", method, "--json").json()

        promised = plan["max_ms"] / plan["methods"]["dp"]["max_ms"]

        def gain(run):
            return (dp or run)["decode_tokens_per_s"] / run["decode_tokens_per_s"]

        def bounds(run):
            if dp:
                yield Bound(f"split: dp over {method}, against the plan's promise", gain(run) / promised - 1,
                            within=SPLIT_WITHIN)

        run = bench.best(lambda: bench.simulate_devices(SPLIT_STAGES, "--method", method), bounds)
        dp = dp or run
        rows[method] = {"max_ms": plan["max_ms"], "promised": promised, "gain": gain(run), "run": run}
        print(f"| {method:10} | {plan['max_ms']:10.1f} | {run['decode_tokens_per_s']:10.2f} | {gain(run):18.3f} | {promised:8.3f} |",
              flush=True)


# ---- In the simulator alone -----------------------------------------------------------------------------------------

def schedule(bench, stages_list):
    """bench_schedule's rows, ours and the plain one's side by side."""
    listed = ",".join(map(str, stages_list))
    lines = subprocess.run([bench.harness, "--json", "--stages", listed, PROFILE, CPU_PROFILE], check=True, text=True,
                           stdout=subprocess.PIPE).stdout.splitlines()
    rows = bench.report["schedule"] = [json.loads(line) for line in lines]
    print("\nschedule: ours and the plain one (fixed chunks, undivided decode), simulated\n")
    columns = ((".3f", lambda row: row["schedule_efficiency"]), (".1f", lambda row: row["tokens_per_s"]),
               (".0f", lambda row: row["ttft_ms"]["p50"]), (".1f", lambda row: row["itl_ms"]["p50"]),
               (".1f", lambda row: row["itl_ms"]["p99"]))
    profile = None
    for ours, plain in zip(rows[::2], rows[1::2]):
        if ours["profile"] != profile:
            profile = ours["profile"]
            print(f"{profile}\n\n| stages | load    | schedule efficiency |      tokens/s       |     TTFT ms p50     "
                  "|     ITL ms p50      |     ITL ms p99      |\n|-------:|---------|" + 5 * "--------------------:|")
        cells = (f"{format(get(ours), how):>8} : {format(get(plain), how):<8}" for how, get in columns)
        print(f"| {ours['stages']:6} | {ours['load']:7} | " + " | ".join(cells) + " |")
        if ours["load"] != "poisson":
            continue
        if profile == rows[0]["profile"]:
            bench.bounds.append(Bound(f"simulator, poisson, {ours['stages']} stages: schedule efficiency",
                                      ours["schedule_efficiency"], least=POISSON_LEAST))
        else:
            bench.bounds.append(Bound(f"simulator, poisson, SmolLM2, {ours['stages']} stages: efficiency ÷ plain's",
                                      ours["schedule_efficiency"] / plain["schedule_efficiency"], least=PLAIN_LEAST))


# ---- For real -------------------------------------------------------------------------------------------------------

def row_costs(run):
    """(measured, simulated) of each stage: milliseconds of a core per row."""
    return [(1e3 * stage["busy_cpu_s"] / stage["rows"], 1e3 * beside["busy_s"] / beside["rows"])
            for stage, beside in zip(run["stages"], run["simulated"]["stages"])]


def cpu_share(run):
    return sum(stage["busy_cpu_s"] for stage in run["stages"]) / sum(stage["busy_s"] for stage in run["stages"])


def cpu_bounds(name, ranks):
    def bounds(run):
        if cpu_share(run) >= CPU_SHARE_LEAST:
            yield Bound(f"{name}, {ranks} ranks: run against simulator, tokens/s", apart(run, "total_tokens_per_s"),
                        within=CPU_WITHIN)
        else:
            measured, simulated = map(sum, zip(*row_costs(run)))
            yield Bound(f"{name}, {ranks} ranks: run against simulator, core time a row", measured / simulated - 1,
                        within=CPU_WITHIN)
    return bounds


def cpu(bench, _):
    models = [Path(os.environ[name]) for name in ("PENSTOCK_TEST_MODEL", "PENSTOCK_TEST_GEMMA") if os.environ.get(name)]
    if not models:
        print("\ncpu: left out, PENSTOCK_TEST_MODEL and PENSTOCK_TEST_GEMMA name no model", flush=True)
        return
    print(f"\ncpu: {CPU_STREAMS} streams, prompts of {CPU_PROMPT} tokens, outputs of {CPU_OUTPUT}; ranks of one thread, "
          f"{os.cpu_count()} cores\n\n"
          "| model                | ranks | total t/s (simulator) apart   | schedule (simulator) | core had | core ms a row "
          "(simulator) apart, by stage\n"
          "|----------------------|------:|------------------------------:|---------------------:|---------:|--------------"
          "-----------------------------", flush=True)
    rows = bench.report["cpu"] = []
    for model in models:
        for ranks in (2, 3):
            run = bench.best(lambda: bench.job.run(
                "bench", model, "--threads", 1, "--prompt-tokens", CPU_PROMPT, "--output-tokens", CPU_OUTPUT,
                "--concurrency", CPU_STREAMS, "--num-prompts", 2 * CPU_STREAMS, "--cache", "-", "--json", ranks=ranks,
                limit=600).json()["runs"][0], cpu_bounds(model.stem, ranks))
            rows.append({"model": model.stem, "ranks": ranks, "run": run})
            simulated = run["simulated"]
            costs = "; ".join(f"{m:.3f} ({s:.3f}) {100 * (m / s - 1):+.1f} %" for m, s in row_costs(run))
            print(f"| {model.stem[:20]:20} | {ranks:5} | {run['total_tokens_per_s']:8.1f} ({simulated['total_tokens_per_s']:8.1f}) "
                  f"{100 * apart(run, 'total_tokens_per_s'):+6.1f} % | {run['schedule_efficiency']:11.3f} "
                  f"({simulated['schedule_efficiency']:.3f}) | {100 * cpu_share(run):6.1f} % | {costs}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("mpirun")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--stages", default="2,4,8,16,32,64")
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    stages = [int(text) for text in arguments.stages.split(",")]
    for part in arguments.parts.split(","):
        {"steady": steady, "poisson": poisson, "split": split, "schedule": schedule, "cpu": cpu}[part](bench, stages)
    return bench.finish(arguments.json)


if __name__ == "__main__":
    sys.exit(main())
