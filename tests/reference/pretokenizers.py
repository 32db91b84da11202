"""The pre-tokenizers of tokenizer.ggml.pre as their models define them, for tokenizer_compare.py.

Each is what the model's tokenizer.json has (or, where it has none, the expression that its tokenization_*.py hands to
tiktoken; for "default", what llama.cpp does), built from Hugging Face's parts. It is written independently of
runtime/tokenizer/pretokenizers.def, which it is to check: here are the original expressions, unfolded.
"""

from dataclasses import dataclass
from typing import Callable

from tokenizers import Regex, normalizers, pre_tokenizers


@dataclass(frozen=True)
class Kind:
    steps: Callable  # makes the list of pre-tokenizers
    bos: bool = False  # begins with BOS by default
    whole: bool = False  # ignore_merges
    nfc: bool = False
    # Hugging Face's Punctuation has Unicode 8's: texts with newer ones cannot be compared.
    old_punctuation: bool = False

    def pre_tokenizer(self):
        return pre_tokenizers.Sequence(self.steps())

    def normalizer(self):
        return normalizers.NFC() if self.nfc else None


def split(expression, behavior="isolated"):
    return pre_tokenizers.Split(Regex(expression), behavior)


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def splits(*expressions):
    return lambda: [split(e) for e in expressions] + [byte_level(False)]


def gpt2():
    return [byte_level(True)]


def digits_gpt2():
    return [pre_tokenizers.Digits(individual_digits=True), byte_level(True)]


CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = CL100K.replace("{1,3}", "")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
KIMI = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
LING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
SEED_CODER = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+"
              "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")
EXAONE_MOE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+")
JAIS2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
         r"|\s{1,2}(?!\S)|\s{1}")
UFAKZEKA = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"

# DeepSeek's expressions hold the characters themselves, as here.
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_V3 = ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
               "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")
SPARK = DEEPSEEK_V3.replace("[\r\n]*|\\s*[\r\n]+", "|[\r\n]")
DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943")
DEEPSEEK_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"


def deepseek_llm():
    return [split("[\r\n]"), split(f"\\s?[{DEEPSEEK_LETTERS}]+"), split(f"\\s?[{DEEPSEEK_PUNCTUATION}]+"),
            split(r"\s+$"), split(ASIAN), pre_tokenizers.Digits(individual_digits=True), byte_level(False)]


def deepseek_coder():
    return [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(ASIAN),
            pre_tokenizers.Digits(individual_digits=True), byte_level(False)]


def falcon():
    return [pre_tokenizers.Punctuation("contiguous"), byte_level(True), pre_tokenizers.Digits(individual_digits=False),
            split("[0-9][0-9][0-9]")]


def chameleon():
    return [split("<sentinel:[0-9]+>"), split("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"), split("([\t\n]|    |  )"),
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("isolated"), byte_level(True)]


def viking():
    return [split(BLOOM), pre_tokenizers.Digits(individual_digits=True), byte_level(False)]


def laguna():
    return [split(r"(?:\r?\n)+(?!\r?\n)", "merged_with_next"), split(QWEN2), byte_level(False)]


AFMOE = splits(
    r"\p{Nd}{1,510}(?=(?>\p{Nd}{510})*(?:\P{Nd}|$))|\G\p{Nd}{510}", r"\A\p{Nd}{1,2}(?=\p{Nd}{3}+\z)",
    r"\A\p{Nd}{3}|\G\p{Nd}{3}",
    "(?:[\u4e00-\u9fff\u3040-\u309f\u30a0-\u30ff\u3400-\u4dbf\uf900-\ufaff\uff65-\uff9f\u2f00-\u2fdf]+|[\u0e00-\u0e7f]+"
    "|[\u0e80-\u0eff]+|[\u1780-\u17ff]+|[\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff]+|[\uac00-\ud7af\u1100-\u11ff]+)",
    DEEPSEEK_V3)
DEFAULT = splits(
    r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)", r"\p{N}+",
    "[0-9][0-9][0-9]")
YOUTU = splits(
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", O200K.replace("{1,3}", ""))
TINY_AYA = splits(r"\d{1,3}(?=(?:\d{3})*\b)", O200K)
DEEPSEEK_V3_STEPS = splits(r"\p{N}{1,3}", CJK, DEEPSEEK_V3)

GROUPS = {
    Kind(gpt2): """smollm gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe
        gigachat a.x-4.0 mellum jais trillion granite-docling exaone4""",
    Kind(gpt2, nfc=True): "mpt olmo modern-bert",
    Kind(digits_gpt2): "starcoder refact codeshell exaone minerva-7b mellum2",
    Kind(digits_gpt2, nfc=True): "command-r",
    Kind(DEFAULT): "default",
    Kind(splits(CL100K), bos=True, whole=True): """llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2
        jina-v5-nano""",
    Kind(splits(CL100K)): "dbrx smaug-bpe chatglm-bpe glm4",
    Kind(splits(JAIS2)): "jais-2",
    Kind(splits(r"\p{N}{1,3}", CL100K.replace("{1,3}", "+")), whole=True): "minicpm5",
    Kind(splits(QWEN2), nfc=True): "qwen2 f2llmv2 stablelm2 hunyuan",
    Kind(splits(QWEN2)): "deepseek-r1-qwen kormo megrez solar-open grok-2",
    Kind(splits(QWEN35), nfc=True): "qwen35",
    Kind(splits(LING)): "bailingmoe bailingmoe2 llada-moe",
    Kind(splits(SEED_CODER)): "seed-coder",
    Kind(splits(EXAONE_MOE)): "exaone-moe",
    Kind(laguna): "laguna",
    Kind(splits(UFAKZEKA)): "ufakzeka",
    Kind(splits(O200K)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    Kind(splits(O200K), whole=True): "granite-embed-multi-97m",
    Kind(splits(TEKKEN), bos=True, whole=True): "tekken",
    Kind(TINY_AYA, nfc=True): "tiny_aya cohere2moe",
    Kind(YOUTU, whole=True): "youtu",
    Kind(splits(KIMI)): "kimi-k2 kimi-k25",
    Kind(deepseek_llm): "deepseek-llm",
    Kind(deepseek_coder): "deepseek-coder",
    Kind(DEEPSEEK_V3_STEPS): "deepseek-v3 hunyuan-dense hy_v4 joyai-llm",
    Kind(splits(r"\p{N}{1,3}", CJK, SPARK, r"\p{N}")): "spark2_5",
    Kind(AFMOE): "afmoe",
    Kind(falcon, old_punctuation=True): "falcon",
    Kind(splits(BLOOM)): "poro-chat bloom gpt3-finnish",
    Kind(viking): "viking",
    Kind(chameleon, bos=True, old_punctuation=True): "chameleon",
    Kind(splits(r"\p{N}+", r"(?=(\d{3})+(?!\d))")): "superbpe",
}
KINDS = {name: kind for kind, names in GROUPS.items() for name in names.split()}
