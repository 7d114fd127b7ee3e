"""Make a language model forget one named thing.

    import amnesia

    amnesia.run(amnesia.load_recipe("recipe.toml"), "out")

All that is meant for use from Python is here; the command line does the same on files.

- A model and tokenizer in memory: `localize`, `extract`, `edit`, `edited`, `evaluate`.
- Models as files, named as on the command line: `resolve`, `run`, `save`, `verify`, `undo`. All but `resolve` take a
  `tracker`, a `Tracker`, where notices and progress should be seen. `resolve` takes a `notice`, a function that is
  told, in one line, what takes long: `tracker.notice`, for example.
- What these take and give: `Recipe` (of `load_recipe`), `Fact`, `ModelRef`, `ModelSource`, `Loading`, `Tokenizer`;
  `EntityEdits` of `ColumnEdit` (of a `Cell`) and `DirectionEdit`; `Localization`, `Extraction`, `Evaluation`,
  `RunResult`, `Manifest`, `VerificationReport`.
- Errors, one line each, for what their user can mend: `AmnesiaError` and its kinds.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # Of `typing`, which takes milliseconds in which an interrupt would show a traceback.

if TYPE_CHECKING:
    from amnesia.api import edit, edited, evaluate, extract, localize
    from amnesia.choice.results import Extraction
    from amnesia.domain import Cell, Fact, Loading, ModelRef
    from amnesia.edits import ColumnEdit, DirectionEdit, EntityEdits
    from amnesia.errors import (
        AmnesiaError,
        CheckpointError,
        InputError,
        LayoutError,
        NumericalError,
        OutputError,
        PublishError,
        RecipeError,
        SourceError,
        VerificationError,
    )
    from amnesia.evaluation.comparison import Evaluation
    from amnesia.live.tokens import Tokenizer
    from amnesia.localization.results import Localization
    from amnesia.outputs.commands import save, undo, verify
    from amnesia.outputs.verify import VerificationReport
    from amnesia.pipeline import RunResult, run
    from amnesia.progress import Tracker
    from amnesia.recipe import Recipe
    from amnesia.recipe_file import load_recipe
    from amnesia.sources.resolve import resolve
    from amnesia.sources.source import ModelSource
    from amnesia.weights.manifest import Manifest

__all__ = [
    "AmnesiaError",
    "Cell",
    "CheckpointError",
    "ColumnEdit",
    "DirectionEdit",
    "EntityEdits",
    "Evaluation",
    "Extraction",
    "Fact",
    "InputError",
    "LayoutError",
    "Loading",
    "Localization",
    "Manifest",
    "ModelRef",
    "ModelSource",
    "NumericalError",
    "OutputError",
    "PublishError",
    "Recipe",
    "RecipeError",
    "RunResult",
    "SourceError",
    "Tokenizer",
    "Tracker",
    "VerificationError",
    "VerificationReport",
    "edit",
    "edited",
    "evaluate",
    "extract",
    "load_recipe",
    "localize",
    "resolve",
    "run",
    "save",
    "undo",
    "verify",
]

# Names are looked up late, so that `import amnesia` and `amnesia --help` do not load torch.
_HOMES = {
    "amnesia.api": "edit edited evaluate extract localize",
    "amnesia.choice.results": "Extraction",
    "amnesia.domain": "Cell Fact Loading ModelRef",
    "amnesia.edits": "ColumnEdit DirectionEdit EntityEdits",
    "amnesia.errors": "AmnesiaError CheckpointError InputError LayoutError NumericalError OutputError PublishError "
    "RecipeError SourceError VerificationError",
    "amnesia.evaluation.comparison": "Evaluation",
    "amnesia.live.tokens": "Tokenizer",
    "amnesia.localization.results": "Localization",
    "amnesia.outputs.commands": "save undo verify",
    "amnesia.outputs.verify": "VerificationReport",
    "amnesia.pipeline": "RunResult run",
    "amnesia.progress": "Tracker",
    "amnesia.recipe": "Recipe",
    "amnesia.recipe_file": "load_recipe",
    "amnesia.sources.resolve": "resolve",
    "amnesia.sources.source": "ModelSource",
    "amnesia.weights.manifest": "Manifest",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'amnesia' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
