#!/usr/bin/env python3
"""A model file of each weight type: type_models.py PENSTOCK MODEL.gguf [TYPE…]

From SmolLM2's file a small llama is cut (two blocks, rows of 512 and 1536 values, the first 2,048 tokens), and for each
type two files are written: its matrices in the type, and a twin with the values in F32 that the gguf package says they
have. In f32 mode both must give the same log-probabilities to the last bit, as the same weights are multiplied in the
same order. The fast mode must be near that, and the same on all instruction sets.

Types that the gguf package cannot make get random blocks of the weights' deviation, in which every integer occurs.
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

VOCABULARY, HIDDEN, BLOCKS, HEADS, KV_HEADS, HEAD_SIZE = 2048, 512, 2, 8, 2, 64
BYTES_AND_SPECIAL = 17 + 256  # tokens of SmolLM2 before those of the first merge
TEXT = ("The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs; how vexingly quick daft "
        "zebras jump! Sphinx of black quartz, judge my vow.") * 2
FAST_MEAN = 0.2  # mean difference of a log-probability to f32; a wrong scale anywhere makes it several units
ISAS = {"f32": {"avx512": None, "avx2": None}, "fast": {"avx512": None, "avxvnni": None, "avx2": None, "portable": 8}}  # tokens, if slow


def factors():
    """Type → where its blocks have d and m, as types.def says."""
    text = (Path(__file__).parents[2] / "kernels" / "types.def").read_text()
    quantised = r"^PEN_QUANT\((\w+)(?:, \d+){6}, (-?\d+), (-?\d+)"
    found = {Type[name]: (int(d), int(m)) for name, d, m in re.findall(quantised, text, re.M)}
    return {**{Type[name]: None for name in re.findall(r"^PEN_TYPE\((\w+)", text, re.M)}, **found}


# ---- Files ---------------------------------------------------------------------------------------------------------

def cut_matrices(reader):
    """Name → F32 matrix or vector of the small model."""
    q, kv = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    kept = {"token_embd": (VOCABULARY, HIDDEN), "attn_q": (q, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, q), "ffn_gate": (None, HIDDEN), "ffn_up": (None, HIDDEN),
            "ffn_down": (HIDDEN, None)}
    for tensor in reader.tensors:
        block = re.match(r"blk\.(\d+)\.", tensor.name)
        if block and int(block[1]) >= BLOCKS:
            continue
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        rows, cols = kept.get(tensor.name.split(".")[-2], (None, None))
        yield tensor.name, values[:HIDDEN] if values.ndim == 1 else values[:rows, :cols].copy()


def write(path, reader, tensors):
    """tensors: (name, data, type)"""
    writer = GGUFWriter(path, "llama")
    sizes = {"block_count": BLOCKS, "embedding_length": HIDDEN, "attention.head_count": HEADS,
             "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_SIZE, "vocab_size": VOCABULARY}
    lists = {**dict.fromkeys(["tokens", "token_type", "scores"], VOCABULARY), "merges": VOCABULARY - BYTES_AND_SPECIAL}
    for field in reader.fields.values():
        group, key = field.name.split(".", 1)
        if group not in ("llama", "tokenizer"):
            continue
        value = sizes.get(key, field.contents())
        if isinstance(value, list):
            value = value[:lists[key.split(".")[-1]]]
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(random, kind, d, m, values):
    """Blocks for this matrix with its deviation and mean 0; d and m: where their factors are."""
    of_block, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (values.size // of_block, size), np.uint8)

    def put(at, factor):
        if at >= 0:
            blocks[:, at:at + 2] = np.broadcast_to(factor, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)

    def with_factors(of_d, of_m):
        put(d, of_d)
        put(m, of_m)
        return dequantize(blocks, kind)

    if d < 0:  # an exponent
        blocks[:, 0] = 128
        blocks[:, 0] += np.round(np.log2(values.std() / with_factors(1, 0).std())).astype(np.int8).view(np.uint8)
    else:
        balance = -with_factors(1, 0).mean() / with_factors(0, 1).mean() if m >= 0 else 0
        scale = values.std() / with_factors(1, balance).std() * random.uniform(0.75, 1.25, len(blocks))
        scale *= random.choice([-1, 1], len(blocks))
        with_factors(scale, scale * balance)
    return blocks.reshape(len(values), -1)


def matrices_of(random, kind, factors_at, cut):
    """(name, data, type) of the file, and of its twin."""
    for name, values in cut:
        if values.ndim == 1:
            yield (name, values, Type.F32), (name, values, Type.F32)
            continue
        try:
            data = quantize(values, kind)
        except NotImplementedError:
            data = random_blocks(random, kind, *factors_at, values)
        yield (name, data, kind), (name, dequantize(data, kind).reshape(values.shape), Type.F32)


# ---- Comparing -----------------------------------------------------------------------------------------------------

class Program:
    def __init__(self, path, folder):
        self.path, self.folder = path, folder
        units = ["embedding", *(f"block {i}" for i in range(BLOCKS)), "head"]
        (folder / "profile").write_text(json.dumps({"units": [{"name": unit, "time_ms": 1} for unit in units]}))
        (folder / "text").write_text(TEXT)

    def log_probabilities(self, model, mode, isa="auto", tokens=None):
        """Of the text's tokens, or none where this machine lacks the instruction set."""
        line = [self.path, "perplexity", model, "-f", self.folder / "text", "--activations", mode, "--token-logprobs",
                "--json", "--profile", self.folder / "profile", "--workload", "8:8", "--isa", isa,
                *(["--tokens", tokens] if tokens else [])]
        result = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=300)
        if "lacks the instruction set" in result.stderr:
            return np.array([])
        if result.returncode != 0:
            sys.exit(f"{model}: {result.stderr}")
        return np.array(json.loads(result.stdout)["token_logprobs"])

    def all_equal(self, model, mode, expected):
        """Whether every instruction set gives these bits."""
        got = [self.log_probabilities(model, mode, isa, tokens) for isa, tokens in ISAS[mode].items()]
        return all(np.array_equal(one, expected[:len(one)]) for one in got)


def check(program, kind, typed, twin):
    """Prints a line; yields what is wrong."""
    exact = program.log_probabilities(twin, "f32")
    if not program.all_equal(typed, "f32", exact):
        yield f"{kind.name}: in f32 mode not the bits of the same weights in F32"
    fast = program.log_probabilities(typed, "fast")
    if not program.all_equal(typed, "fast", fast):
        yield f"{kind.name}: instruction sets differ in fast mode"
    off = np.abs(fast - exact)
    print(f"{kind.name:6} {typed.stat().st_size / 1e6:5.1f} MB, mean NLL {-exact.mean():.3f}, fast mode off by "
          f"{off.mean():.4f}, at most {off.max():.4f}", flush=True)
    if not off.mean() < FAST_MEAN:
        yield f"{kind.name}: fast mode is too far off"


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    reader, kinds = GGUFReader(sys.argv[2]), factors()
    wanted = [Type[name] for name in sys.argv[3:]] or list(kinds)
    cut, random, wrong = list(cut_matrices(reader)), np.random.default_rng(1), []
    with tempfile.TemporaryDirectory() as folder:
        program = Program(sys.argv[1], Path(folder))
        for kind in wanted:
            pairs = list(matrices_of(random, kind, kinds[kind], cut))
            paths = Path(folder) / f"{kind.name}.gguf", Path(folder) / f"{kind.name}-twin.gguf"
            for path, tensors in zip(paths, zip(*pairs)):
                write(path, reader, tensors)
            wrong += check(program, kind, *paths)
            for path in paths:
                path.unlink()
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
