"""GGUF files as float32 folders, converted once by transformers and kept in the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from amnesia.domain import ModelRef
from amnesia.errors import SourceError, first_line, os_errors_as
from amnesia.files.cache import cache_folder, scratch_folder
from amnesia.files.disk import check_settled, hash_file
from amnesia.sources.source import ModelSource, Notice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def from_gguf(path: Path, notice: Notice = lambda _: None) -> ModelSource:
    """Float32 folder of a `.gguf` file, converted once by transformers and kept in the cache by the file's hash."""
    if not path.is_file():
        raise SourceError(f"{path} does not exist: give the path of a .gguf file")
    check_settled(path.parent)
    folder = cache_folder() / "gguf" / hash_file(path)[:32]
    if not folder.exists():
        notice(f"converting {path.name} to float32 weights")
        with made_once(folder) as made:
            convert_gguf(path, made)
    return ModelSource(folder, ModelRef(str(path)), path)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the weights of a `.gguf` file as float32 safetensors, with config and tokenizer, into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from amnesia.progress import quiet

    with quiet():
        try:
            # Without this transformers 5 keeps the blocks quantized, which cannot be saved as plain weights.
            plain = GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=plain, dtype=torch.float32
            )
            # Where it cannot be had an error is raised; that it may be None is in the annotations only.
            tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise SourceError(
                f"{gguf} cannot be read by transformers ({first_line(error)}): use the unquantized model instead"
            ) from error
        # A path of this machine has no business in a file that people publish.
        model.config.name_or_path = ""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def made_once(folder: Path) -> Generator[Path]:
    """A temporary sibling that becomes `folder` when the block succeeds, and vanishes when it does not."""
    with os_errors_as(
        SourceError, f"cache folder {folder.parent} cannot be written", "set AMNESIA_CACHE to another one"
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with os_errors_as(SourceError, f"{folder} cannot be made", "free some space or set AMNESIA_CACHE"):
        with scratch_folder(folder) as made:
            yield made
            try:
                made.rename(folder)
            except OSError:
                # Another process finished the same work first; its result is as good as this one.
                if not folder.exists():
                    raise
