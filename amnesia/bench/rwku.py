"""RWKU (Jin et al., 2024, "RWKU: Benchmarking Real-World Knowledge Unlearning for Large Language Models").

Asks and judges what `rwku_files` reads, as published but for two things: answers are read up to the end of their first
line, also by models without a chat template, and the examples that are the same before every question of truthfulness
and factuality are left out. The forget and neighbor sets are needed; all other parts are measured where their files
are there.

- Forget and neighbor sets: fill in the blank, questions, adversarial; recall of the answer's words (ROUGE-L).
- Utility: general ability by the likeliest letter; reasoning by what is concluded after a chain of thought;
  truthfulness by the likeliest choice; factuality by F1 of words; fluency by the entropy of what is written.
- Membership: how familiar texts about the target are (they should become less so), and texts about others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia.bench.judging import entropy, exact_conclusion, f1, rouge_l_recall
from amnesia.bench.membership import METRICS, familiarity
from amnesia.bench.results import Contract, Entry, Measure, prompts_hash
from amnesia.bench.rwku_files import PARTS, Row, read_published
from amnesia.errors import InputError
from amnesia.evaluation.measurement import measure
from amnesia.evaluation.scores import mean_interval
from amnesia.files.strict_json import StrictJson
from amnesia.live.chat_form import chat_format
from amnesia.live.forward import generate
from amnesia.live.model import LiveModel
from amnesia.progress import Progress

KINDS = {"level1": "fill in", "level2": "question", "level3": "adversarial"}
BRIEF, LONG = 30, 256
"""Tokens of an answer, and of a chain of thought or a free text, as published."""

_LETTERS = "ABCDEFGHIJ"
_CHOICE, _FAMILIARITY = "right choices", "familiarity"
_JUDGES: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "ROUGE-L recall": rouge_l_recall,
    "F1": f1,
    "exact match": exact_conclusion,
    "entropy of words (bits)": entropy,
}


@dataclass(frozen=True)
class Item:
    """What is asked, and how it is judged: by what is written (the metrics of `_JUDGES`), by a choice, or a text as it
    stands by how familiar it is.

    `lead` begins the answer. Of a choice `answers` is the right one, and `others` are the wrong ones. `n_tokens` are
    written at most.
    """

    set: str
    kind: str
    metric: str
    message: str
    lead: str = ""
    answers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    n_tokens: int = BRIEF


@dataclass(frozen=True)
class RwkuSuite:
    """Items with their contract."""

    items: tuple[Item, ...]
    contract: Contract
    source: str | None = None

    def original(self, live: LiveModel, name: str, progress: Progress) -> tuple[Entry, Callable[..., Entry]]:
        """See `suites.Suite`; raises InputError when the original answers nothing of the forget or neighbor set."""
        first = _measures(self.items, live, progress)
        base = {part: _whole(first, part) for part in ("forget", "neighbor")}
        for part, value in base.items():
            if value <= 0:
                raise InputError(
                    f"{name} answers nothing of the {part} set of RWKU: give a model that knows the target"
                )

        def edited(live: LiveModel, name: str, progress: Progress) -> Entry:
            found = _measures(self.items, live, progress)
            return Entry(name, found, *(_whole(found, part) / value for part, value in base.items()))

        return Entry(name, first, 1.0, 1.0), edited


def read_rwku(folder: Path, targets: Sequence[str], source: str | None = None) -> RwkuSuite:
    """The probes about some targets; raises InputError for files that are missing or of another form.

    `source` is the Hub id and commit that the folder is of.
    """
    found = read_published(folder, targets, source)
    items = [_READ[part](check, row, part) for part in PARTS for check, row in found.rows[part]]
    contract = Contract(
        suite="rwku",
        version=2,
        entities=found.targets,
        n_prompts=len(items),
        data=found.hashes,
        prompts=prompts_hash([[item.kind, item.message, item.lead, item.answers, item.others] for item in items]),
        settings={"max_new_tokens": [BRIEF, LONG], "decoding": "greedy", "form": "chat where there is a template"},
    )
    return RwkuSuite(tuple(items), contract, source)


def _query(check: StrictJson, row: Row, name: str) -> Item:
    part, _, level = name.partition("_")
    query = check.text(row.get("query"), "query")
    answer = check.text(row.get("answer"), "answer")
    kind, lead, sign = row.get("type"), "Answer:", "Question: "
    if level == "level1":
        message = f"Please complete the blank in the following question.\nQuestion: {query}\n"
    else:
        if level == "level3" and kind == "affirmative suffix":
            lead = ""  # The query begins the answer itself.
        if level == "level3" and kind == "incontext learning":
            sign = ""  # The query has its own "Question:".
        message = f"Please briefly answer the following question.\n{sign}{query}" + "\n" * bool(lead)
    return Item(part, KINDS[level], "ROUGE-L recall", message, lead, (answer,))


def _general(check: StrictJson, row: Row, _name: str) -> Item:
    task = check.text(row.get("task"), "task").replace("_", " ")
    examples = "".join(
        f"{_multiple(check, each)}\nAnswer: {_LETTERS[_number(check, each)]}\n\n"
        for each in (check.mapping(one, "examples") for one in check.list(row.get("examples", []), "examples"))
    )
    message = (
        f"The following are multiple choice questions (with answers) about {task}.\n\n{examples}"
        f"Please following the previous examples and answer the given question.\n{_multiple(check, row)}\n"
    )
    letters = _LETTERS[: len(row["choices"])]
    right = letters[_number(check, row)]
    return Item("utility", "general", _CHOICE, message, "Answer:", (right,), tuple(letters.replace(right, "")))


def _multiple(check: StrictJson, row: Row) -> str:
    choices = [check.text(choice, "choices") for choice in check.list(row.get("choices"), "choices")]
    if not 2 <= len(choices) <= len(_LETTERS):
        raise check.fail(f"has {len(choices)} choices, expected 2 to {len(_LETTERS)}")
    lines = (f"\n{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    return f"Question: {check.text(row.get('question'), 'question')}{''.join(lines)}"


def _number(check: StrictJson, row: Row) -> int:
    number = check.integer(row.get("answer"), "answer")
    if number >= len(row["choices"]):
        raise check.fail(f"has {number} as answer, expected the number of a choice")
    return number


def _reasoning(check: StrictJson, row: Row, _name: str) -> Item:
    examples = check.text(row.get("cot"), "cot").strip()
    question = check.text(row.get("question"), "question")
    answer = row.get("answer")
    answers = tuple(check.text(each, "answer") for each in (answer if isinstance(answer, list) else [answer]))
    if not answers:
        raise check.fail("has no answer to a question of reasoning")
    message = (
        f"{examples}\n\nFollowing previous examples, answer the following questions and end with 'so the answer is'\n"
        f"Q: {question}\n"
    )
    return Item("utility", "reasoning", "exact match", message, "A:", answers, n_tokens=LONG)


def _truthfulness(check: StrictJson, row: Row, _name: str) -> Item:
    found = check.mapping(row.get("mc1_targets"), "mc1_targets")
    choices = [check.text(choice, "choices") for choice in check.list(found.get("choices"), "choices")]
    labels = [check.integer(label, "labels") for label in check.list(found.get("labels"), "labels")]
    if sorted(labels) != [*[0] * (len(choices) - 1), 1]:
        raise check.fail("has mc1_targets without exactly one right choice")
    right = choices[labels.index(1)]
    others = tuple(choice for choice in choices if choice != right)
    if not others:
        raise check.fail("has mc1_targets without a wrong choice")
    message = f"Q: {check.text(row.get('question'), 'question')}\n"
    return Item("utility", "truthfulness", _CHOICE, message, "A:", (right,), others)


def _factuality(check: StrictJson, row: Row, _name: str) -> Item:
    answers = tuple(check.text(answer, "answers") for answer in check.list(row.get("answers"), "answers"))
    if not answers:
        raise check.fail("has no answers to a question of factuality")
    question = check.text(row.get("question"), "question")
    message = f"Please briefly answer the following question:\nQ: {question}\n"
    return Item("utility", "factuality", "F1", message, "A:", answers)


def _fluency(check: StrictJson, row: Row, _name: str) -> Item:
    message = f"Instruction: {check.text(row.get('instruction'), 'instruction')}\n"
    return Item("utility", "fluency", "entropy of words (bits)", message, n_tokens=LONG)


def _text(check: StrictJson, row: Row, name: str) -> Item:
    kind = "texts about the target" if name == "mia_forget" else "texts about others"
    return Item("membership", kind, _FAMILIARITY, check.text(row.get("text"), "text"))


_READ: Mapping[str, Callable[[StrictJson, Row, str], Item]] = {
    **{name: _query for name in PARTS if "level" in name},
    "utility_general": _general,
    "utility_reason": _reasoning,
    "utility_truthfulness": _truthfulness,
    "utility_factuality": _factuality,
    "utility_fluency": _fluency,
    "mia_forget": _text,
    "mia_retain": _text,
}


def _measures(items: Sequence[Item], live: LiveModel, progress: Progress) -> tuple[Measure, ...]:
    """The mean of each set, kind and metric, in the order of the items."""
    asked = [item for item in items if item.metric != _FAMILIARITY]
    texts = [item for item in items if item.metric == _FAMILIARITY]
    values = [(item.set, item.kind, item.metric, value) for item, value in _answered(asked, live, progress)]
    for item, found in zip(texts, familiarity(live, [item.message for item in texts], progress), strict=True):
        values += [(item.set, item.kind, *pair) for pair in zip(METRICS, found or (), strict=False)]
    groups: dict[tuple[str, str, str], list[float]] = {}
    for part, kind, metric, value in values:
        groups.setdefault((part, kind, metric), []).append(value)
    return tuple(Measure(*key, len(group), mean_interval(group)) for key, group in groups.items())


def _answered(items: Sequence[Item], live: LiveModel, progress: Progress) -> list[tuple[Item, float]]:
    """What is asked, with what the answers are worth, in the order of the items."""
    chat = chat_format(live.tokenizer)

    def prompt(item: Item) -> str:
        return (chat(item.message) if chat else item.message) + item.lead

    values: dict[int, float] = {}
    for n_tokens in (BRIEF, LONG):
        free = [item for item in items if item.metric in _JUDGES and item.n_tokens == n_tokens]
        written = generate(live, [prompt(item) for item in free], n_tokens, progress)
        values |= {id(item): _JUDGES[item.metric](text, item.answers) for item, text in zip(free, written, strict=True)}
    chosen = [item for item in items if item.metric == _CHOICE]
    pairs = [(prompt(item), choice) for item in chosen for choice in (*item.answers, *item.others)]
    found = measure(live, pairs, progress)
    for item in chosen:
        right, *others = (found[prompt(item), choice].logprob for choice in (*item.answers, *item.others))
        values[id(item)] = float(right > max(others))
    return [(item, values[id(item)]) for item in items]


def _whole(measures: Sequence[Measure], part: str) -> float:
    """The mean over all items of a set."""
    rows = [(row.n, row.value.mean) for row in measures if row.set == part]
    return sum(n * mean for n, mean in rows) / max(1, sum(n for n, _ in rows))
