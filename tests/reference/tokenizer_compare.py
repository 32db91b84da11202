#!/usr/bin/env python3
"""Holds our tokenizer against Hugging Face's: tokenizer_compare.py MODEL.gguf TOKENIZER_DUMP

A `tokenizers.Tokenizer` is made from the file's own vocabulary and merges, and thousands of generated texts (always the
same) go through it and through tokenizer_dump: ids, and the text that they decode to, must be equal. Then the same for
every other line of pretokenizers.def, on a vocabulary-only copy of the file that names it. Texts that are not UTF-8,
which Hugging Face cannot be given, must come back with U+FFFD where the bytes were wrong.

Characters are those that Unicode 14 assigns: what a newer one is (a letter, a symbol) depends on the library's tables.
"""

import random
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

from gguf import GGUFReader, GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

TEXTS = 8000
CONTROL, USER_DEFINED = 3, 4

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(use_regex=True):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def digits_then_gpt2():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])


# As in the models' tokenizer.json: pre-tokenizer, and whether whole words come before merges.
KINDS = {
    "smollm": (byte_level, False),
    "starcoder": (digits_then_gpt2, False),
    "gpt-2": (byte_level, False),
    "llama-bpe": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level(False)]),
                  True),
}


class Vocabulary:
    def __init__(self, path):
        fields = GGUFReader(path).fields
        self.kind = fields["tokenizer.ggml.pre"].contents()
        self.tokens = fields["tokenizer.ggml.tokens"].contents()
        self.types = fields["tokenizer.ggml.token_type"].contents()
        self.merges = fields["tokenizer.ggml.merges"].contents()
        self.special = [t for t, kind in zip(self.tokens, self.types) if kind in (CONTROL, USER_DEFINED)]

    def hugging_face(self, kind):
        pre_tokenizer, whole_words = KINDS[kind]
        tokenizer = Tokenizer(models.BPE(
            vocab={token: i for i, token in enumerate(self.tokens)},
            merges=[tuple(merge.split(" ")) for merge in self.merges], ignore_merges=whole_words))
        tokenizer.pre_tokenizer = pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in self.special])
        return tokenizer

    def write(self, path, kind):
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()


# ---- Texts ---------------------------------------------------------------------------------------------------------

SCRIPTS = [(0x20, 0x7e), (0xa0, 0x24f), (0x370, 0x3ff), (0x400, 0x4ff), (0x531, 0x58f), (0x591, 0x5f4), (0x600, 0x6ff),
           (0x900, 0x97f), (0xe01, 0xe5b), (0x1100, 0x11ff), (0x1e00, 0x1fff), (0x2000, 0x206f), (0x2070, 0x218b),
           (0x2190, 0x23ff), (0x2460, 0x24ff), (0x2600, 0x27bf), (0x3000, 0x30ff), (0x3200, 0x33ff), (0x4e00, 0x9fff),
           (0xac00, 0xd7a3), (0xe000, 0xe010), (0xfb00, 0xfb4f), (0xfe00, 0xfe0f), (0xff01, 0xff9f),
           (0x10330, 0x1034a), (0x1d400, 0x1d7ff), (0x1f300, 0x1f6ff), (0x1f900, 0x1f9ff), (0x20000, 0x2a6df),
           (0x30000, 0x3134a), (0xe0020, 0xe007f), (0, 0x10fff)]
SPACES = (" " * 8) + "\t\n\r\n\n  \u00a0\u0085\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\v\f\x1c\x1f"
WORDS = """the The of and to a in is it for was on are as with his they at be this have from don't we'll I'M they'RE it's
 'd '' 's'S 'ſ naïve Straße façade Ελλάδα Россия العربية हिन्दी ภาษาไทย 日本語 中文字符 한국어 👩‍👩‍👧‍👦 🇫🇷 👍🏽 e\u0301 ½ ² Ⅷ ٣٤٥ १२३ 〇 0 7 42 1999
 3.14159 1e-10 0xDEADBEEF 192.168.0.1 2024-02-29 100,000 __init__ foo_bar CamelCase kebab-case a.b.c() i++ != === -> => //
 /* */ {} [] "" `` $x #include <stdio.h> https://example.org/?q=a&b=c%20d user@host \\n \\u00e9 ... -- — … !!! ??? ()[]{}<>
 antidisestablishmentarianism Donaudampfschifffahrtsgesellschaft aaaaaaaaaaaaaaaaaaaaaaaaaaaa xyzzyxyzzy""".split()
CODE = """def fibonacci(n):\n    if n < 2:\n        return n\n\treturn fibonacci(n-1) + fibonacci(n - 2)\n\n
int main(void) {\r\n    for (int i = 0; i < 10; i++) printf("%d\\n", i);\r\n}\r\n
SELECT * FROM t WHERE a='x' AND b>=10;   -- comment\n{"key": [1, 2.5e3, null, true], "k\\"": "v"}\n<p class="a">&nbsp;</p>\n"""


def assigned(character):
    return unicodedata.category(character) not in ("Cn", "Cs")


class Texts:
    def __init__(self, special):
        self.random = random.Random(4711)
        self.special = special

    def character(self, script):
        while not assigned(character := chr(self.random.randint(*script))):
            pass
        return character

    def spaces(self):
        return "".join(self.random.choices(SPACES, k=self.random.randint(1, 6)))

    def part(self):
        r = self.random
        choice = r.randrange(9)
        if choice <= 1:
            return r.choice(WORDS)
        if choice == 2:
            return r.choice(["", " ", "  ", "\n"]) + r.choice(WORDS) + r.choice([" ", "", "."])
        if choice == 3:
            return self.spaces()
        if choice == 4:
            script = r.choice(SCRIPTS)
            return "".join(self.character(script) for _ in range(r.randint(1, 12)))
        if choice == 5:
            return str(r.randrange(10 ** r.randint(1, 20)))
        if choice == 6:
            start = r.randrange(len(CODE))
            return CODE[start:start + r.randint(1, 60)]
        if choice == 7:
            return r.choice(self.special) if r.random() < 0.7 else r.choice(self.special)[:-1]
        return "".join(chr(r.randrange(128)) for _ in range(r.randint(1, 10)))

    def text(self):
        return "".join(self.part() for _ in range(self.random.randint(1, 10)))

    def broken(self):
        """Bytes that are hardly UTF-8."""
        r = self.random
        data = bytearray(self.text().encode())
        for _ in range(r.randint(1, 6)):
            data.insert(r.randint(0, len(data)), r.randrange(128, 256))
        return bytes(data[r.randint(0, 2):])


# ---- Comparing -----------------------------------------------------------------------------------------------------

def ours(dump, model, texts):
    """(ids, decoded bytes) of each text."""
    stdin = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    lines = subprocess.run([dump, model], input=stdin, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()
    assert len(lines) == len(texts), "one line for each text"
    for line in lines:
        ids, text = line.split("\t")
        yield [int(i) for i in ids.split()], bytes.fromhex(text)


def compare(dump, model, kind, vocabulary, texts):
    reference = vocabulary.hugging_face(kind)
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    differences = 0
    for text, encoding, (ids, decoded) in zip(texts, encodings, ours(dump, model, [t.encode() for t in texts])):
        expected = reference.decode(encoding.ids, skip_special_tokens=False)
        if ids == encoding.ids and decoded.decode() == expected:
            continue
        differences += 1
        if differences <= 5:
            print(f"{kind}: {text!r}\n  ours      {ids}\n  reference {encoding.ids}\n  back      {decoded!r}")
    print(f"{kind}: {len(texts)} texts, {differences} different")
    return differences


def check_broken(dump, model, vocabulary, texts):
    """What comes back is the text, as far as the vocabulary has its bytes, with U+FFFD for what is no UTF-8."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == 256
    known = alphabet & set(vocabulary.tokens)
    lost = {spelt_byte(c) for c in alphabet - known}
    differences = 0
    for text, (_, decoded) in zip(texts, ours(dump, model, texts)):
        expected = bytes(b for b in text if b not in lost).decode(errors="replace").encode()
        if decoded != expected:
            differences += 1
            if differences <= 5:
                print(f"not UTF-8: {text!r}\n  expected {expected!r}\n  back     {decoded!r}")
    print(f"not UTF-8: {len(texts)} texts, {differences} different ({256 - len(known)} bytes have no token)")
    return differences


def spelt_byte(character):
    printable = [b for b in range(256) if 0x20 < b < 0x7f or b > 0xa0 and b != 0xad]
    if ord(character) in printable:
        return ord(character)
    return [b for b in range(256) if b not in printable][ord(character) - 0x100]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model, dump = sys.argv[1:]
    vocabulary = Vocabulary(model)
    texts = Texts(vocabulary.special)
    samples = ["", "\0", CODE, " ".join(WORDS), "a" * 5000, " " * 5000 + "x", "<|im_start|>" * 50]
    samples += [texts.text() for _ in range(TEXTS - len(samples))]
    broken = [bytes(range(256)), b"\xff\xfe", b"\xed\xa0\x80 surrogate", b"\xf0\x9f\x91"]
    broken += [texts.broken() for _ in range(TEXTS // 4)]

    differences = compare(dump, model, vocabulary.kind, vocabulary, samples)
    differences += check_broken(dump, model, vocabulary, broken)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            if kind == vocabulary.kind:
                continue
            copy = str(Path(folder) / f"{kind}.gguf")
            vocabulary.write(copy, kind)
            differences += compare(dump, copy, kind, vocabulary, samples[:TEXTS // 2])
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
