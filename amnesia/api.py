"""The Python interface: the four steps on a model and tokenizer that are already in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from transformers import PreTrainedModel

from amnesia.choice import extraction
from amnesia.choice.results import Extraction
from amnesia.domain import Baseline
from amnesia.edits import Edits, edits_in
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.examination import conclude, examine, examine_after
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder
from amnesia.live.model import apply_edits, freeze, wrap
from amnesia.live.model import edited as model_edited
from amnesia.live.tokens import Tokenizer
from amnesia.localization import cells
from amnesia.localization.results import Localization
from amnesia.recipe import Recipe


def localize(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    entities: str | Sequence[str],
    *,
    baseline: Baseline = "contrast",
    prompts: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    layers: tuple[int, int] | None = None,
    top: int = cells.SETTINGS.n_listed,
) -> Localization:
    """Rank the cells of one or more entities, best first; see `amnesia.localization.cells.localize`."""
    return cells.localize(
        wrap(model, tokenizer),
        entities,
        baseline=baseline,
        prompts=prompts,
        aliases=aliases,
        layers=layers,
        top=top,
    )


def extract(model: PreTrainedModel, tokenizer: Tokenizer, recipe: Recipe) -> Extraction:
    """Choose the edit for the recipe's entity; the recipe's own model id is not used.

    Turns off gradients for the model's weights. See `amnesia.choice.extraction.extract` for errors.
    """
    return extraction.extract(wrap(freeze(model), tokenizer), recipe, cache=cache_folder())


def edit(model: PreTrainedModel, edits: Edits) -> None:
    """Write the edits into the weights in memory, for good.

    Raises InputError, before anything changes, when a cell or direction does not fit the model.
    """
    apply_edits(wrap(model, None), edits_in(edits))


def edited(model: PreTrainedModel, edits: Edits) -> contextlib.AbstractContextManager[None]:
    """Act as if edited while a `with` block runs; the weights stay as they are. Raises InputError as `edit` does."""
    return model_edited(wrap(model, None), edits_in(edits))


def evaluate(model: PreTrainedModel, tokenizer: Tokenizer, recipe: Recipe, edits: Edits) -> Evaluation:
    """Knowledge scores of the recipe's facts and controls with the edits against without them.

    The model must not be edited yet, and is not changed. Raises InputError when it knows none of the target facts.
    """
    live, chosen = wrap(model, tokenizer), edits_in(edits)
    before = examine(live, questions_of(recipe), recipe.scoring)
    with model_edited(live, chosen):
        after = examine_after(live, before)
    return conclude(before, after)
