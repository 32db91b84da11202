#!/usr/bin/env python3
"""The same shape in PyTorch + transformers, a line of JSON: peer.py [--tiny]

Llama 8B's shape with random bf16 weights on a GPU, its forward pass through torch.compile: a prompt of 2,048 tokens, and
greedy decoding of one stream behind it over a static cache, which is what transformers' own guide to speed advises.
Speeds are medians, timed after the compilation. Where there is no torch with a GPU, or no transformers, it exits with
77 and says what is missing. With --tiny the model is tiny and runs on the CPU without compilation, to see that it runs.
"""
import argparse
import json
import statistics
import sys
import time

SKIPPED = 77
PROMPT, OUTPUT, REPEATS = 2048, 128, 5


def skip(why):
    print(f"peer.py: skipped: {why}", file=sys.stderr)
    sys.exit(SKIPPED)


def load_model(torch, transformers, device, tiny):
    shape = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
             "rope_theta": 500000.0, "tie_word_embeddings": False}
    if tiny:
        shape |= {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2}
    # Made where it is used: with 8 billion weights the host takes minutes.
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    return model.eval()


def measure(torch, model, cache, device, prompt, output, mode):
    """Tokens a second of a prompt and of decoding; `mode` is torch.compile's for a decode, or None: as it is."""

    def synchronize():
        if device == "cuda":
            torch.cuda.synchronize()

    tokens = torch.randint(0, model.config.vocab_size, (1, prompt), device=device)

    def forward(ids, positions):
        return model(ids, cache_position=positions, position_ids=positions[None], past_key_values=cache,
                     use_cache=True, logits_to_keep=1).logits

    prefill = torch.compile(forward) if mode else forward
    decode = torch.compile(forward, mode=mode, fullgraph=True) if mode else forward

    def run_prompt():
        cache.reset()
        synchronize()
        begin = time.perf_counter()
        logits = prefill(tokens, torch.arange(prompt, device=device))
        synchronize()
        return logits[:, -1].argmax(-1, keepdim=True), time.perf_counter() - begin

    def run_output(token):
        position = torch.tensor([prompt], device=device)
        synchronize()
        begin = time.perf_counter()
        for _ in range(output - 1):
            # A copy: the next step overwrites what a captured graph returned.
            token = decode(token, position)[:, -1].argmax(-1, keepdim=True).clone()
            position += 1
        synchronize()
        return time.perf_counter() - begin

    prompts, outputs = [], []
    with torch.inference_mode():
        for repeat in range(REPEATS + 2):
            token, prompt_s = run_prompt()
            output_s = run_output(token)
            if repeat >= 2:  # the first ones compile
                prompts.append(prompt_s)
                outputs.append(output_s)
    return prompt / statistics.median(prompts), (output - 1) / statistics.median(outputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        skip(str(error))
    if not arguments.tiny and not torch.cuda.is_available():
        skip("torch sees no GPU")
    device, prompt, output = ("cpu", 12, 5) if arguments.tiny else ("cuda", PROMPT, OUTPUT)
    model = load_model(torch, transformers, device, arguments.tiny)
    cache = transformers.StaticCache(config=model.config, max_cache_len=prompt + output)
    # With CUDA graphs where this version of both can do it.
    for mode in [None] if arguments.tiny else ["reduce-overhead", "default"]:
        try:
            prompt_speed, decode_speed = measure(torch, model, cache, device, prompt, output, mode)
            break
        except Exception as error:  # a compiler's: it may be of any class
            print(f"peer.py: torch.compile, mode {mode}: {error}", file=sys.stderr)
    else:
        sys.exit(1)
    print(json.dumps({"kind": "peer", "name": "transformers", "torch": torch.__version__,
                      "transformers": transformers.__version__, "mode": mode, "prompt_tokens": prompt,
                      "output_tokens": output, "prompt_tokens_per_s": prompt_speed,
                      "decode_tokens_per_s": decode_speed}))


if __name__ == "__main__":
    main()
