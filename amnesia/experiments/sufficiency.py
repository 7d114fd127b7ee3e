"""How little of the model must be recomputed for an injected entity to be recognized: all else is frozen.

The clean run is the mean over many other entities. In the patched run every attention and MLP output from the entity's
tokens onwards is what it was in the clean run, except what is injected and listed components: of the last token, which
has to read the answer off, or of the entity's own tokens, where the model may look up more about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.domain import Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact
from amnesia.experiments.forms import Form, Keys, Put
from amnesia.experiments.settings import EXPERIMENTS
from amnesia.facts.names import contrast_entities, share_words
from amnesia.live.batches import collate
from amnesia.live.interventions import Injection, injected, replaced_outputs
from amnesia.live.model import LiveModel, hooks
from amnesia.live.tokens import Placed, continuations, encode, place
from amnesia.progress import Progress


@dataclass(frozen=True, order=True)
class Component:
    """The attention or the MLP ("attention", "mlp") of one layer, at the "last" token or at those of the "entity"."""

    layer: int
    component: str
    token: str = "last"


@dataclass(frozen=True)
class Outcome:
    """Mean log-probability (nats) of the first tokens of the answers, their ranks (0 is best), and how many are 0."""

    mean_logprob: float
    ranks: tuple[int, ...]
    n_rank_0: int


@dataclass(frozen=True)
class UnfreezingStep:
    """The outcome with the `n_unfrozen` components that were chosen so far; the last of them is layer and component."""

    n_unfrozen: int
    layer: int
    component: str
    mean_logprob: float
    n_rank_0: int


@dataclass(frozen=True)
class EnrichmentStep:
    """The outcome with the entity's tokens unfrozen up to `layer`, and all of the last token."""

    layer: int
    mean_logprob: float
    n_rank_0: int


@dataclass(frozen=True)
class References:
    """Nothing frozen with and without the injection; with it, everything frozen, and all but the last token."""

    injected: Outcome
    clean: Outcome
    frozen: Outcome
    last_token: Outcome


@dataclass(frozen=True)
class Sufficiency:
    """The smallest set of unfrozen components that was found, on the way to it, and what each fact came to.

    `enrichment` says what more comes back when the entity's own tokens are recomputed, too, layer by layer.
    """

    model: str
    entity: str
    put: Put
    n_layers: int
    n_facts: int
    n_left_out: int
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    references: References
    unfrozen: tuple[Component, ...]
    outcome: Outcome
    steps: tuple[UnfreezingStep, ...]
    enrichment: tuple[EnrichmentStep, ...]


@dataclass(frozen=True)
class CleanRun:
    """One fact with the placeholder: its tokens, the answer's first token, and the clean means from the name onwards.

    `outputs` (n_tail, d_model) by component and layer; `activations` (n_layers, d_mlp) at the name's last tokens.
    """

    placed: Placed
    answer: int
    outputs: Mapping[tuple[str, int], Tensor]
    activations: Keys

    @property
    def n_tail(self) -> int:
        """Tokens from the first of the name's last ones, whose activations are known, to the end."""
        return len(self.placed.ids) - self.placed.token + len(self.activations) - 1


@torch.inference_mode()
def clean_run(
    live: LiveModel, fact: Fact, layers: Sequence[int], names: Sequence[str], placeholder: str, n_tokens: int = 1
) -> CleanRun | None:
    """Mean outputs over `names` in place of the entity, at its last `n_tokens` tokens and those after them.

    None when what follows the name is tokenized differently after every name that has so many tokens.
    """
    (own,) = place(live.tokenizer, [(fact.prompt, placeholder)])
    tail = own.ids[own.token + 1 :]
    rows = [
        row
        for row, n in zip(
            place(live.tokenizer, [(fact.prompt, name) for name in names]),
            _lengths(live, fact.prompt, names),
            strict=True,
        )
        if row.ids[row.token + 1 :] == tail and n >= n_tokens
    ]
    if not rows or own.token < n_tokens - 1:
        return None
    n_tail = len(tail) + n_tokens
    (row,) = continuations(live.tokenizer, [(fact.text(placeholder), fact.answer)])
    totals: dict[tuple[str, int], Tensor] = {}
    inner: dict[int, Tensor] = {}
    batch = collate(live, [row.ids for row in rows], range(len(rows)))

    def keep(key: tuple[str, int]) -> Callable[[Tensor], Tensor]:
        def function(output: Tensor) -> Tensor:
            totals[key] = output[:, -n_tail:].float().mean(0)
            return output

        return function

    def watch(layer: int) -> Callable[[Tensor], None]:
        def function(values: Tensor) -> None:
            inner[layer] = values[:, -n_tail:].float().mean(0)[:n_tokens]

        return function

    every = {(kind, n): keep((kind, n)) for kind in ("attention", "mlp") for n in range(live.shape.n_layers)}
    with replaced_outputs(live, every), hooks(live, {layer: watch(layer) for layer in layers}):
        live.model.base_model(**batch.inputs, use_cache=False)
    activations = {
        back: torch.stack([inner[layer][n_tokens - 1 - back] for layer in layers]) for back in range(n_tokens)
    }
    return CleanRun(own, row.ids[-row.n_answer], totals, activations)


def _lengths(live: LiveModel, template: str, names: Sequence[str]) -> list[int]:
    """How many tokens each name has where the template mentions it last."""
    texts = [template.replace("{entity}", name) for name in names]
    after = len(template) - template.rindex("{entity}") - len("{entity}")
    ends = [len(text) - after for text in texts]
    return [
        item.token_at(end - 1) - item.token_at(end - len(name)) + 1
        for item, end, name in zip(encode(live.tokenizer, texts), ends, names, strict=True)
    ]


@torch.inference_mode()
def patched(
    live: LiveModel,
    clean: CleanRun,
    injections: Sequence[Injection],
    candidates: Sequence[frozenset[Component]],
    *,
    freeze: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability (nats) and rank of the answer's first token for each set of unfrozen components, (n,) each.

    All sets run as one batch. In the layers of the injections the MLP's output at the name's tokens is left to these.
    With `freeze` off, nothing else is changed.
    """
    n_tail, n = clean.n_tail, len(candidates)
    batch = collate(live, [clean.placed.ids] * n, range(n))
    layers = {injection.layer for injection in injections}

    def frozen(kind: str, layer: int) -> Callable[[Tensor], Tensor]:
        last, entity = (
            torch.tensor([Component(layer, kind, token) in unfrozen for unfrozen in candidates])
            for token in ("last", "entity")
        )

        def function(output: Tensor) -> Tensor:
            # What is injected is set before the output projection, where all of the layer's activations are.
            n_tokens = len(clean.activations)
            first = n_tokens if kind == "mlp" and layer in layers else 0
            fixed = torch.zeros(n, n_tail, dtype=torch.bool)
            fixed[:, first:] = True
            fixed[last, -1] = False
            fixed[entity, :n_tokens] = False
            output = output.clone()
            mean = clean.outputs[kind, layer].to(output)
            output[:, -n_tail:] = torch.where(fixed.to(output.device)[..., None], mean, output[:, -n_tail:])
            return output

        return function

    functions = {key: frozen(*key) for key in clean.outputs} if freeze else {}
    with replaced_outputs(live, functions), injected(live, batch, [clean.placed.token] * n, [injections] * n):
        logits = live.model(**batch.inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
    chosen = logits[:, clean.answer]
    return (chosen - logits.logsumexp(1)).cpu(), (logits > chosen[:, None]).sum(1).cpu()


def sufficiency(
    form: Form,
    facts: Sequence[KnownFact],
    *,
    max_unfrozen: int = EXPERIMENTS.max_unfrozen,
    progress: Progress | None = None,
) -> Sufficiency:
    """Search the smallest set of last-token components that let what is injected bring the answers back.

    Components join one at a time, each the one that raises the answers' mean log-probability most, until as many
    answers are ranked first as with nothing frozen, or with nothing frozen at the last token if these are fewer (where
    that ranks none first: until they are as likely as there), or `max_unfrozen` have joined. Then those that nothing is
    lost without leave again. Only layers after the first injected one can carry it, and are tried.

    Raises InputError when no fact can be run.
    """
    live, word, own = form.live, form.put.placeholder, form.own()
    runs = _clean_runs(form, facts)

    def outcomes(candidates: Sequence[frozenset[Component]], freeze: bool = True, free: bool = False) -> list[Outcome]:
        results = [
            patched(live, run, [] if free else form.onto(run.activations) if freeze else own, candidates, freeze=freeze)
            for run in runs.values()
        ]
        logprobs, ranks = (torch.stack(column, 1) for column in zip(*results, strict=True))
        if progress:
            progress(len(runs) * len(candidates))
        return [
            Outcome(line.mean().item(), tuple(row.tolist()), int((row == 0).sum()))
            for line, row in zip(logprobs.double(), ranks, strict=True)
        ]

    none: frozenset[Component] = frozenset()
    later, kinds = range(form.layers[0] + 1, live.shape.n_layers), ("attention", "mlp")
    pool = [Component(n, kind) for n in later for kind in kinds]
    grown = [
        frozenset((*pool, *(Component(n, kind, "entity") for n in later if n <= top for kind in kinds)))
        for top in later
    ]
    frozen, last_token, *enriched = outcomes([none, frozenset(pool), *grown])
    references = References(
        *outcomes([none], freeze=False), *outcomes([none], freeze=False, free=True), frozen, last_token
    )
    goal = min(references.injected, last_token, key=lambda row: (row.n_rank_0, row.mean_logprob))
    chosen, best, steps = _search(outcomes, pool, frozen, goal, max_unfrozen)
    return Sufficiency(
        live.label,
        form.recipe.target.entity,
        form.put,
        live.shape.n_layers,
        len(runs),
        len(facts) - len(runs),
        tuple(fact.text(word) for fact in runs),
        tuple(fact.answer for fact in runs),
        references,
        tuple(sorted(chosen)),
        best,
        tuple(steps),
        tuple(
            EnrichmentStep(layer, row.mean_logprob, row.n_rank_0) for layer, row in zip(later, enriched, strict=True)
        ),
    )


def _search(
    outcomes: Callable[[Sequence[frozenset[Component]]], list[Outcome]],
    pool: Sequence[Component],
    frozen: Outcome,
    goal: Outcome,
    max_unfrozen: int,
) -> tuple[frozenset[Component], Outcome, list[UnfreezingStep]]:
    """The set of components that was found, from nothing unfrozen (`frozen`), its outcome, and the steps to it."""
    chosen: frozenset[Component] = frozenset()
    best, steps = frozen, []
    while not _reaches(best, goal) and len(chosen) < min(max_unfrozen, len(pool)):
        rest = [component for component in pool if component not in chosen]
        results = outcomes([chosen | {component} for component in rest])
        top = max(range(len(rest)), key=lambda n: results[n].mean_logprob)
        chosen, best = chosen | {rest[top]}, results[top]
        steps.append(
            UnfreezingStep(len(chosen), rest[top].layer, rest[top].component, best.mean_logprob, best.n_rank_0)
        )
    while len(chosen) > 1:
        order = sorted(chosen)
        results = outcomes([chosen - {component} for component in order])
        top = max(range(len(order)), key=lambda n: (results[n].n_rank_0, results[n].mean_logprob))
        least = best.mean_logprob - EXPERIMENTS.negligible
        if results[top].n_rank_0 < best.n_rank_0 or results[top].mean_logprob < least:
            break
        chosen, best = chosen - {order[top]}, results[top]
    return chosen, best, steps


def _clean_runs(form: Form, facts: Sequence[KnownFact]) -> dict[Fact, CleanRun]:
    """The clean runs of the facts that have one."""
    names = [name for name in contrast_entities() if not share_words(name, form.recipe.target.names)]
    names = names[:: max(1, len(names) // EXPERIMENTS.n_clean)][: EXPERIMENTS.n_clean]
    runs = {}
    for fact in (known.question.fact for known in facts):
        run = clean_run(form.live, fact, form.layers, names, form.put.placeholder, form.n_tokens)
        if run is not None:
            runs[fact] = run
    if not runs:
        raise InputError(
            "no fact can be run: after every other name of as many tokens, what follows is tokenized differently; "
            "reword the facts, or inject cells (--form cells), which need one token"
        )
    return runs


def _reaches(outcome: Outcome, goal: Outcome) -> bool:
    if goal.n_rank_0:
        return outcome.n_rank_0 >= goal.n_rank_0
    return outcome.mean_logprob >= goal.mean_logprob
