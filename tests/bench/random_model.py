#!/usr/bin/env python3
"""A file of Llama-3.2-1B's shape with random weights of one type: random_model.py TYPE FILE

For measuring speed only: what a 1B model costs does not depend on what it knows. Matrices are of TYPE (Q4_0, Q4_K, Q8_0),
the embedding, which is the head as well, is Q6_K unless that is Q8_0: as in the files that llama-quantize makes. Needs the
packages of tests/requirements.txt.
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFWriter, TokenType, dequantize

BLOCKS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY = 16, 2048, 8192, 32, 8, 64, 128256
D_AND_MIN_AT = {Type.Q4_0: (0, None), Type.Q4_K: (0, 2), Type.Q6_K: (208, None), Type.Q8_0: (0, None)}
MATRICES = {"attn_q": (HEADS * HEAD_SIZE, HIDDEN), "attn_k": (KV_HEADS * HEAD_SIZE, HIDDEN),
            "attn_v": (KV_HEADS * HEAD_SIZE, HIDDEN), "attn_output": (HIDDEN, HEADS * HEAD_SIZE), "ffn_gate": (FFN, HIDDEN),
            "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}


def random_matrix(random, kind, rows, cols):
    """Blocks of random bytes, the factors of each such that values have mean 0 and deviation 1/√cols."""
    values, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * cols // values, size), np.uint8)
    d_at, min_at = D_AND_MIN_AT[kind]

    def put(at, factor):
        if at is not None:
            blocks[:, at:at + 2] = np.float16([factor]).view(np.uint8)

    def sample(d, m):
        put(d_at, d)
        put(min_at, m)
        return dequantize(blocks[:4096], kind)

    least = -sample(1, 0).mean() / sample(0, 1).mean() if min_at is not None else 0
    d = cols ** -0.5 / sample(1, least).std()
    sample(d, d * least)
    return blocks.reshape(rows, -1)


def write(kind, path):
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    writer.add_name(f"random 1B {kind.name}")
    writer.add_context_length(131072)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(VOCABULARY)

    # GPT-2's names of the bytes, one merge, and names for the rest
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    tokens = [*map(chr, plain), *(chr(256 + i) for i in range(len(others))), "ab"]
    tokens += [f"<|{i}|>" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.CONTROL] * (VOCABULARY - 257))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)

    head = Type.Q8_0 if kind == Type.Q8_0 else Type.Q6_K
    writer.add_tensor("token_embd.weight", random_matrix(random, head, VOCABULARY, HIDDEN), raw_dtype=head)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for block in range(BLOCKS):
        for name, shape in MATRICES.items():
            writer.add_tensor(f"blk.{block}.{name}.weight", random_matrix(random, kind, *shape), raw_dtype=kind)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if len(sys.argv) != 3 or sys.argv[1].upper() not in ("Q4_0", "Q4_K", "Q8_0"):
        sys.exit(__doc__.splitlines()[0])
    path = Path(sys.argv[2])
    part = path.with_suffix(".part")
    write(Type[sys.argv[1].upper()], part)
    part.rename(path)


if __name__ == "__main__":
    main()
