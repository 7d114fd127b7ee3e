"""Does an edit hold? One model at a time is attacked and quantized.

What is asked are the target facts that the original model knows. Two models need never be in memory together; what
they made of the same plan is compared elsewhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from amnesia.domain import ROLES, Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact, Pair, Unknown, check_known, measure, plainly_asked, write
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.questions import Question
from amnesia.live.chat_form import Chat
from amnesia.live.model import LiveModel
from amnesia.progress import Progress
from amnesia.recipe import Scoring
from amnesia.stress.attacks import Attack, AttackPrompt, AttackTarget, attacks
from amnesia.stress.quantization import obstacle, quantized
from amnesia.stress.settings import StressSettings

Task = Callable[[str], AbstractContextManager[Progress]]

AS_LOADED = "none"


@dataclass(frozen=True)
class StressPlan:
    """What both models go through. `known` has the facts, and the questions that are scored by themselves.

    Questions of the latter kind are only there where the original model knows their answer.
    """

    target: AttackTarget
    facts: tuple[Fact, ...]
    controls: tuple[Fact, ...]
    attacks: tuple[Attack, ...]
    known: Mapping[Pair, KnownFact]
    settings: StressSettings

    def scale(self, prompt: AttackPrompt) -> KnownFact | None:
        """What the question is scored by: its fact, or the question itself; None where it cannot be scored."""
        return self.known.get(prompt.pair if prompt.unknown else prompt.fact.pair())


@dataclass(frozen=True)
class Replies:
    """Log-probabilities (nats) of answers by (prompt, answer), and greedy continuations by prompt."""

    logprobs: Mapping[Pair, float]
    generated: Mapping[str, str]


@dataclass(frozen=True)
class Endured:
    """What one model made of everything. Where a method of quantization does not apply, there is why."""

    attacked: Replies
    quantized: Mapping[str, Replies | str]


def prepare(
    live: LiveModel,
    facts: Sequence[KnownFact],
    translations: Mapping[str, str],
    settings: StressSettings,
    task: Task,
    chat: Chat | None = None,
    cache: MeasurementCache | None = None,
) -> StressPlan:
    """What to try, from what the original model knows; `translations` are the entity's names by language code.

    `chat` is the form of messages to a chat model, see `chat_form.chat_format`.

    Raises InputError when the targets are about several entities, or when the model knows none of them.
    """
    # Attacks make messages, and much else, of the plain questions.
    facts = plainly_asked(facts)
    target = target_of(facts, translations)
    known = [fact for fact in facts if not fact.excluded]
    targets, controls = ([fact.question.fact for fact in known if fact.question.role == role] for role in ROLES)
    chosen = taking_turns(targets, lambda fact: fact.answer, settings.n_facts)
    tried = tuple(map(_in_turn, attacks(target, chosen, controls, settings, chat)))
    scales = {fact.pair: fact for fact in known}
    with task("asking the original model about the attacks") as progress:
        scales |= _own_scales(live, tried, facts[0].scoring, progress, cache)
    spared = taking_turns(controls, lambda fact: fact.entity, settings.n_controls)
    return StressPlan(target, chosen, spared, tried, scales, settings)


def target_of(
    facts: Sequence[KnownFact], translations: Mapping[str, str], asked_by: str = "stress tests"
) -> AttackTarget:
    """The entity by all its names; raises InputError for several entities, and for one that the model does not know."""
    names = {fact.question.fact.entity: fact.question.aliases for fact in facts if fact.question.role == "target"}
    if len(names) > 1:
        raise InputError(f"{asked_by} are about one entity, and the targets are about {', '.join(names)}: choose one")
    check_known(facts)
    ((name, aliases),) = names.items()
    return AttackTarget(name, tuple(alias for alias in aliases if alias != name), translations)


def _in_turn(attack: Attack) -> Attack:
    """The attack with one invented name in each question: they take turns in each form, since each costs a question."""
    seen: Counter[str] = Counter()
    prompts = []
    for prompt in attack.prompts:
        turn = seen[prompt.variant] % len(prompt.never_known)
        prompts.append(replace(prompt, never_known=prompt.never_known[turn : turn + 1]))
        seen[prompt.variant] += 1
    return replace(attack, prompts=tuple(prompts))


def endure(live: LiveModel, plan: StressPlan, name: str, task: Task, cache: MeasurementCache | None = None) -> Endured:
    """Put one model through the plan; `name` is for progress. The model is afterwards as before.

    What `cache` has of the model as it is is not asked again.
    """
    prompts = [prompt for attack in plan.attacks for prompt in attack.prompts if plan.scale(prompt)]
    with task(f"attacking the {name} model") as progress:
        pairs = [(text, prompt.answer) for prompt in prompts for text in (prompt.text, *prompt.never_known)]
        attacked = _ask(live, pairs, progress, cache)
    plain = [fact.pair() for fact in (*plan.facts, *plan.controls)]
    replies: dict[str, Replies | str] = {}
    with task(f"quantizing the {name} model") as progress:
        replies[AS_LOADED] = _ask(live, plain, progress, cache)
        for method in plan.settings.methods:
            reason = obstacle(live, method)
            if reason is None:
                with quantized(live, method):
                    replies[method] = _ask(live, plain, progress)
            else:
                replies[method] = reason
    return Endured(attacked, replies)


def taking_turns(facts: Iterable[Fact], key: Callable[[Fact], str], n: int) -> tuple[Fact, ...]:
    """Up to `n` facts, of which none has a key again before all keys had their turn."""
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[key(fact).casefold()].append(fact)
    ordered = sorted((turn, place) for place, group in enumerate(groups.values()) for turn in range(len(group)))
    queues = list(groups.values())
    return tuple(queues[place][turn] for turn, place in ordered[:n])


def _own_scales(
    live: LiveModel, tried: Sequence[Attack], scoring: Scoring, progress: Progress, cache: MeasurementCache | None
) -> dict[Pair, KnownFact]:
    """The questions whose answer is not the fact's, as facts of their own, where the original model knows them."""
    prompts = [prompt for attack in tried for prompt in attack.prompts if prompt.unknown]
    wanted = [(text, prompt.answer) for prompt in prompts for text in (prompt.text, *prompt.unknown)]
    found = measure(live, wanted, progress, cache)
    scales = {}
    for prompt in prompts:
        asked = Question("target", replace(prompt.fact, prompt=prompt.text, answer=prompt.answer))
        unknown = Unknown.of([found[text, prompt.answer] for text in prompt.unknown])
        known = KnownFact(asked, found[prompt.pair], unknown, scoring)
        if not known.excluded:
            scales[prompt.pair] = known
    return scales


def _ask(live: LiveModel, pairs: Iterable[Pair], progress: Progress, cache: MeasurementCache | None = None) -> Replies:
    pairs = list(pairs)
    found = measure(live, pairs, progress, cache)
    return Replies(
        {pair: answer.logprob for pair, answer in found.items()},
        write(live, [text for text, _ in pairs], progress, cache),
    )


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one value."""
    found = list(values)
    return sum(found) / len(found)
