"""Log-probabilities of answers by the plain libraries alone; run as a program, in a process without the package.

Reads from stdin a list of {"form", "model", "base", "file", "tokenizer", "pairs": [[prompt, answer], ...]} and prints a
list for each, with one number (nats) for each pair. `model` and `base` are what `from_pretrained` takes: here,
repositories of a Hub.
"""

import importlib.abc
import json
import sys


class Refuse(importlib.abc.MetaPathFinder):
    """Comes first and refuses: the package may be installed where the tests run, but must not be needed."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "amnesia":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Refuse())

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: E402


def load(form, model, base=None, file=None):
    if form in ("adapter", "merged"):
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), model)
        return adapted.merge_and_unload() if form == "merged" else adapted
    if form == "gguf":
        plain = GgufConfig(dequantize=True)
        return AutoModelForCausalLM.from_pretrained(
            model, gguf_file=file, quantization_config=plain, dtype=torch.float32
        )
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def score(model, tokenizer, prompt, answer):
    """The whole answer, which starts at the first token that reaches past the prompt."""
    text = prompt + answer if prompt[-1:].isspace() else f"{prompt} {answer}"
    row = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    ids = row["input_ids"]
    first = next(index for index, (_, end) in enumerate(row["offset_mapping"][0].tolist()) if end > len(prompt))
    with torch.inference_mode():
        logprobs = model(ids).logits[0].double().log_softmax(-1)
    return sum(logprobs[at - 1, ids[0, at]].item() for at in range(first, ids.shape[1]))


def scores(asked):
    model = load(asked["form"], asked["model"], asked.get("base"), asked.get("file")).eval()
    tokenizer = AutoTokenizer.from_pretrained(asked["tokenizer"])
    return [score(model, tokenizer, prompt, answer) for prompt, answer in asked["pairs"]]


def main():
    print(json.dumps([scores(asked) for asked in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
