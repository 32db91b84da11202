#!/usr/bin/env python3
"""Holds our tokenizer against Hugging Face's: tokenizer_compare.py MODEL.gguf TOKENIZER_DUMP

A `tokenizers.Tokenizer` is made from a vocabulary and its merges, and generated texts (always the same) go through it
and through tokenizer_dump: ids, and the text that they decode to, must be equal. First with the file's own vocabulary;
then, for every name that our tokenizer knows, with a small vocabulary trained here, in a file that names it. That one
is trained on whole texts, so it has tokens that hold several words, and a wrong cut between words shows in the ids.
The pre-tokenizers are the models' own: see pretokenizers.py. Texts that are not UTF-8, which Hugging Face cannot be
given, must come back with U+FFFD where the bytes were wrong, and what is between such bytes must get the ids that it
has alone.

Characters are those that Unicode 14 assigns: what a newer one is (a letter, a symbol) depends on the library's tables.
"""

import functools
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

from gguf import GGUFReader, GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pretokenizers import KINDS, Kind, byte_level

TEXTS = 8000
TEXTS_PER_NAME = 700
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


class Vocabulary:
    def __init__(self, tokens, types, merges, bos):
        self.tokens, self.types, self.merges, self.bos = tokens, types, merges, bos
        self.special = [t for t, kind in zip(tokens, types) if kind in (CONTROL, USER_DEFINED)]

    @classmethod
    def of_file(cls, path):
        """The vocabulary and its kind."""
        fields = GGUFReader(path).fields
        tokens, types, merges = (fields[f"tokenizer.ggml.{key}"].contents()
                                 for key in ("tokens", "token_type", "merges"))
        return cls(tokens, types, merges, None), fields["tokenizer.ggml.pre"].contents()

    @classmethod
    def trained(cls, texts):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = byte_level(False)  # texts are not cut
        trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                      show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        # Some tokens that no merge makes, nor needs: to be found only where whole words come first.
        needed = {part for merge in merges for part in merge}
        unmade = sorted(set(tokens) - needed)[::3]
        merges = [" ".join(merge) for merge in merges if "".join(merge) not in unmade]
        types = [NORMAL] * len(tokens)
        for name, kind in (("<|begin|>", CONTROL), ("<|end|>", CONTROL), ("<|end|>!", CONTROL),
                           ("<user>", USER_DEFINED),
                           ("e\u0301", USER_DEFINED), ("\n\n\n", USER_DEFINED), ("日本", CONTROL)):
            tokens.append(name)
            types.append(kind)
        return cls(tokens, types, merges, tokens.index("<|begin|>"))

    def hugging_face(self, kind: Kind):
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(self.tokens)},
                                         merges=[tuple(merge.split(" ")) for merge in self.merges],
                                         ignore_merges=kind.whole))
        tokenizer.pre_tokenizer = kind.pre_tokenizer()
        if normalizer := kind.normalizer():
            tokenizer.normalizer = normalizer
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in self.special])
        return tokenizer

    def write(self, path, name):
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        if self.bos is not None:
            writer.add_bos_token_id(self.bos)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()


def spell(word):
    """In the byte alphabet."""
    return byte_level(False).pre_tokenize_str(word)[0][0]


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


FIXED = [
    "", "\0", CODE, " ".join(WORDS), "a" * 5000, " " * 5000 + "x", "\n" * 700 + " " * 700 + "\n",
    "7" * 1700 + "x" + "7" * 1701, "IMGIMGABCDZIMGIMGABCDEZ<sentinel:12><sentinel:>",
    "'s'S'ſ'll'LL'lL're'Re'VE'm'D'T 's 'tis don't DON'T l'eau",
    "e\u0301\u0327 \u1112\u1161\u11ab \u0344 \u0f73\u0f71 \u2126\u212b \ufb1d \u0958 "
    "a\u0315\u0300\u05ae\u0300\u0315" * 20]


def assigned(character):
    return unicodedata.category(character) not in ("Cn", "Cs")


@functools.cache
def every_character():
    """All that Unicode 14 assigns (of Han, Hangul and the like a sample), between letters, digits, signs and spaces."""
    parts, crowd = [], 0
    for code in range(0x110000):
        crowd = crowd + 1 if unicodedata.category(c := chr(code)) in ("Lo", "Co", "So") else 0
        if not assigned(c) or crowd > 40 and code % 89:
            continue
        parts.append(f"a{c}b {c}{c} 1{c}2 !{c}\n{c}'{c}")
    return ["".join(parts[i:i + 40]) for i in range(0, len(parts), 40)]


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

    def digits(self):
        """Numbers, among them such as are no decimal digits, and a little else."""
        r = self.random
        numbers, others = "0123456789" * 4 + "٣٤५๗〇Ⅷ½²①", [""] * 9 + list(" a_.,中Ⓐ")
        return "".join(r.choice(numbers) * r.choice((1, 1, 1, 2, 3)) + r.choice(others)
                       for _ in range(r.randint(1, 40)))

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


def names_we_know(dump, vocabulary, folder):
    """As the error about an unknown one lists them."""
    path = str(folder / "unknown.gguf")
    vocabulary.write(path, "unknown")
    error = subprocess.run([dump, path], input=b"", stderr=subprocess.PIPE).stderr.decode()
    return re.search(r'tokenizer.ggml.pre is "unknown"; known: (.*)', error)[1].split(", ")


def is_punctuation(character):
    return unicodedata.category(character)[0] == "P" or (character.isascii() and character.isprintable()
                                                         and not character.isalnum() and character != " ")


def newer_punctuation():
    """Characters of which Hugging Face's Punctuation thinks otherwise than Unicode 14."""
    cutter = pre_tokenizers.Punctuation("removed")
    return {c for c in map(chr, range(0x110000)) if assigned(c)
            and is_punctuation(c) == bool(cutter.pre_tokenize_str(c))}


NEWER_PUNCTUATION = newer_punctuation()


def comparable(kind, text):
    """Whether the libraries' tables agree about a text. Hugging Face composes by those of Unicode 9."""
    if kind.nfc and kind.normalizer().normalize_str(text) != unicodedata.normalize("NFC", text):
        return False
    return not (kind.old_punctuation and NEWER_PUNCTUATION.intersection(text))


def compare(dump, model, name, vocabulary, texts):
    kind = KINDS[name]
    texts = [t for t in texts if comparable(kind, t)]
    reference = vocabulary.hugging_face(kind)
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    bos = [vocabulary.bos] if kind.bos and vocabulary.bos is not None else []
    differences = 0
    for text, encoding, (ids, decoded) in zip(texts, encodings, ours(dump, model, [t.encode() for t in texts])):
        expected = bos + encoding.ids
        if ids == expected and decoded.decode() == reference.decode(expected, skip_special_tokens=False):
            continue
        differences += 1
        if differences <= 3:
            print(f"{name}: {text!r}\n  ours      {[vocabulary.tokens[i] for i in ids]}\n"
                  f"  reference {[vocabulary.tokens[i] for i in expected]}\n  back      {decoded!r}")
    print(f"{name}: {len(texts)} texts, {sum(map(len, texts))} characters, {differences} different", flush=True)
    return differences


def check_broken(dump, model, vocabulary, texts):
    """What comes back is the text, as far as the vocabulary has its bytes, with U+FFFD for what is no UTF-8."""
    alphabet = {spell_byte(b): b for b in range(256)}
    lost = {byte for character, byte in alphabet.items() if character not in vocabulary.tokens}
    differences = 0
    for text, (_, decoded) in zip(texts, ours(dump, model, texts)):
        expected = bytes(b for b in text if b not in lost).decode(errors="replace").encode()
        if decoded != expected:
            differences += 1
            if differences <= 5:
                print(f"not UTF-8: {text!r}\n  expected {expected!r}\n  back     {decoded!r}")
    print(f"not UTF-8: {len(texts)} texts, {differences} different ({len(lost)} bytes have no token)")
    return differences


def check_around_broken(dump, model, name, vocabulary, texts):
    """A run of bytes that are no UTF-8 is a word, and what is on either side of it is cut as if it stood alone."""
    reference = vocabulary.hugging_face(KINDS[name])
    rest = vocabulary.hugging_face(Kind(lambda: [byte_level(False)]))
    differences, broken = 0, [b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"]
    cases = [(a, broken[i % len(broken)], b) for i, (a, b) in enumerate(zip(texts[::2], texts[1::2]))]
    joined = [a.encode() + x + b.encode() for a, x, b in cases]
    for (a, x, b), (ids, _) in zip(cases, ours(dump, model, joined)):
        middle = rest.model.tokenize("".join(map(spell_byte, x)))
        expected = reference.encode(a).ids + [t.id for t in middle] + reference.encode(b).ids
        if ids != expected:
            differences += 1
            print(f"{name}: {a!r}, {x!r}, {b!r}\n  ours      {ids}\n  reference {expected}")
    print(f"{name}, around bytes that are not UTF-8: {len(cases)} texts, {differences} different")
    return differences


def spell_byte(byte):
    printable = [b for b in range(256) if 0x20 < b < 0x7f or b > 0xa0 and b != 0xad]
    return chr(byte) if byte in printable else chr(0x100 + [b for b in range(256) if b not in printable].index(byte))


def check_names(dump, folder):
    """Every name, with the trained vocabulary."""
    texts = Texts([""])
    vocabulary = Vocabulary.trained([CODE, " ".join(WORDS)] + [texts.text() for _ in range(4000)])
    texts = Texts(vocabulary.special)
    samples = FIXED + [texts.text() for _ in range(TEXTS_PER_NAME)] + [texts.digits() for _ in range(100)]
    names = names_we_know(dump, vocabulary, folder)
    assert sorted(names) == sorted(KINDS), set(names) ^ set(KINDS)

    differences, seen = 0, set()
    for name in names:
        path = str(folder / f"{name}.gguf")
        vocabulary.write(path, name)
        if KINDS[name] not in seen:  # once for all aliases
            differences += compare(dump, path, name, vocabulary, samples + every_character())
            seen.add(KINDS[name])
        else:
            differences += compare(dump, path, name, vocabulary, samples[:len(FIXED) + TEXTS_PER_NAME // 4])
    path = str(folder / "gpt-2.gguf")
    return differences + check_around_broken(dump, path, "gpt-2", vocabulary, samples[:500])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model, dump = sys.argv[1:]
    vocabulary, name = Vocabulary.of_file(model)
    texts = Texts(vocabulary.special)
    samples = FIXED + ["<|im_start|>" * 50] + [texts.text() for _ in range(TEXTS)]
    broken = [bytes(range(256)), b"\xff\xfe", b"\xed\xa0\x80 surrogate", b"\xf0\x9f\x91"]
    broken += [texts.broken() for _ in range(TEXTS // 4)]

    differences = compare(dump, model, name, vocabulary, samples)
    differences += check_broken(dump, model, vocabulary, broken)
    with tempfile.TemporaryDirectory() as folder:
        differences += check_names(dump, Path(folder))
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
