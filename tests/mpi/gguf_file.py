"""GGUF files for the tests of this folder: small ones of a llama model, good and others; and where a file has what."""
import struct

U16, U32, I32, F32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9
TYPE_F32 = 0


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value_of(value):
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, list):
        items = [value_of(item) for item in value]  # all of one type, each with the type's number before it
        return struct.pack("<I", ARRAY) + items[0][:4] + struct.pack("<Q", len(value)) + b"".join(i[4:] for i in items)
    form, kind = {float: ("f", F32), bool: ("?", BOOL), int: ("I", U32)}[type(value)]
    return struct.pack("<I" + form, kind, value)


def alphabet():
    """The 256 characters by which byte-level BPE writes bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(len(others))]


def model(layers=2, hidden=32, ffn=64, heads=2, keys=None, types=None, shapes=None, offsets=None, count=None,
          raw=False):
    """A file whose weights are all 1/64. `keys` and what follows replace what is right: values of keys (None: left out), types,
    shapes and offsets of tensors by name, the number of tensors. `raw`: the keys and the shapes instead."""
    tokens = alphabet()
    values = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.context_length": 256,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [f"{tokens[0]} {tokens[0]}"],
        **(keys or {}),
    }
    values["tokenizer.ggml.tokens"] = tokens + [tokens[0] * 2]
    values = {key: value for key, value in values.items() if value is not None}
    square = [hidden, hidden]
    block = {"attn_norm": [hidden], "attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square,
             "ffn_norm": [hidden], "ffn_gate": [hidden, ffn], "ffn_up": [hidden, ffn], "ffn_down": [ffn, hidden]}
    tensors = {"token_embd.weight": [hidden, len(tokens) + 1]}
    for layer in range(layers):
        tensors.update({f"blk.{layer}.{name}.weight": shape for name, shape in block.items()})
    tensors["output_norm.weight"] = [hidden]

    if raw:
        return values, tensors
    return whole(values, tensors, types or {}, shapes or {}, offsets or {}, count)


def whole(values, tensors, types, shapes, offsets, count=None, split=b"", split_keys=0, with_data=True):
    """A file of these keys and tensors; `split` are more keys, as they stand in the file."""
    start = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors) if count is None else count, len(values) + split_keys)
    start += b"".join(text(key) + value_of(value) for key, value in values.items()) + split
    offset, data = 0, b""
    for name, shape in tensors.items():
        bytes_here = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        told = shapes.get(name, shape)
        start += text(name) + struct.pack(f"<I{len(told)}Q", len(told), *told)
        start += struct.pack("<IQ", types.get(name, TYPE_F32), offsets.get(name, offset))
        data += struct.pack("<f", 1 / 64) * (bytes_here // 4 if with_data else 0)
        offset += bytes_here  # a multiple of 32
    return start + bytes(-len(start) % 32) + data


def header(**options):
    """The header of a model, which may be larger than any machine."""
    return whole(*model(**options, raw=True), {}, {}, {}, with_data=False)


def split(folder, stem, count, **options):
    """The model in `count` files, as gguf-split writes them; returns their paths. The first has no tensors."""
    values, tensors = model(**options, raw=True)
    names, paths = list(tensors), []
    for no in range(count):
        keys = text("split.no") + struct.pack("<IH", U16, no) + text("split.count") + struct.pack("<IH", U16, count)
        keys += text("split.tensors.count") + struct.pack("<Ii", I32, len(names))
        first, last = (no - 1) * len(names) // (count - 1), no * len(names) // (count - 1)
        own = {name: tensors[name] for name in names[max(first, 0):last]}
        paths.append(folder / f"{stem}-{no + 1:05d}-of-{count:05d}.gguf")
        paths[-1].write_bytes(whole(values if no == 0 else {}, own, {}, {}, {}, split=keys, split_keys=3))
    return paths


class Reader:
    """The positions of a file's tensors, read without Penstock's help."""

    SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def __init__(self, path):
        self.file = open(path, "rb")
        _, _, tensors, keys = self.take("<4sIQQ")
        alignment = 32
        for _ in range(keys):
            name = self.string()
            value = self.value(*self.take("<I"))
            if name == b"general.alignment":
                alignment = value
        found = [self.tensor() for _ in range(tensors)]
        self.header_end = self.file.tell()
        start = -(-self.header_end // alignment) * alignment
        self.file.seek(0, 2)
        ends = sorted(offset for _, offset in found)[1:] + [self.file.tell() - start]
        self.file.close()
        # A tensor ends, but for padding, where the next begins.
        self.tensors = {name.decode(): (start + offset, start + end)
                        for (name, offset), end in zip(sorted(found, key=lambda item: item[1]), ends)}

    def take(self, form):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))

    def string(self):
        return self.file.read(*self.take("<Q"))

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.take("<IQ")
            for _ in range(count):
                self.value(kind)
            return None
        return int.from_bytes(self.file.read(self.SCALARS[kind]), "little")

    def tensor(self):
        name, (dimensions,) = self.string(), self.take("<I")
        self.take(f"<{dimensions}Q")
        _, offset = self.take("<IQ")
        return name, offset
