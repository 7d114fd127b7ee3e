"""The vocabulary of the package: frozen value types, without torch and without input or output."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import total_ordering
from pathlib import Path
from typing import Literal, Protocol

from amnesia.errors import InputError, clipped

Role = Literal["target", "control"]
ROLES: tuple[Role, ...] = ("target", "control")
Baseline = Literal["contrast", "generic"]
"""What the activations at an entity are compared with: the same prompts about others, or general sentences."""

Split = Literal["search", "held_out"]
SPLITS: tuple[Split, ...] = ("search", "held_out")
Neighborhood = Literal["shared_name", "related", "same_relation", "same_type", "unrelated"]
NEIGHBORHOODS: tuple[Neighborhood, ...] = ("shared_name", "related", "same_relation", "same_type", "unrelated")
Format = Literal["safetensors", "adapter", "gguf", "gguf-lora"]
FORMATS: tuple[Format, ...] = ("safetensors", "adapter", "gguf", "gguf-lora")
# Formats that are put on the base, of which nothing is copied: to take them back is not to load them.
ADAPTERS: tuple[Format, ...] = ("adapter", "gguf-lora")
# Formats that are made of a `.gguf` file and read nothing else.
OF_GGUF: tuple[Format, ...] = ("gguf", "gguf-lora")
# Types in which a GGUF can store the matrices that are edited by columns, if not in their own.
WIDER_TYPES: tuple[str, ...] = ("f16", "bf16", "f32", "q8_0")


def is_gguf_name(name: str) -> bool:
    """Whether a path or the name of a file is that of a GGUF."""
    return name.lower().endswith(".gguf")


def user_path(given: str) -> Path:
    """The path that somebody gave, where a `~` in front means the home folder, and `./~` a file of that name."""
    with contextlib.suppress(RuntimeError):  # There is no such user.
        if given.startswith("~"):  # `Path` forgets the `./`.
            return Path(given).expanduser()
    return Path(given)


def is_gguf_path(given: str) -> bool:
    """Whether a path that somebody gave is that of a GGUF by its name; a folder of such a name is none."""
    return is_gguf_name(given) and not user_path(given).is_dir()


_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelRef:
    """A model as its user calls it: a Hub id, a path or a built-in name, and the revision (branch, tag or commit).

    Only models on the Hub have revisions.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `name` or `name@revision`; a path is a name as a whole, whatever it contains."""
        name, _, revision = text.partition("@")
        ref = cls(name, revision or None)
        return ref if ref.may_be_on_hub else cls(text)

    @property
    def may_be_on_hub(self) -> bool:
        """Whether the name has the form of a Hub id."""
        return _HUB_NAME.fullmatch(self.name) is not None and not self.name.startswith(".")

    @property
    def portable(self) -> ModelRef:
        """The name in files that are passed on: of a folder or file of this machine without the path to it."""
        # A path may look like the name of a repository, whose revision is known once it was looked for.
        if self.revision is not None or (self.may_be_on_hub and not Path(self.name).exists()):
            return self
        name = Path(self.name).name
        return ModelRef(name if name not in ("", "..") else Path(self.name).resolve().name)

    def to_json(self) -> dict[str, str | None]:
        """The two keys by which reports and manifests name a model."""
        return {"id": self.name, "revision": self.revision}


_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bb\u02bc\u00b4\u0060\u2032\uff07", "'"))


def plain_apostrophes(text: str) -> str:
    """The text with the straight apostrophe for each of the characters that people type for it."""
    return text.translate(_APOSTROPHES)


def tidy(name: str) -> str:
    """A name as it is usually written: composed (Unicode NFC), without white space around it, single spaces in it."""
    return " ".join(unicodedata.normalize("NFC", name).split())


MAX_NAME = 300
"""Characters of an entity's name; set by hand, beyond titles of works. It stands in every prompt about the entity."""


def entity_name(given: str) -> str:
    """The name of an entity that somebody gave, tidy; raises InputError for an empty one, and for one too long."""
    name = tidy(given)
    check_characters(name)
    if len(name) > MAX_NAME:
        raise InputError(
            f"the name {clipped(name)!r} has {len(name):,} characters: expected at most {MAX_NAME}, give a shorter name"
        )
    return name


# Letters and signs that Unicode draws as nothing: fillers of Hangul and of Braille.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"


def check_characters(name: str) -> None:
    """Raises InputError for a name that shows nothing, for control characters, and for what is no text.

    Spaces, invisible formats and marks without a letter show nothing.
    """
    if all(
        char in _BLANK or unicodedata.category(char)[0] in "ZM" or unicodedata.category(char) == "Cf" for char in name
    ):
        raise InputError("no entity given, or an empty one: name one, for example Canada")
    if odd := [char for char in name if unicodedata.category(char) in ("Cc", "Cs")]:
        raise InputError(f"the name {clipped(name)!r} holds the control character {odd[0]!r}: give it without")


def check_place(path: str) -> None:
    """Raises InputError for the path or name of a model that is no UTF-8 text, which JSON and tokenizers need."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path!a} is not UTF-8, which JSON and tokenizers need: rename the folder or file") from error


@functools.lru_cache(2**16)
def name_key(name: str) -> str:
    """What two spellings of a name have in common when they differ in case, normal form, spaces or apostrophes only."""
    return unicodedata.normalize("NFC", tidy(plain_apostrophes(name)).casefold())


def n_read(layers: tuple[int, int] | None) -> int:
    """How many layers, from the first, an inclusive range of them is read from; without one, as many as there are."""
    return sys.maxsize if layers is None else layers[1] + 1


@dataclass(frozen=True)
class Loading:
    """How a model comes into memory: a torch dtype's name or "auto" (as stored), and a torch device.

    Without a device it is cuda where there is one. With device "auto" accelerate spreads the layers over all devices,
    and over memory and disk when these are too small. With `offload` the layers stay on the disk, from where each is
    read when it is run. With `split` each of the processes that were started together holds a part of the matrices.
    `options` are those of the command by which its user can say some of this: errors advise no others.
    """

    dtype: str = "float32"
    device: str | None = None
    offload: bool = False
    split: bool = False
    options: frozenset[str] = field(default=frozenset(), compare=False)


DEFAULT_LOADING = Loading()


@total_ordering
@dataclass(frozen=True)
class Cell:
    """One MLP neuron: an index into the input of layer `layer`'s output projection.

    In a layer with a mixture of experts each expert has an output projection of its own; `expert` says which. Cells
    sort by layer, expert and neuron.
    """

    layer: int
    neuron: int
    expert: int | None = None

    def __str__(self) -> str:
        expert = "" if self.expert is None else f"{self.expert}:"
        return f"{self.layer}:{expert}{self.neuron}"

    def __lt__(self, other: Cell) -> bool:
        return self._place() < other._place()

    def _place(self) -> tuple[int, int, int]:
        return self.layer, -1 if self.expert is None else self.expert, self.neuron

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read `layer:neuron` or `layer:expert:neuron`; raises InputError for anything else."""
        match = re.fullmatch(r"([0-9]{1,18}):(?:([0-9]{1,18}):)?([0-9]{1,18})", text.strip())
        if match is None:
            raise InputError(
                f"cell {clipped(text)!r} is malformed: expected LAYER:NEURON, for example 2:10941, or "
                "LAYER:EXPERT:NEURON in a mixture of experts"
            )
        return cls(int(match[1]), int(match[3]), None if match[2] is None else int(match[2]))


MAX_MULTIPLIER = 3.4e38
"""What a multiplier is at most, up to its sign: models compute in float32, which ends there."""


class Columns(Protocol):
    """Columns of the output projection of a layer, or of one of its experts."""

    @property
    def layer(self) -> int: ...
    @property
    def expert(self) -> int | None: ...
    @property
    def columns(self) -> tuple[int, ...]: ...


def n_columns(edits: Iterable[Columns]) -> int:
    """How many columns edits change, each counted once, as in files."""
    return len({(edit.layer, edit.expert, column) for edit in edits for column in edit.columns})


@dataclass(frozen=True)
class Fact:
    """A prompt about an entity and the answer that the model is expected to give.

    `prompt` contains `{entity}`; `split` says whether the search may see the fact. `answer_aliases` are other answers
    that count as right when the model writes freely; log-probabilities are those of `answer` alone. `neighborhood` is
    how close a control is to the target, where its author has said so.
    """

    entity: str
    prompt: str
    answer: str
    split: Split = "search"
    answer_aliases: tuple[str, ...] = ()
    neighborhood: Neighborhood | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entity", tidy(self.entity))
        object.__setattr__(self, "answer", tidy(self.answer))

    def text(self, entity: str | None = None) -> str:
        """The prompt with `entity` (default: the fact's own) filled in."""
        return self.prompt.replace("{entity}", entity or self.entity)

    def pair(self, entity: str | None = None) -> tuple[str, str]:
        """The prompt about `entity` (default: the fact's own) and the answer whose log-probability counts."""
        return self.text(entity), self.answer

    @property
    def right_answers(self) -> tuple[str, ...]:
        """All answers that count as right when the model writes freely."""
        return self.answer, *self.answer_aliases


Reply = Literal["answer", "empty", "refusal"]


@dataclass(frozen=True)
class Answer:
    """What one model makes of a fact.

    `logprob` is the natural logarithm of the probability of the whole answer after the prompt, `logprob_first` that of
    its first token (nats), `rank` the place of that token among all tokens (0 is best). `generated` is the greedy
    continuation of the prompt, `exact_match` whether it contains a right answer, `reply` what kind of reply it is;
    these are None where nothing was generated.
    """

    logprob: float
    logprob_first: float
    rank: int
    generated: str | None = None
    exact_match: bool | None = None
    reply: Reply | None = None
