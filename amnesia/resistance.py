"""Does an edit hold? One model at a time is attacked, quantized and trained.

What is asked are the target facts that the original model knows. Two models need never be in memory together; what
they made of the same plan is compared elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from amnesia.domain import Fact
from amnesia.encoding import chat_format, join
from amnesia.errors import InputError
from amnesia.forward import AnswerLogprob, answer_logprobs, generate
from amnesia.measurement import Measurement, Unknown, check_known, why_excluded
from amnesia.model import LiveModel, Progress
from amnesia.prompts import neutral_texts
from amnesia.quantization import DEFAULT_METHODS, obstacle, quantized
from amnesia.questions import FactSet
from amnesia.recipe import Scoring
from amnesia.relearning import DEFAULT_STEPS, Observed, relearn, untrainable
from amnesia.scores import knowledge_score
from amnesia.stress import INVENTED_NAMES, Attack, AttackPrompt, Subject, attacks

Task = Callable[[str], AbstractContextManager[Progress]]
Pair = tuple[str, str]

AS_LOADED = "none"
UNRELATED = "unrelated"
ONE_FACT = "one fact"


@dataclass(frozen=True)
class Settings:
    """How much is tried: facts and controls, quantizations, and the steps of training after which it is looked."""

    n_facts: int = 8
    n_controls: int = 8
    methods: tuple[str, ...] = DEFAULT_METHODS
    steps: tuple[int, ...] = DEFAULT_STEPS


@dataclass(frozen=True)
class Scale:
    """Log-probabilities (nats) that count as a knowledge score of 1 and of 0: of the original model."""

    before: float
    unknown: float

    def score(self, after: float) -> float:
        """The knowledge score of a log-probability."""
        return knowledge_score(after, self.before, self.unknown)


@dataclass(frozen=True)
class Plan:
    """What both models go through. `scales` has those of facts, and of questions that are scored by themselves.

    Questions of the latter kind that the original model does not know have no scale.
    """

    subject: Subject
    facts: tuple[Fact, ...]
    controls: tuple[Fact, ...]
    attacks: tuple[Attack, ...]
    scales: Mapping[Pair, Scale]
    settings: Settings

    def scale(self, prompt: AttackPrompt) -> Scale | None:
        """Where the question is scored: on that of its fact, or on its own; None where it cannot be scored."""
        return self.scales.get((prompt.text, prompt.answer) if prompt.unknown else pair_of(prompt.fact))

    @property
    def taught(self) -> Fact:
        """The fact that is taught again."""
        return self.facts[0]

    @property
    def remaining(self) -> tuple[Fact, ...]:
        """The facts whose answer is not, and does not contain, the one that is taught, nor is contained in it."""
        taught = self.taught.answer.casefold()
        answers = ((fact, fact.answer.casefold()) for fact in self.facts)
        return tuple(fact for fact, answer in answers if taught not in answer and answer not in taught)


@dataclass(frozen=True)
class Replies:
    """Log-probabilities (nats) of answers by (prompt, answer), and greedy continuations by prompt."""

    logprobs: Mapping[Pair, float]
    generated: Mapping[str, str]


@dataclass(frozen=True)
class Curve:
    """Replies to the pairs of a training run, by step. `text` is what was trained on, in the words of this module."""

    text: str
    example: str
    asked: tuple[str, ...]
    observed: tuple[Observed[Mapping[Pair, float]], ...]


@dataclass(frozen=True)
class Endured:
    """What one model made of everything. Where a method of quantization or training does not apply, there is why."""

    attacked: Replies
    quantized: Mapping[str, Replies | str]
    trained: tuple[Curve, ...] | str


def prepare(
    live: LiveModel,
    asked: FactSet,
    unknown: Sequence[Unknown],
    before: Measurement,
    settings: Settings,
    task: Task,
) -> Plan:
    """What to try, from the original model's evaluation (`unknown`, `before`) of the same questions.

    Raises InputError when the targets are about several entities, or when the model knows none of them.
    """
    questions = asked.questions
    names = {question.fact.entity: question.aliases for question in questions if "target" in question.kind}
    if len(names) > 1:
        raise InputError(f"stress tests are about one entity, and the targets are about {', '.join(names)}: choose one")
    reasons = [why_excluded(answer, base, asked.scoring) for answer, base in zip(before.answers, unknown, strict=True)]
    check_known(questions, reasons)
    ((name, aliases),) = names.items()
    subject = Subject(name, tuple(alias for alias in aliases if alias != name), asked.translations)
    known = [index for index, reason in enumerate(reasons) if reason is None]
    scales = {
        pair_of(questions[index].fact): Scale(before.answers[index].total, unknown[index].total) for index in known
    }
    facts = {
        role: [questions[index].fact for index in known if role in questions[index].kind]
        for role in ("target", "control")
    }
    chosen = _taking_turns(facts["target"], lambda fact: fact.answer, settings.n_facts)
    tried = attacks(subject, chosen, facts["control"], chat_format(live.tokenizer))
    with task("asking the original model about the attacks") as progress:
        scales |= _own_scales(live, tried, asked.scoring, progress)
    controls = _taking_turns(facts["control"], lambda fact: fact.entity, settings.n_controls)
    return Plan(subject, chosen, controls, tried, scales, settings)


def endure(live: LiveModel, plan: Plan, name: str, task: Task) -> Endured:
    """Put one model through the plan; `name` is for progress. The model is afterwards as before."""
    prompts = [prompt for attack in plan.attacks for prompt in attack.prompts if plan.scale(prompt)]
    with task(f"attacking the {name} model") as progress:
        pairs = {(text, prompt.answer): None for prompt in prompts for text in (prompt.text, *prompt.never_known)}
        attacked = _ask(live, list(pairs), progress)
    plain = [pair_of(fact) for fact in (*plan.facts, *plan.controls)]
    replies: dict[str, Replies | str] = {}
    with task(f"quantizing the {name} model") as progress:
        replies[AS_LOADED] = _ask(live, plain, progress)
        for method in plan.settings.methods:
            reason = obstacle(live, method)
            if reason is None:
                with quantized(live, method):
                    replies[method] = _ask(live, plain, progress)
            else:
                replies[method] = reason
    with task(f"training the {name} model") as progress:
        trained = untrainable(live) or tuple(_train(live, plan, progress))
    return Endured(attacked, replies, trained)


def pair_of(fact: Fact, name: str | None = None) -> Pair:
    """Prompt and answer of a fact, or of the same said of another name."""
    return fact.text(name), fact.answer


def _taking_turns(facts: Iterable[Fact], key: Callable[[Fact], str], n: int) -> tuple[Fact, ...]:
    """Up to `n` facts, of which none has a key again before all keys had their turn."""
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[key(fact).casefold()].append(fact)
    ordered = sorted((turn, place) for place, group in enumerate(groups.values()) for turn in range(len(group)))
    queues = list(groups.values())
    return tuple(queues[place][turn] for turn, place in ordered[:n])


def _own_scales(live: LiveModel, tried: Sequence[Attack], scoring: Scoring, progress: Progress) -> dict[Pair, Scale]:
    """The scales of questions whose answer is not the fact's, where the original model knows it."""
    prompts = [prompt for attack in tried for prompt in attack.prompts if prompt.unknown]
    wanted = {(text, prompt.answer): None for prompt in prompts for text in (prompt.text, *prompt.unknown)}
    found = dict(zip(wanted, answer_logprobs(live, list(wanted), progress), strict=True))
    scales = {}
    for prompt in prompts:
        before = found[prompt.text, prompt.answer]
        others = [found[text, prompt.answer] for text in prompt.unknown]
        unknown = Unknown(mean(row.total for row in others), mean(row.first for row in others))
        if why_excluded(before, unknown, scoring) is None:
            scales[prompt.text, prompt.answer] = Scale(before.total, unknown.total)
    return scales


def _ask(live: LiveModel, pairs: Sequence[Pair], progress: Progress) -> Replies:
    answers = answer_logprobs(live, pairs, progress)
    texts = list(dict.fromkeys(text for text, _ in pairs))
    return Replies(_totals(pairs, answers), dict(zip(texts, generate(live, texts, progress=progress), strict=True)))


def _totals(pairs: Sequence[Pair], answers: Sequence[AnswerLogprob]) -> dict[Pair, float]:
    return {pair: answer.total for pair, answer in zip(pairs, answers, strict=True)}


def _train(live: LiveModel, plan: Plan, progress: Progress) -> Iterator[Curve]:
    """Three runs: on text about nothing in particular, and on one fact, told of the entity and of an invented name."""
    entity, invented = plan.subject.name, INVENTED_NAMES[0]
    controls = [pair_of(fact) for fact in plan.controls]

    def run(text: str, texts: Sequence[str], names: tuple[str, ...], facts: Sequence[Fact]) -> Curve:
        pairs = [*(pair_of(fact, name) for name in names for fact in facts), *controls]
        observed = relearn(
            live,
            texts,
            plan.settings.steps,
            lambda: _totals(pairs, answer_logprobs(live, pairs, progress)),
            progress=progress,
        )
        return Curve(text, texts[0], names, observed)

    yield run(UNRELATED, neutral_texts("search"), (entity, invented), plan.facts)
    if plan.remaining:
        for name in (entity, invented):
            yield run(ONE_FACT, [join(*pair_of(plan.taught, name))], (name,), plan.remaining)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one value."""
    found = list(values)
    return sum(found) / len(found)
