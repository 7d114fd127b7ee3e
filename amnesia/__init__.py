"""Make a language model forget one named thing.

    from amnesia import localize, extract, edit, evaluate

These work on a model and tokenizer that are already in memory; the command line does the same on files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amnesia.api import edit, edited, evaluate, extract, localize

__all__ = ["edit", "edited", "evaluate", "extract", "localize"]


def __getattr__(name: str) -> object:
    # Looked up late, so that `import amnesia` and `amnesia --help` do not load torch.
    if name in __all__:
        from amnesia import api

        return getattr(api, name)
    raise AttributeError(f"module 'amnesia' has no attribute {name!r}")
