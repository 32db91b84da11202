#!/usr/bin/env python3
"""The simulator against runs on simulated devices: simulation.py SIM_RUN MPIRUN [--large]

Random profiles with links, uneven units, times that depend on rows and context, devices of different speed: what
sim_run measures under mpirun must be what runtime/simulate.c predicts, within 3 %, the tokens must be the same on any
number of stages, and the engine must find that it is about as fast as its profile. A machine that has other things to do makes a run slower, never faster, so of a few tries the one
nearest counts. --large, by hand: 64 ranks of the GPT-3 175B profile.
"""
import json
import random
import sys
import tempfile
from pathlib import Path

from job import Launcher

EXAMPLE = Path(__file__).resolve().parents[2] / "launch/examples/gpt3-175b.json"
WITHIN = {"makespan_ms": 0.03, "ttft_ms": 0.03, "tpot_ms": 0.03}
SPEED_WITHIN = {"speed": 0.12}  # its plan knows nothing of latencies
TRIES = 5
SCALE = 2  # times take so much longer, and what the machine adds stays the same


def write_profile(path, seed, devices):
    dice = random.Random(seed)
    units = [{"name": "embedding", "time_ms": 1}]
    for i in range(14):
        few = dice.uniform(3, 6)
        units.append({"name": f"block {i}", "time_ms": few, "weight_bytes": 1 << 30, "kv_bytes_per_token": 4096,
                      "rows": [1, 16, 64], "ms": [few, few * 1.2, few * 2], "context": 100,
                      "context_ms": [few * 1.1, few * 1.5, few * 3]})
    units.append({"name": "head", "time_ms": 8, "weight_bytes": 1 << 30})
    profile = {"source": f"random {seed}", "hidden": 64, "units": units,
               "devices": [{"memory_bytes": 40 << 30, "speed": dice.uniform(0.7, 1.4)} for _ in range(devices)],
               "sim": {"vocab": 500, "context": 1024, "latency_ms": dice.uniform(0.2, 2),
                       "gigabytes_per_s": dice.uniform(0.001, 0.01)}}
    path.write_text(json.dumps(profile))
    return str(path)


def compare(launcher, ranks, *arguments, within):
    """The last run's result, and whether the nearest of the tries was near enough."""
    nearest, distance = None, None
    for _ in range(TRIES):
        result = launcher.run(*arguments, ranks=ranks).json()
        measured, predicted = result["measured"], result["predicted"]
        off = {key: (result["speed"] if key == "speed" else measured[key] / predicted[key]) - 1 for key in within}
        far = max(abs(off[key]) / within[key] for key in within)
        if nearest is None or far < distance:
            nearest, distance = off, far
        if distance <= 1:
            break
    good = distance <= 1
    print(f"{ranks} stages: predicted {predicted['makespan_ms']:.0f} ms in {result['simulated_in_ms']:.1f} ms;",
          ", ".join(f"{key.removesuffix('_ms')} {value:+.1%}" for key, value in nearest.items()),
          f"schedule efficiency {measured['schedule']:.3f} (predicted {predicted['schedule']:.3f})",
          "" if good else "  TOO FAR", flush=True)
    return result, good


def main():
    launcher = Launcher(sys.argv[1], sys.argv[2])
    if "--large" in sys.argv[3:]:
        _, good = compare(launcher, 64, "--device", f"sim:{EXAMPLE}", "--requests", 128, "--sequences", 128,
                          "--prompt", 16, "--output", 3, within=WITHIN)
        sys.exit(not good)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(2):
            hashes = set()
            for ranks in (1, 2, 4):
                # Where all stages are alike, and where each is a device of its own.
                profile = write_profile(Path(folder) / f"{seed}-{ranks}.json", seed, ranks if seed else 1)
                result, good = compare(launcher, ranks, "--device", f"sim:{profile}", "--requests", 12, "--sequences",
                                       8, "--prompt", 40, "--output", 12, "--time-scale", SCALE,
                                       within=WITHIN | SPEED_WITHIN)
                hashes.add(result["tokens_hash"])
                failed |= not good
            if len(hashes) != 1:
                print(f"profile {seed}: the tokens depend on the stages: {hashes}")
                failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
