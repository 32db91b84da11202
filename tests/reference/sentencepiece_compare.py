#!/usr/bin/env python3
"""Holds our SentencePiece tokeniser against the originals: sentencepiece_compare.py TOKENIZER_DUMP [GEMMA.gguf]

Small BPE models are trained with the sentencepiece library, with every setting that a GGUF file can carry on and off,
and written to GGUF as converters do it. Thousands of generated texts (always the same) go through the library and
through tokenizer_dump: ids, and the text that they decode to, must be equal. Control tokens, which the library does not
find in a text, cut it: what is between them goes through the library piece by piece.

The library makes U+FFFD of a byte that is not UTF-8, and we its byte token. There we must do what the library does with
a character that no vocabulary has, but for that token.

With Gemma's file the same is done with its vocabulary, through the library (made into a model of its own) and through
Hugging Face's tokenizers, which made the ids of gemma-3-270m-q4_k_m.json; those must come out too.
"""

import codecs
import io
import json
import re
import struct
import sys
import tempfile
from pathlib import Path

import sentencepiece
from gguf import GGUFReader, GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from tokenizer_compare import CODE, WORDS, Texts, ours

TEXTS, GEMMA_TEXTS = 2000, 6000
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
STRANGER = "\U0010fffe"  # no character, and in no vocabulary

USER_SYMBOLS = ["<user>", "<user>:", "antidis", "\n\n", "\n\n\n", SPACE * 2, SPACE * 4, "日本", "é"]
# name: options of the trainer. Without split_by_whitespace tokens reach across spaces.
TRAINED = {
    "plain": {},
    "byte fallback": dict(byte_fallback=True),
    "no prefix": dict(byte_fallback=True, add_dummy_prefix=False),
    "spaces removed": dict(byte_fallback=True, remove_extra_whitespaces=True),
    "spaces removed, no prefix, no bytes": dict(remove_extra_whitespaces=True, add_dummy_prefix=False),
    "user symbols": dict(byte_fallback=True, user_defined_symbols=USER_SYMBOLS),
    "user symbols, no prefix, no bytes": dict(add_dummy_prefix=False, user_defined_symbols=USER_SYMBOLS),
    "user symbols, spaces removed": dict(byte_fallback=True, remove_extra_whitespaces=True,
                                         user_defined_symbols=USER_SYMBOLS),
    "across spaces": dict(byte_fallback=True, split_by_whitespace=False, allow_whitespace_only_pieces=True),
    "across spaces, user symbols": dict(split_by_whitespace=False, allow_whitespace_only_pieces=True,
                                        split_by_number=False, split_by_unicode_script=False,
                                        user_defined_symbols=USER_SYMBOLS),
}


# ---- The library's model files: just enough of Protocol Buffers -----------------------------------------------------

def varint(number):
    out = bytearray()
    while number > 0x7f:
        out.append(number & 0x7f | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def fields(data):
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            value = number()
        else:
            length = 4 if key & 7 == 5 else number()
            value = data[at:at + length]
            at += length
        yield key >> 3, value


class Model:
    """A model of the library: its pieces (text, score, kind) and its settings."""

    def __init__(self, pieces, byte_fallback, add_dummy_prefix, remove_extra_whitespaces):
        self.pieces = pieces
        self.byte_fallback = byte_fallback
        self.add_dummy_prefix = add_dummy_prefix
        self.remove_extra_whitespaces = remove_extra_whitespaces
        self.bos = next(i for i, piece in enumerate(pieces) if piece[0] in ("<s>", "<bos>"))
        controls = sorted((piece for piece, _, kind in pieces if kind == CONTROL), key=len, reverse=True)
        self.controls = re.compile("(" + "|".join(map(re.escape, controls)) + ")")
        self.ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.proto())

    @classmethod
    def trained(cls, texts, **options):
        settings = dict(byte_fallback=False, add_dummy_prefix=True, remove_extra_whitespaces=False) | options
        proto = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=proto, model_type="bpe", vocab_size=5000,
            character_coverage=0.98, normalization_rule_name="identity", minloglevel=2, num_threads=2,
            control_symbols=["<|im_start|>", "<|im_end|>"], **settings)
        pieces = []
        for number, value in fields(proto.getvalue()):
            if number == 1:
                piece = dict(fields(value))
                pieces.append((piece[1].decode(), *struct.unpack("<f", piece[2]), piece.get(3, NORMAL)))
        return cls(pieces, *(settings[name] for name in ("byte_fallback", "add_dummy_prefix",
                                                         "remove_extra_whitespaces")))

    def with_unused(self):
        """The same with some tokens that may be made but must not stay."""
        pieces = [(piece, score, UNUSED if kind == NORMAL and len(piece) > 1 and i % 5 == 0 else kind)
                  for i, (piece, score, kind) in enumerate(self.pieces)]
        return Model(pieces, self.byte_fallback, self.add_dummy_prefix, self.remove_extra_whitespaces)

    def proto(self):
        pieces = b"".join(field(1, field(1, piece.encode()) + field(2, float(score)) + field(3, kind))
                          for piece, score, kind in self.pieces)
        trainer = field(3, 2) + field(35, int(self.byte_fallback))  # BPE
        normaliser = (field(1, b"identity") + field(3, int(self.add_dummy_prefix))
                      + field(4, int(self.remove_extra_whitespaces)) + field(5, 1))
        return pieces + field(2, trainer) + field(3, normaliser)

    def write(self, path):
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # Converters spell spaces in user-defined tokens in either way.
        writer.add_token_list([piece.replace(SPACE, " ") if kind == USER_DEFINED and i % 2 else piece
                               for i, (piece, _, kind) in enumerate(self.pieces)])
        writer.add_token_scores([score for _, score, _ in self.pieces])
        writer.add_token_types([kind for _, _, kind in self.pieces])
        writer.add_bos_token_id(self.bos)
        writer.add_unk_token_id(self.ids["<unk>"])
        writer.add_add_space_prefix(self.add_dummy_prefix)
        writer.add_remove_extra_whitespaces(self.remove_extra_whitespaces)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()

    def encode(self, text):
        """Ids, without BOS."""
        ids = []
        for i, part in enumerate(self.controls.split(text)):
            ids += [self.ids[part]] if i % 2 else self.processor.encode(part)
        return ids

    def decode(self, ids):
        return self.processor.decode(ids)


class Gemma(Model):
    """The vocabulary of Gemma's file."""

    def __init__(self, path):
        contents = {key: value.contents() for key, value in GGUFReader(path).fields.items() if "tokenizer.ggml" in key}
        tokens, kinds = contents["tokenizer.ggml.tokens"], contents["tokenizer.ggml.token_type"]
        unknown = contents["tokenizer.ggml.unknown_token_id"]
        # The file has spaces in user-defined tokens and calls <unk> a control token; the library has it otherwise.
        pieces = [(token.replace(" ", SPACE) if kind == USER_DEFINED else token, score,
                   UNKNOWN if i == unknown else kind)
                  for i, (token, score, kind) in enumerate(zip(tokens, contents["tokenizer.ggml.scores"], kinds))]
        super().__init__(pieces, True, contents["tokenizer.ggml.add_space_prefix"], False)

    def hugging_face(self):
        """As transformers makes it from the file, with the merges that the vocabulary implies."""
        merges = [(score, len(piece[:cut]), len(piece[cut:]), piece[:cut], piece[cut:])
                  for piece, score, kind in self.pieces for cut in range(1, len(piece))
                  if kind in (NORMAL, USER_DEFINED) and piece[:cut] in self.ids and piece[cut:] in self.ids]
        # Spaces, tabs and line feeds come first, in the order of the file; -1000 is no score.
        first = {piece: -i for i, (piece, _, kind) in enumerate(self.pieces) if kind == USER_DEFINED}
        merges.sort(key=lambda m: (m[3] + m[4] in first, first.get(m[3] + m[4], m[0]), m[1], m[2]), reverse=True)
        tokenizer = Tokenizer(models.BPE(vocab=self.ids, merges=[merge[3:] for merge in merges], fuse_unk=True,
                                         unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
        kinds = [(AddedToken(piece, normalized=False, special=kind == CONTROL), kind)
                 for piece, _, kind in self.pieces if kind in (CONTROL, USER_DEFINED)]
        tokenizer.add_special_tokens([token for token, kind in kinds if kind == CONTROL])
        tokenizer.add_tokens([token for token, kind in kinds if kind == USER_DEFINED])
        return tokenizer


# ---- Comparing -----------------------------------------------------------------------------------------------------

class Tally:
    def __init__(self, name):
        self.name, self.texts, self.different = name, 0, 0

    def see(self, equal, text, *lines):
        self.texts += 1
        self.different += not equal
        if not equal and self.different <= 3:
            print(f"{self.name}: {text!r}", *lines, sep="\n  ")

    def result(self):
        print(f"{self.name}: {self.texts} texts, {self.different} different")
        return self.different


def compare(dump, path, model, name, texts):
    tally = Tally(name)
    for text, (ids, decoded) in zip(texts, ours(dump, path, [text.encode() for text in texts])):
        expected = model.encode(text)
        equal = ids == [model.bos, *expected]
        if not model.controls.search(text):
            shown = model.pieces[model.bos][0] + model.decode(expected)
            equal = equal and decoded.decode() == shown
        tally.see(equal, text, f"ours    {ids[1:]}", f"library {expected}", f"back    {decoded!r}")
    return tally.result()


def compare_broken(dump, path, model, name, texts):
    tally = Tally(f"{name}, not UTF-8")
    stranger = [model.ids.get(f"<0x{byte:02X}>") for byte in STRANGER.encode()]
    for text, (ids, decoded) in zip(texts, ours(dump, path, texts)):
        wrong = []
        codecs.register_error("stranger", lambda e: (wrong.extend(e.object[e.start:e.end]),
                                                     (STRANGER * (e.end - e.start), e.end))[1])
        reference = model.encode(text.decode(errors="stranger"))
        expected, wrong = [], iter(wrong)
        while reference:
            if model.byte_fallback and reference[:4] == stranger:
                expected.append(model.ids[f"<0x{next(wrong):02X}>"])
                del reference[:4]
            else:
                expected.append(reference.pop(0))
        decoded.decode()
        tally.see(ids == [model.bos, *expected], text, f"ours     {ids[1:]}", f"expected {expected}")
    return tally.result()


def compare_hugging_face(dump, path, model, texts):
    """Where the two differ we side with the library: runs of more spaces than the longest token has."""
    tally = Tally("Gemma against Hugging Face")
    reference = model.hugging_face()
    texts = [text for text in texts if not re.search(f"[ {SPACE}]{{32}}", text)]
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    for text, encoding, (ids, decoded) in zip(texts, encodings, ours(dump, path, [text.encode() for text in texts])):
        back = reference.decode([model.bos, *encoding.ids], skip_special_tokens=False)
        tally.see(ids == [model.bos, *encoding.ids] and decoded.decode() == back, text, f"ours    {ids[1:]}",
                  f"theirs  {encoding.ids}", f"back    {decoded!r}")
    return tally.result()


def check_reference(dump, path):
    tally = Tally("Gemma's reference")
    reference = json.loads((Path(__file__).parent / "gemma-3-270m-q4_k_m.json").read_text())
    texts = [(prompt["prompt"], prompt["ids"]) for prompt in reference["prompts"]]
    texts.append((reference["text"], reference["token_ids"]))
    for (text, expected), (ids, _) in zip(texts, ours(dump, path, [text.encode() for text, _ in texts])):
        tally.see(ids[:len(expected)] == expected, text, f"ours {ids}", f"reference {expected}")
    return tally.result()


def generated(count, special):
    texts = Texts(special)
    fixed = ["", " ", "  ", "\0", SPACE, f" {SPACE} ", f"a{SPACE}b", f"{SPACE}{SPACE}x{SPACE}", CODE, " ".join(WORDS), "a" * 5000,
             " " * 5000 + "x", "\n" * 100, "☃☄★", "x☃☄ ☃☄y", "<|im_start|>" * 50, " ".join(special)]
    broken = [bytes(range(256)), b"\xff\xfe", b"\xed\xa0\x80 surrogate", b"\xf0\x9f\x91", b"\xe2\x96", b"a \xe2\x96\x81\xe2"]
    return (fixed + [texts.text() for _ in range(count - len(fixed))], broken + [texts.broken() for _ in range(count // 4)])


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    dump = sys.argv[1]
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unk>", "<0x41>", *(s.replace(SPACE, " ") for s in USER_SYMBOLS)]
    texts, broken = generated(TEXTS, special)
    corpus = Texts(["antidisestablishmentarianism", "<user>"])
    corpus = [line for _ in range(4000) for line in corpus.text().split("\n") if "\0" not in line]
    differences = 0
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.gguf")
        for name, options in TRAINED.items():
            trained = Model.trained(corpus, **options)
            for model, suffix in ((trained, ""), (trained.with_unused(), ", some tokens unused")):
                model.write(path)
                differences += compare(dump, path, model, name + suffix, texts)
                differences += compare_broken(dump, path, model, name + suffix, broken)
    if len(sys.argv) == 3:
        gemma = Gemma(sys.argv[2])
        names = [piece for piece, _, kind in gemma.pieces if kind in (CONTROL, USER_DEFINED)]
        texts, broken = generated(GEMMA_TEXTS, [name.replace(SPACE, " ") for name in names])
        differences += check_reference(dump, sys.argv[2])
        differences += compare(dump, sys.argv[2], gemma, "Gemma", texts)
        differences += compare_broken(dump, sys.argv[2], gemma, "Gemma", broken)
        differences += compare_hugging_face(dump, sys.argv[2], gemma, texts)
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
