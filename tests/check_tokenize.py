#!/usr/bin/env python3
"""`penstock tokenize` as a person or a script meets it: check_tokenize.py PROGRAM

The files hold a vocabulary and nothing else, of an architecture that nobody knows.
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
import gguf_file  # noqa: E402

USAGE, BAD_INPUT, UNSUPPORTED, IO = 2, 3, 4, 6
# Where MPI_Init cannot succeed: no such transport exists. What is not meant to start MPI does not notice.
NO_MPI = {"OMPI_MCA_btl": "none-such", "OMPI_MCA_pml": "none-such"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

TOKENS = ([("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
          + [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
          + [(piece, NORMAL) for piece in ("\u2581hi", "\u2581h", "hi", "\u2581", "h", "i")] + [("<user>", USER_DEFINED)])
ID = {piece: i for i, (piece, _) in enumerate(TOKENS)}


def sentencepiece(**keys):
    values = {
        "general.architecture": "martian",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _ in TOKENS],
        "tokenizer.ggml.token_type": [kind for _, kind in TOKENS],
        "tokenizer.ggml.scores": [float(-i) for i in range(len(TOKENS))],
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }
    return gguf_file.whole(values, {}, {}, {}, {})


def byte_level():
    values, _ = gguf_file.model(raw=True)
    return gguf_file.whole({key: values[key] for key in values if key.startswith("tokenizer.")}, {}, {}, {}, {})


class Tokenize(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.model = str(self.folder / "vocabulary.gguf")
        self.write(sentencepiece())

    def write(self, data):
        Path(self.model).write_bytes(data)

    def run_program(self, *arguments, text=None):
        return subprocess.run([PROGRAM, "tokenize", *arguments], capture_output=True, input=text, timeout=60,
                              env={**os.environ, **NO_MPI})

    def tokens(self, *arguments, text=None):
        result = self.run_program(self.model, "--json", *arguments, text=text)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        found = json.loads(result.stdout)
        self.assertEqual(sorted(found), ["ids", "pieces"])
        self.assertEqual(len(found["ids"]), len(found["pieces"]))
        return found["ids"], found["pieces"]

    def refused(self, status, contains, *arguments):
        result = self.run_program(*arguments)
        self.assertEqual((result.returncode, result.stdout), (status, b""))
        lines = result.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1)
        self.assertTrue(lines[0].startswith("penstock: "), lines)
        self.assertIn(contains, lines[0])

    def test_ids_and_pieces(self):
        self.assertEqual(self.tokens("-p", "hi"), ([ID["<s>"], ID["\u2581hi"]], ["<s>", "hi"]))
        self.assertEqual(self.tokens("-p", "hi", "--no-bos"), ([ID["\u2581hi"]], ["hi"]))
        self.assertEqual(self.tokens("-p", ""), ([ID["<s>"]], ["<s>"]))
        self.assertEqual(self.tokens("-p", "", "--no-bos"), ([], []))

    def test_special_tokens(self):
        self.assertEqual(self.tokens("-p", "hi</s>", "--no-bos")[0], [ID["\u2581hi"], ID["</s>"]])
        plain = [ID["\u2581hi"], *(ID[f"<0x{byte:02X}>"] for byte in b"</s>")]
        self.assertEqual(self.tokens("-p", "hi</s>", "--no-bos", "--no-parse-special")[0], plain)
        self.assertEqual(self.tokens("-p", "hi<user>", "--no-bos", "--no-parse-special")[0],
                         [ID["\u2581hi"], ID["<user>"]])

    def test_begin_and_end_as_the_file_asks(self):
        self.write(sentencepiece(add_bos_token=False, add_eos_token=True))
        self.assertEqual(self.tokens("-p", "hi")[0], [ID["\u2581hi"], ID["</s>"]])
        self.assertEqual(self.tokens("-p", "hi", "--no-bos")[0], [ID["\u2581hi"]])

    def test_pieces_joined_are_the_text(self):
        for data in (sentencepiece(), sentencepiece(add_space_prefix=False), byte_level()):
            self.write(data)
            for text in ("hi", " hi  hi ", "h\u00e9\U0001f600 \u65e5\t\n\0x", "\u0301"):
                ids, pieces = self.tokens("--no-bos", "-f", "-", text=text.encode())
                self.assertEqual("".join(pieces), text)
                self.assertGreaterEqual(len(ids), 1)
        # A character belongs to the token that completes it.
        self.assertEqual(self.tokens("--no-bos", "-p", "\U0001f600")[1], ["", "", "", "\U0001f600"])

    def test_what_is_no_utf8(self):
        ids, pieces = self.tokens("--no-bos", "-f", "-", text=b"hi\xff\xe2\x82")
        self.assertEqual(ids, [ID["\u2581hi"], ID["<0xFF>"], ID["<0xE2>"], ID["<0x82>"]])
        self.assertEqual("".join(pieces), "hi\ufffd\ufffd")

    def test_text_from_a_file_or_standard_input(self):
        file = self.folder / "text"
        file.write_bytes("hi\nhi".encode())
        expected = [ID["<s>"], ID["\u2581hi"], ID["<0x0A>"], ID["hi"]]
        self.assertEqual(self.tokens("-f", str(file))[0], expected)
        self.assertEqual(self.tokens("-f", "-", text=b"hi\nhi")[0], expected)

    def test_table(self):
        result = self.run_program(self.model, "-f", "-", text=b"hi\n\"\x1b\xff")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertEqual(result.stdout.decode().splitlines(), [
            '      0        1  "<s>"  control',
            '      1      259  " hi"',
            '      2       13  "\\n"',
            '      3       37  "\\""',
            '      4       30  "\\x1b"',
            '      5      258  "\\xff"',
            "6 tokens for 6 bytes",
        ])

    def test_synthetic_model(self):
        self.model = "synthetic:llama:layers=2,hidden=64,ffn=64,heads=2,kv_heads=2,vocab=200,type=f32"
        self.assertEqual(self.tokens("-p", "abc"), ([97, 98, 99], ["<97>", "<98>", "<99>"]))

    def test_wrong_usage(self):
        self.refused(USAGE, "tokenize needs a text", self.model)
        self.refused(USAGE, "exclude each other", self.model, "-p", "x", "-f", "y")
        self.refused(USAGE, "tokenize needs a MODEL", "-p", "x")
        self.refused(USAGE, "did you mean --no-bos?", self.model, "-p", "x", "--no-bo")

    def test_bad_files(self):
        self.refused(IO, "none.gguf", str(self.folder / "none.gguf"), "-p", "x")
        self.refused(IO, "none.txt", self.model, "-f", str(self.folder / "none.txt"))
        self.write(gguf_file.whole({"general.architecture": "martian"}, {}, {}, {}, {}))
        self.refused(BAD_INPUT, "key tokenizer.ggml.model is missing", self.model, "-p", "x")
        self.write(sentencepiece(model="t5"))
        self.refused(UNSUPPORTED, 'tokenizer.ggml.model is "t5", SentencePiece unigram; known: gpt2', self.model, "-p", "x")
        self.write(sentencepiece(scores=[0.0]))
        self.refused(BAD_INPUT, "scores has 1 elements", self.model, "-p", "x")

    def test_full_disk(self):
        for arguments in ([], ["--json"]):
            with open("/dev/full", "w") as full:
                result = subprocess.run([PROGRAM, "tokenize", self.model, "-p", "hi", *arguments], stdout=full,
                                        stderr=subprocess.PIPE, text=True)
            self.assertEqual((result.returncode, result.stderr), (IO, "penstock: standard output cannot be written\n"))


if __name__ == "__main__":
    PROGRAM = sys.argv[1]
    unittest.main(argv=sys.argv[:1])
