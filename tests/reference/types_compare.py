#!/usr/bin/env python3
"""Holds our dequantisers against the gguf package's: types_compare.py TYPES_DUMP

Blocks of every weight type go through both, and each value must have the same bits: blocks of random bytes, of random
bytes with scales as they are in models, and with each half that is peculiar (zeros, subnormal, the largest, infinite)
as d, m and both. A NaN need only be a NaN.
"""
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

BLOCKS, PER_ROW = 4096, 4  # of one kind, and in a row
PECULIAR = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x3c00, 0xbc00, 0x7bff, 0xfbff,
                     0x7c00, 0xfc00, 0x7e00], np.uint16)


def registry():
    """(type, where its halves are) of each line of types.def, whose numbers must be the package's."""
    text = (Path(__file__).parents[2] / "kernels" / "types.def").read_text()
    line = r"^PEN_(?:TYPE|QUANT)\((\w+), (\d+), (\d+), (\d+)(?:, \d+, \d+, \d+, (-?\d+), (-?\d+))?"
    for name, number, values, size, d, m in re.findall(line, text, re.M):
        kind = GGMLQuantizationType[name]
        assert (int(number), (int(values), int(size))) == (kind, GGML_QUANT_SIZES[kind]), name
        yield kind, [int(at) for at in (d or 0, m or -1) if int(at) >= 0]


def blocks_of(random, size, halves):
    yield random.integers(0, 256, (BLOCKS, size), np.uint8)
    usual = random.integers(0, 256, (BLOCKS, size), np.uint8)
    for at in halves:
        usual[:, at:at + 2] = random.normal(0, 0.02, BLOCKS).astype(np.float16).view(np.uint8).reshape(-1, 2)
    yield usual
    for chosen in [halves[:1], halves[1:], halves]:
        blocks = usual[:PER_ROW * len(PECULIAR)].copy()
        for at in chosen:
            blocks[:, at:at + 2] = random.permutation(np.repeat(PECULIAR, PER_ROW)).view(np.uint8).reshape(-1, 2)
        yield blocks


def ours(dump, kind, blocks):
    values = GGML_QUANT_SIZES[kind][0] * PER_ROW
    output = subprocess.run([dump, kind.name, str(values)], input=blocks.tobytes(), stdout=subprocess.PIPE, check=True)
    return np.frombuffer(output.stdout, np.float32)


def main():
    dump, = sys.argv[1:]
    random, wrong, kinds = np.random.default_rng(1), 0, list(registry())
    for kind, halves in kinds:
        blocks = np.concatenate(list(blocks_of(random, GGML_QUANT_SIZES[kind][1], halves)))
        with np.errstate(all="ignore"):
            expected = dequantize(blocks, kind).ravel()
        got = ours(dump, kind, blocks)
        assert got.size == expected.size
        same = (got.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(got) & np.isnan(expected))
        nan, different = np.isnan(expected).mean(), np.flatnonzero(~same)
        print(f"{kind.name:6} {got.size:8} values, {100 * nan:4.1f} % NaN, {different.size} different")
        for i in different[:3]:
            print(f"  value {i % GGML_QUANT_SIZES[kind][0]} of a block: {got[i]}, expected {expected[i]}")
        wrong += different.size
    assert len(kinds) >= 15, "every line of types.def"
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
