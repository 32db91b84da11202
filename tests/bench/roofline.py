"""How fast a step could be at best: a model's weights, KV and attention against the limits of the machine.

A step takes rows through the layers and some of them through the head. On a machine that reads B bytes a second and does
I int8 and F float operations a second it takes at least

    max( (weights + KV) / B ,  2 (rows · layer weights + logits · head weights) / I  +  attention / F )

    weights    bytes of the layers' and the head's matrices, as in the file; read once a step
    KV         4 bytes (K and V as f16) · KV heads · head size, for each layer and each position that is read: once by all
               rows of a sequence in a step, however many they are
    attention  4 heads · head size (two products, of two operations per number), for each row, layer and position seen

With P positions before it, a row sees P + 1 of them, or its layer's window. What an engine does besides, such as more
precise arithmetic than this, is its own affair: the share of the roofline that it reaches says what that costs.
"""
import json
import math
import subprocess
from dataclasses import dataclass


@dataclass
class Limits:
    """Of some threads; the best that was measured so far."""
    program: str
    threads: int
    read_gb_s: float = 0
    int8_tops: float = 0
    f32_tflops: float = 0
    instructions: tuple = ()
    counts: dict = None  # thread count → the same three

    def measure(self):
        done = subprocess.run([self.program, str(self.threads)], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        self.instructions = found["int8"], found["f32"]
        self.counts = self.counts or {}
        for limits in found["limits"]:
            best = self.counts.setdefault(limits.pop("threads"), limits)
            best.update({key: max(value, best[key]) for key, value in limits.items()})
        vars(self).update(self.counts[self.threads])

    def reading(self):
        """GB/s of reading memory at this moment: where others share the machine's memory, it changes by half."""
        done = subprocess.run([self.program, str(self.threads), "read"], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)["read_gb_s"]


@dataclass
class Model:
    bytes: float
    layer_weights: float
    head_weights: float
    windows: list  # of each layer: positions seen, or infinity
    heads: int
    kv_heads: int
    head_size: int

    @staticmethod
    def inspect(penstock, path):
        said = json.loads(subprocess.run([penstock, "inspect", path, "--json"], check=True, capture_output=True).stdout)
        matrices = {unit["name"]: [t for t in unit["tensors"] if len(t["shape"]) > 1] for unit in said["units"]}
        embedding = matrices.pop("embedding")
        head = matrices.pop("head") or embedding
        layers = [tensor for tensors in matrices.values() for tensor in tensors]
        hparams = said["hparams"]
        window = float(said["metadata"].get(f"{said['architecture']}.attention.sliding_window", "inf"))
        slides = [said["architecture"] == "gemma3" and (layer + 1) % 6 != 0 for layer in range(hparams["layers"])]
        return Model(sum(t["bytes"] for t in head + layers), sum(math.prod(t["shape"]) for t in layers),
                     sum(math.prod(t["shape"]) for t in head), [window if slide else math.inf for slide in slides],
                     hparams["heads"], hparams["kv_heads"], hparams["head_size"])

    def seen(self, first, rows):
        """Positions that rows at first, first + 1, … see, over all layers."""
        return sum(min(first + row + 1, window) for window in self.windows for row in range(rows))


def shares(model, limits, phase, case, speeds):
    """Of the roofline, and of its parts, that a run's tokens a second are, where memory gave what it did beside that run. A
    phase is "prompt", each prompt in one step of its own, or "decode", all streams in each step, halfway through their
    outputs."""
    if phase == "prompt":
        rows, logits, first, runs = case.prompt, 1, 0, 1
    else:
        rows, logits, first, runs = case.streams, case.streams, case.prompt + case.output // 2, case.streams
    seen = runs * model.seen(first, rows // runs)
    read = runs * sum(min(first + rows // runs, window) for window in model.windows)
    memory = (model.bytes + 4 * model.kv_heads * model.head_size * read) / speeds["read_gb_s"] / 1e9
    int8 = 2 * (rows * model.layer_weights + logits * model.head_weights) / limits.int8_tops / 1e12
    attention = 4 * model.heads * model.head_size * seen / limits.f32_tflops / 1e12
    seconds = rows / speeds[phase]
    return {"roofline": max(memory, int8 + attention) / seconds, "memory": memory / seconds, "int8": int8 / seconds,
            "attention": attention / seconds}
