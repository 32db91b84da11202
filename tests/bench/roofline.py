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

Of Penstock's own arithmetic with vpdpbusd there is a nearer bound, the *sum of its operations*: they follow each other, so
that one which waits for memory (KV, or weights for few rows) does not overlap one that multiplies, and each takes at least

    max( bytes / B ,  2 rows · weights · slots / I )      or of attention  max( KV / B ,  attention / F )

    slots  of the pipes that multiply, for 1 of vpdpbusd: a block of 32 × 16 weights and a row takes 8 vpdpbusd, and in the same
           pipes a multiplication by both scales, one that adds, and one more for minima or for scales of half a block. V is
           multiplied with two parts of each activation.
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
class Matrix:
    name: str
    type: str
    bytes: float
    weights: float

    def slots(self):
        """As above; None where we multiply in floating point."""
        if not self.type.startswith(("Q", "IQ", "MXFP")):
            return None
        besides = 3 if self.type in ("Q4_1", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K") else 2
        parts = 2 if ".attn_v." in self.name else 1
        return (8 * parts + besides) / 8


@dataclass
class Model:
    layers: list  # of matrices
    head: list
    windows: list  # of each layer: positions seen, or infinity
    heads: int
    kv_heads: int
    head_size: int

    @staticmethod
    def inspect(penstock, path):
        said = json.loads(subprocess.run([penstock, "inspect", path, "--json"], check=True, capture_output=True).stdout)
        matrices = {unit["name"]: [Matrix(t["name"], t["type"], t["bytes"], math.prod(t["shape"]))
                                   for t in unit["tensors"] if len(t["shape"]) > 1] for unit in said["units"]}
        embedding = matrices.pop("embedding")
        head = matrices.pop("head") or embedding
        layers = [matrix for of_layer in matrices.values() for matrix in of_layer]
        hparams = said["hparams"]
        window = float(said["metadata"].get(f"{said['architecture']}.attention.sliding_window", "inf"))
        slides = [said["architecture"] == "gemma3" and (layer + 1) % 6 != 0 for layer in range(hparams["layers"])]
        return Model(layers, head, [window if slide else math.inf for slide in slides],
                     hparams["heads"], hparams["kv_heads"], hparams["head_size"])

    @property
    def bytes(self):
        return sum(matrix.bytes for matrix in self.layers + self.head)

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
    read_s = 1 / speeds["read_gb_s"] / 1e9
    kv = 4 * model.kv_heads * model.head_size * read * read_s
    memory = model.bytes * read_s + kv
    operations = [(matrix, 2 * count * matrix.weights / limits.int8_tops / 1e12)
                  for matrices, count in ((model.layers, rows), (model.head, logits)) for matrix in matrices]
    int8 = sum(seconds for _, seconds in operations)
    attention = 4 * model.heads * model.head_size * seen / limits.f32_tflops / 1e12
    seconds = rows / speeds[phase]
    found = {"roofline": max(memory, int8 + attention), "memory": memory, "int8": int8, "attention": attention}
    if limits.instructions[0].startswith("vpdpbusd") and all(matrix.slots() for matrix, _ in operations):
        found["operations"] = max(kv, attention) + sum(max(matrix.bytes * read_s, multiplying * matrix.slots())
                                                       for matrix, multiplying in operations)
    return {key: least / seconds for key, least in found.items()}
