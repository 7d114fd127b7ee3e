"""Text that a model writes itself at temperature 1, as tokens. That of the built-in models is part of the package.

To write it takes most of the time that second moments need, and rounding decides which token is drawn: with the text at
hand, the moments of a built-in model are of the same text on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, GenerationMixin

from amnesia.live.disk import numbers_of
from amnesia.live.drawing import drawn
from amnesia.live.model import LiveModel, plain_generation
from amnesia.live.split import whole_of
from amnesia.progress import Progress

FOLDER = Path(__file__).with_name("own_text")
"""Where the text of the built-in models lies: a file of one tensor, `tokens` int32 (n_rows, n_tokens), each."""

_AT_ONCE = 96


def own_text(
    live: LiveModel,
    beginnings: Sequence[Sequence[int]],
    n_tokens: int,
    digest: str,
    progress: Progress | None = None,
) -> Iterator[tuple[int, ...]]:
    """The beginnings, which are equally long, each with the next `n_tokens` that the model draws; no special ones.

    `digest` is that of the model's weights, by which the text of a built-in one is found. Counted by `progress` in
    rows, as who reads texts counts them.
    """
    shipped = shipped_text(beginnings, n_tokens, digest)
    if shipped.is_file():
        for row in load_file(shipped)["tokens"].tolist():
            yield tuple(row)
        return
    config = GenerationConfig(
        max_new_tokens=n_tokens,
        suppress_tokens=sorted(set(live.tokenizer.all_special_ids)),
        pad_token_id=live.tokenizer.pad_token_id or 0,
    )
    devices = [live.device] if live.device.type == "cuda" else []
    model = cast(GenerationMixin, live.model)
    for first in range(0, len(beginnings), _AT_ONCE):
        ids = torch.tensor([list(row) for row in beginnings[first : first + _AT_ONCE]], device=live.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode(), plain_generation(live), torch.random.fork_rng(devices):
            torch.manual_seed(first)
            rows = model.generate(**inputs, generation_config=config, logits_processor=drawn())
        if progress:
            progress(len(rows))
        for row in rows.tolist():
            yield tuple(row)


def weights_digest(live: LiveModel) -> str:
    """sha256 of all weights of a model and their names."""
    found = hashlib.sha256()
    for name, weight in sorted(live.model.state_dict(keep_vars=True).items()):
        found.update(name.encode())
        place, _, own = name.rpartition(".")
        numbers = numbers_of(live.model.get_submodule(place), own) if weight.is_meta else whole_of(weight)
        found.update(numbers.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def shipped_text(beginnings: Sequence[Sequence[int]], n_tokens: int, digest: str) -> Path:
    """The file of the package that has the text of a model, if there is one."""
    read = repr((digest, [tuple(row) for row in beginnings], n_tokens))
    return FOLDER / f"{hashlib.sha256(read.encode()).hexdigest()[:16]}.safetensors"


def ship(path: Path, model: str, rows: Sequence[Sequence[int]]) -> None:
    """Write the text of a built-in model, which `model` names, to the file that `shipped_text` names."""
    path.parent.mkdir(exist_ok=True)
    save_file({"tokens": torch.tensor(rows, dtype=torch.int32)}, path, {"model": model})
