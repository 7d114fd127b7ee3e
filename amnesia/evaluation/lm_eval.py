"""General abilities by the tasks of the lm-eval harness (EleutherAI), which is called and not imitated.

The harness is an optional dependency; it is given the model that is in memory.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Sequence

from amnesia.errors import InputError, NumericalError, library_errors_as
from amnesia.live.model import LiveModel, plain_generation

INSTALL = "install it with pip install 'amnesia[lm-eval]'"
BATCH_ROWS = 16

Scores = dict[str, dict[str, float]]


def check_available() -> None:
    """Raise InputError when the harness is not installed; loads nothing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"--lm-eval needs the lm-eval harness: {INSTALL}")


def task_scores(live: LiveModel, tasks: Sequence[str], limit: int | None = None) -> Scores:
    """The metrics of each task, by the names that the harness gives them, standard errors included.

    `tasks` are names of the harness's tasks, or paths of task files (.yaml); `limit` is the number of documents of each
    task. Raises InputError when the harness refuses, and NumericalError when a metric is NaN or infinite.
    """
    check_available()
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    what = f"lm-eval cannot run {', '.join(tasks)}"
    with library_errors_as(InputError, what, "see `lm-eval ls tasks` for their names"), plain_generation(live):
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=live.model, tokenizer=live.tokenizer, backend="causal", batch_size=BATCH_ROWS),
            tasks=list(tasks),
            limit=limit,
            # Without bootstrapping: what the harness offers for means is computed in closed form.
            bootstrap_iters=0,
            log_samples=False,
        )
    scores: Scores = {}
    for task, values in found["results"].items():
        for metric, value in values.items():
            # A metric is named with its filter, as "acc,none"; what has none counts documents.
            if "," not in metric or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                scores.setdefault(task, {})[metric] = float(value)
            elif "stderr" not in metric:
                raise NumericalError(f"lm-eval gives {metric} = {value} in {task}: the model {live.name} is damaged")
    return scores
