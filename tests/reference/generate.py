#!/usr/bin/env python3
"""Makes a reference file: generate.py MODEL.gguf INPUTS.json OUTPUT.json

Hugging Face transformers in float32 on the dequantised weights of the GGUF file, greedy, no chat template. INPUTS is
any earlier reference file: its prompts, text and number of tokens to score are used again, so that

    python tests/reference/generate.py "$(launch/fetch-model.sh)" \\
        tests/reference/smollm2-135m-instruct-q4_1.json /tmp/again.json

reproduces the file that is checked in (the last printed digit may differ with the version of torch). Run by hand; it
needs tests/requirements.txt, torch as in tests/requirements-torch.txt, and likewise accelerate and psutil.
"""
import argparse
import json
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BEST = 10
GREEDY_TOKENS = 48


def log_probabilities(model, ids):
    """[len(ids)][vocabulary], teacher-forced."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


def rounded(tensor):
    return [round(value, 4) for value in tensor.tolist()]


def complete(model, tokenizer, prompt):
    ids = tokenizer(prompt)["input_ids"]
    best = log_probabilities(model, ids)[-1].topk(BEST)
    stop = model.generation_config.eos_token_id
    stop = {stop} if isinstance(stop, int) else set(stop or ())
    greedy, margins = [], []
    while len(greedy) < GREEDY_TOKENS and not stop.intersection(greedy[-1:]):
        # The whole sequence again for every token: slow, and nothing of a cache can be wrong.
        two = log_probabilities(model, ids + greedy)[-1].topk(2)
        greedy.append(two.indices[0].item())
        margins.append(round((two.values[0] - two.values[1]).item(), 4))
    return {
        "prompt": prompt,
        "ids": ids,
        "top_ids": best.indices.tolist(),
        "top_logprobs": rounded(best.values),
        "greedy_ids": greedy,
        "greedy_margins": margins,
        "greedy_text": tokenizer.decode(greedy),
    }


def score(model, tokenizer, text, count):
    ids = tokenizer(text)["input_ids"][:count]
    logprobs = log_probabilities(model, ids)[:-1]
    own = logprobs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
    mean_nll = -own.double().mean().item()
    return {
        "text": text,
        "score_tokens": len(ids),
        "token_ids": ids,
        "token_logprobs": rounded(own),
        "argmax_ids": logprobs.argmax(dim=-1).tolist(),
        "mean_nll": mean_nll,
        "perplexity": math.exp(mean_nll),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()

    inputs = json.loads(arguments.inputs.read_text())
    where = {"gguf_file": arguments.model.name}
    tokenizer = AutoTokenizer.from_pretrained(arguments.model.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(arguments.model.parent, dtype=torch.float32, **where).eval()
    result = {
        "model": inputs["model"],
        "prompts": [complete(model, tokenizer, entry["prompt"]) for entry in inputs["prompts"]],
        **score(model, tokenizer, inputs["text"], inputs["score_tokens"]),
    }
    arguments.output.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
