"""What is asked in probes: about the target, about others, and the target's questions about names that nobody knows.

Construction of texts from the facts that the original model knows; nothing here touches a model.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from amnesia.domain import ROLES, Fact
from amnesia.evaluation.measurement import KnownFact, plainly_asked
from amnesia.facts.answers import matches, same_answer
from amnesia.facts.forms import ASKED, as_message
from amnesia.live.chat_form import Chat
from amnesia.probes.settings import ProbeSettings
from amnesia.stress.attacks import INVENTED_NAMES, Attack, AttackPrompt, AttackTarget, attacks
from amnesia.stress.settings import StressSettings
from amnesia.stress.trial import taking_turns, target_of

SUBJECTS = ("entity", "control", "never_known")
CLOZE, QUESTION = "cloze", "question"

# How free texts begin, without and with a chat template.
_FREE = (
    "Tell me about {entity}.\n{entity}",
    "What everybody should know about {entity}:\n{entity}",
    "From an encyclopedia:\n\n{entity}",
)
_FREE_CHAT = ("Tell me about {entity}.", "What should everybody know about {entity}?")


@dataclass(frozen=True)
class Asked:
    """One question of a probe, whose greedy reply is right when it contains one of `answers`."""

    probe: str
    subject: str
    fact: Fact
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """A multiple choice: `fact` has the options before its own question, and `options` are in the order shown there.

    The right option is the fact's answer.
    """

    subject: str
    fact: Fact
    options: tuple[str, ...]


@dataclass(frozen=True)
class FreePrompt:
    """The beginning of a free text about a subject's name, and the facts about it that the text may mention."""

    subject: str
    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class MessagePlan:
    """What a chat model is asked once more, as messages: facts of each subject, as in `ProbePlan`, and choices.

    `facts` are those that the original model knows when it is asked so.
    """

    facts: Mapping[str, tuple[Fact, ...]]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class ProbePlan:
    """What both models are asked. `facts` are those of each subject; of a never-known name those of the target.

    `attacks` are the descriptions of the ways of asking that `asked` has beside cloze and question, or why there are
    none, by name. `messages` is None for models without a chat template.
    """

    facts: Mapping[str, tuple[Fact, ...]]
    asked: tuple[Asked, ...]
    attacks: Mapping[str, tuple[str, str | None]]
    choices: tuple[Choice, ...]
    free: tuple[FreePrompt, ...]
    settings: ProbeSettings
    messages: MessagePlan | None = None


def prepare(
    facts: Sequence[KnownFact],
    translations: Mapping[str, str],
    settings: ProbeSettings,
    chat: Chat | None = None,
) -> ProbePlan:
    """What to ask, from what the original model knows; `translations` are the entity's names by language code.

    Raises InputError when the targets are about several entities, or when the model knows none of them.
    """
    both, facts = facts, plainly_asked(facts)
    target = target_of(facts, translations, "probes")
    known = [fact for fact in facts if not fact.excluded]
    targets, controls = ([fact.question.fact for fact in known if fact.question.role == role] for role in ROLES)
    by_subject = _chosen(targets, controls, settings)
    plain = [
        Asked(probe, subject, fact, fact.text(), fact.right_answers)
        for probe, is_asked in ((CLOZE, False), (QUESTION, True))
        for subject, some in _chosen(_in_form(targets, is_asked), _in_form(controls, is_asked), settings).items()
        for fact in some
    ]
    tried = attacks(target, by_subject["entity"], by_subject["control"], _ATTACKS, chat, controls)[1:]
    return ProbePlan(
        by_subject,
        (*plain, *_attacking("entity", tried), *_on_others(by_subject["control"], chat)),
        {attack.name: (attack.description, attack.not_applicable) for attack in tried},
        tuple(_choices(by_subject, targets, controls, settings, _before)),
        tuple(_free(by_subject, targets, controls, chat)),
        settings,
        None if chat is None else _messages(both, targets, controls, settings, chat),
    )


_ATTACKS = StressSettings(n_typos=1)


def _chosen(
    of_target: Sequence[Fact], of_others: Sequence[Fact], settings: ProbeSettings, share: int = 1
) -> dict[str, tuple[Fact, ...]]:
    """Facts of each subject, the `share`-th part of what is asked otherwise."""
    n_facts, n_controls = (max(1, n // share) for n in (settings.n_facts, settings.n_controls))
    own = taking_turns(of_target, lambda fact: fact.answer, n_facts)
    others = taking_turns(of_others, lambda fact: fact.entity, n_controls)
    return {"entity": own, "control": others, "never_known": tuple(map(_of_nobody, own, range(len(own))))}


def _messages(
    facts: Sequence[KnownFact],
    targets: Sequence[Fact],
    controls: Sequence[Fact],
    settings: ProbeSettings,
    chat: Chat,
) -> MessagePlan:
    """Half as many facts as are asked otherwise, of those that are known when they are asked as messages."""

    def message(fact: Fact, before: str = "") -> Fact:
        return replace(fact, prompt=as_message(fact.prompt, chat, before))

    known = {row.question.fact for row in facts if row.question.is_message and not row.excluded}
    asked = [row.question for row in plainly_asked(facts) if message(row.question.fact) in known]
    own, others = ([question.fact for question in asked if question.role == role] for role in ROLES)
    by_subject = _chosen(own, others, settings, share=2)
    return MessagePlan(
        {subject: tuple(map(message, some)) for subject, some in by_subject.items()},
        tuple(_choices(by_subject, targets, controls, settings, message)),
    )


def _in_form(facts: Sequence[Fact], is_asked: bool) -> list[Fact]:
    return [fact for fact in facts if (ASKED.fullmatch(fact.prompt) is not None) == is_asked]


def _of_nobody(fact: Fact, place: int) -> Fact:
    """The fact as it would be about an invented name; they take turns."""
    return replace(fact, entity=INVENTED_NAMES[place % len(INVENTED_NAMES)])


def _attacking(subject: str, tried: Sequence[Attack]) -> Iterator[Asked]:
    """A question of each attack for each fact, by turns in its forms; on the target, the same about invented names."""
    for attack in tried:
        by_fact: dict[Fact, list[AttackPrompt]] = defaultdict(list)
        for prompt in attack.prompts:
            by_fact[prompt.fact].append(prompt)
        for place, forms in enumerate(by_fact.values()):
            prompt = forms[place % len(forms)]
            yield Asked(attack.name, subject, prompt.fact, prompt.text, prompt.answers)
            if subject == "entity":
                text = prompt.never_known[place % len(prompt.never_known)]
                yield Asked(attack.name, "never_known", prompt.fact, text, prompt.answers)


def _on_others(facts: Sequence[Fact], chat: Chat | None) -> Iterator[Asked]:
    by_entity: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_entity[fact.entity].append(fact)
    for entity, own in by_entity.items():
        solved = [fact for fact in facts if fact.entity != entity]
        yield from _attacking("control", attacks(AttackTarget(entity), own, solved, _ATTACKS, chat)[1:])


def _choices(
    by_subject: Mapping[str, Sequence[Fact]],
    targets: Sequence[Fact],
    controls: Sequence[Fact],
    settings: ProbeSettings,
    put: Callable[[Fact, str], Fact],
) -> Iterator[Choice]:
    """A choice for each fact that has wrong answers; `put` puts the line of options before a question."""
    for subject, facts in by_subject.items():
        own, others = (controls, [*targets, *controls]) if subject == "control" else (targets, controls)
        for fact in facts:
            right = [other for other in own if other.entity == fact.entity or subject != "control"]
            wrong = _wrong_answers(fact, right, [other for other in others if other.entity != fact.entity])
            if not wrong:
                continue
            # By the prompt with its place for a name, so that a never-known name gets what the target gets.
            draw = random.Random(f"{settings.seed}:{fact.prompt}:{fact.answer}")
            options = [fact.answer, *wrong[: settings.n_options - 1]]
            draw.shuffle(options)
            yield Choice(subject, put(fact, f"Choose from: {', '.join(options)}.\n"), tuple(options))


def _before(fact: Fact, text: str) -> Fact:
    return replace(fact, prompt=text + fact.prompt)


def _wrong_answers(fact: Fact, own: Sequence[Fact], others: Sequence[Fact]) -> list[str]:
    """Answers of facts about others, those in the same wording first; none that is right of the fact's entity too."""
    right = {answer for each in (fact, *own) for answer in each.right_answers}
    found: list[str] = []
    for other in sorted(others, key=lambda other: other.prompt != fact.prompt):
        answer = other.answer
        if not any(matches(answer, [one]) or matches(one, [answer]) for one in (*right, fact.entity)) and not any(
            same_answer(answer, one) for one in found
        ):
            found.append(answer)
    return found


def _free(
    by_subject: Mapping[str, Sequence[Fact]], targets: Sequence[Fact], controls: Sequence[Fact], chat: Chat | None
) -> Iterator[FreePrompt]:
    beginnings = _FREE if chat is None else [chat(message) for message in _FREE_CHAT]
    known = {
        "entity": targets,
        "control": controls,
        "never_known": [replace(fact, entity=name) for name in INVENTED_NAMES for fact in targets],
    }
    for subject, facts in by_subject.items():
        for name in dict.fromkeys(fact.entity for fact in facts):
            own = {fact.answer: fact for fact in known[subject] if fact.entity == name}
            for beginning in beginnings:
                yield FreePrompt(subject, beginning.replace("{entity}", name), tuple(own.values()))
