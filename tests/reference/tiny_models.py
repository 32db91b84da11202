"""Tiny random models of every architecture, made with Hugging Face transformers and written as GGUF files.

A file is what llama.cpp's converter would write for such a model: its metadata keys, its tensor names (the gguf package
knows them), its permutations. Sizes are odd on purpose (but rows multiples of 32, as the CPU device wants), the weights
random but lively: attention looks at some positions more than at others, norms and biases matter, and logits differ
clearly, so that a mistake anywhere is seen in them.

The vocabulary has a token for each byte, so that text and ids are the same thing, and BOS.
"""
import math
from dataclasses import dataclass

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type

transformers.logging.set_verbosity_error()

BOS = 256
SPECIAL = ["<s>", "</s>", "<unk>", "<|endoftext|>"]  # llama.cpp wants all four in a phi3 file
VOCABULARY = 261  # the bytes, these, and a pair of bytes that no text has, so that there is a merge
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}


@dataclass
class Variant:
    name: str
    config: transformers.PretrainedConfig
    type: Type = Type.F32      # of the matrices
    tokens: int = 300          # of the text to score; longer than windows and original contexts
    options: tuple = ()        # for penstock
    output: bool = False       # write the tied head as a tensor of its own, as older converters did


# ---- What there is -------------------------------------------------------------------------------------------------

def rope(kind, theta=10000.0, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=128)


def llama():
    def config(**more):
        return transformers.LlamaConfig(**{
            "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, **HEADS,
            "head_dim": 48, "max_position_embeddings": 512, **more})

    mistral = transformers.MistralConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=128, num_hidden_layers=4, **HEADS, head_dim=80,
        max_position_embeddings=512, sliding_window=40)
    return [
        Variant("plain", config(hidden_size=160, num_attention_heads=5, num_key_value_heads=5, head_dim=32)),
        Variant("tied", config(tie_word_embeddings=True)),
        Variant("biases", config(attention_bias=True)),
        Variant("linear", config(**rope("linear", factor=4.0))),
        Variant("llama3", config(**rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                        original_max_position_embeddings=64))),
        Variant("yarn", config(**YARN)),
        Variant("window", mistral),  # by its own key: llama.cpp has no window in this architecture
        Variant("f16", config(), Type.F16),
        Variant("q8_0", config(), Type.Q8_0),
    ]


def qwen2():
    def config(**more):
        return transformers.Qwen2Config(**{
            "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3, **HEADS,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, **more})

    return [
        Variant("plain", config(**rope("default", 1e6))),
        Variant("tied", config(tie_word_embeddings=True)),
        Variant("yarn", config(**YARN)),
    ]


def qwen3():
    def config(**more):
        return transformers.Qwen3Config(**{
            "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, **HEADS,
            "head_dim": 128, "rms_norm_eps": 1e-3, "max_position_embeddings": 512, **more})

    return [
        Variant("plain", config(**rope("default", 1e6))),
        Variant("tied", config(tie_word_embeddings=True, num_attention_heads=4, num_key_value_heads=1, head_dim=40)),
        Variant("yarn", config(**rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=128))),
    ]


def gemma3():
    def config(local=None, scaling=None, **more):
        full = {"rope_type": "default", "rope_theta": 1e6, **(scaling or {})}
        return transformers.Gemma3TextConfig(**{
            "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 8, **HEADS,
            "head_dim": 80, "query_pre_attn_scalar": 80, "rms_norm_eps": 1e-3, "max_position_embeddings": 512,
            "sliding_window": 40,
            "rope_parameters": {"full_attention": full,
                                "sliding_attention": {"rope_type": "default", "rope_theta": local or 10000.0}},
            **more})

    return [
        Variant("plain", config()),
        Variant("linear", config(scaling={"rope_type": "linear", "factor": 8.0})),
        Variant("local", config(local=500.0)),
        # The 27B model, known by its layers, scales scores by its own number: hidden size ÷ heads.
        Variant("27b", config(num_hidden_layers=62, intermediate_size=96, head_dim=32, query_pre_attn_scalar=16)),
    ]


def phi3():
    def config(**more):
        return transformers.Phi3Config(**{
            "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 512, "pad_token_id": None,
            "eos_token_id": BOS, **more})

    def long(rotary, original, **more):
        pairs = 32 * rotary / 2
        return config(
            num_attention_heads=3, num_key_value_heads=1, original_max_position_embeddings=original,
            rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": rotary,
                             "original_max_position_embeddings": original,
                             "short_factor": [1 + i / pairs for i in range(int(pairs))],
                             "long_factor": [1.5 + i * i / pairs for i in range(int(pairs))]}, **more)

    return [
        Variant("plain", config()),
        Variant("partial", config(num_attention_heads=3, num_key_value_heads=1,
                                  **rope("default", partial_rotary_factor=0.75))),
        Variant("window", config(sliding_window=40)),  # llama.cpp ignores it
        # Which factors are used depends on whether the context is longer than the original one.
        Variant("long", long(0.75, original=128, tie_word_embeddings=True)),
        Variant("short", long(1.0, original=256), tokens=250, options=("--max-model-len", "256")),
    ]


def gpt2():
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=96, n_inner=224, n_layer=3, n_head=6,
                                     n_positions=320, layer_norm_epsilon=1e-3, bos_token_id=BOS, eos_token_id=BOS)
    return [Variant("plain", config), Variant("output", config, output=True)]


ARCHITECTURES = {f.__name__: f for f in (llama, qwen2, qwen3, gemma3, phi3, gpt2)}


# ---- Random weights ------------------------------------------------------------------------------------------------

def make(variant, seed=1):
    """A transformers model in f32. What the file's type cannot hold is rounded here, too."""
    variant.config.bos_token_id = variant.config.eos_token_id = BOS
    model = transformers.AutoModelForCausalLM.from_config(variant.config, attn_implementation="eager").eval()
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=random)
        if tensor.dim() == 1:
            norm = name.endswith("weight") and "Gemma" not in type(model).__name__
            values = norm + 0.3 * noise
        elif "wpe" in name:
            values = noise
        else:  # outputs as large as the inputs, or a little larger
            values = 1.5 * noise / math.sqrt(tensor.shape["c_" in name and 0 or -1])
            values = torch.from_numpy(gguf.dequantize(gguf.quantize(values.numpy(), variant.type), variant.type))
        tensor.data.copy_(values)
    return model


# ---- GGUF ----------------------------------------------------------------------------------------------------------

def write(path, architecture, variant, model):
    config = variant.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture} {variant.name}")
    write_hparams(writer, architecture, config)
    write_vocabulary(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, tensor in tensors(architecture, model):
        name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        add(writer, name, tensor, variant.type)
        if variant.output and name == "token_embd.weight":
            add(writer, "output.weight", tensor, variant.type)
    for name, factors in rope_factors(architecture, config, model):
        add(writer, f"{name}.weight", factors, Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, name, tensor, kind):
    kind = kind if tensor.dim() > 1 and name != "position_embd.weight" else Type.F32
    values = gguf.quantize(np.ascontiguousarray(tensor.detach().numpy()), kind)
    writer.add_tensor(name, values, raw_dtype=kind)


def tensors(architecture, model):
    """(transformers' name, values as in a file)."""
    config = model.config
    for name, tensor in model.named_parameters():  # a tied head is not among them
        if architecture == "llama" and ".q_proj." in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        elif architecture == "llama" and ".k_proj." in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        elif architecture == "gemma3" and name.endswith("norm.weight"):
            tensor = tensor + 1
        elif architecture == "gpt2" and ".c_" in name and name.endswith(".weight"):
            tensor = tensor.T
        yield name, tensor


def interleaved(tensor, heads):
    """Rows for rotation of neighbours (2i, 2i + 1) instead of halves (i, i + size / 2)."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def rope_factors(architecture, config, model):
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") == "llama3":
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        plain = 1 / parameters["rope_theta"] ** exponents
        yield "rope_freqs", plain / model.model.rotary_emb.inv_freq
    if parameters.get("rope_type") == "longrope":
        yield "rope_factors_long", torch.tensor(parameters["long_factor"])
        yield "rope_factors_short", torch.tensor(parameters["short_factor"])


def write_hparams(writer, architecture, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)

    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameters = config.rope_parameters
    if architecture in ("llama", "qwen3", "gemma3"):
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    if architecture in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(head_size * parameters.get("partial_rotary_factor", 1)))
    if architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_sliding_window(config.sliding_window or 0)
    elif architecture in ("llama", "gemma3") and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if local := parameters.get("sliding_attention"):
        if local["rope_theta"] != 10000:  # which goes without saying in older files
            writer.add_rope_freq_base_swa(local["rope_theta"])
        parameters = parameters["full_attention"]
    write_rope(writer, config, parameters)


def write_rope(writer, config, parameters):
    kind = parameters["rope_type"]
    writer.add_rope_freq_base(parameters["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    elif kind == "longrope":
        scale = config.max_position_embeddings / config.original_max_position_embeddings
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(scale) / math.log(config.original_max_position_embeddings)))


def write_vocabulary(writer):
    printable = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelt = [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*spelt, *SPECIAL, spelt[1] + spelt[2]])
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([normal] * 256 + [control] * len(SPECIAL) + [normal])
    writer.add_token_merges([f"{spelt[1]} {spelt[2]}"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(BOS)
    writer.add_add_bos_token(True)


# ---- The reference -------------------------------------------------------------------------------------------------

def text(count):
    """The same printable text every time: `count` tokens with BOS."""
    return "".join(map(chr, np.random.default_rng(7).integers(0x20, 0x7f, count - 1)))


def encode(string):
    return [BOS, *string.encode()]


def log_probabilities(model, ids):
    """[len(ids)][vocabulary], teacher-forced."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
