"""What a recipe says: which model forgets what, and how the result is judged; `recipe_file` reads it."""

from __future__ import annotations

from dataclasses import dataclass

from amnesia.domain import Baseline, Fact, Format, ModelRef, Role, Split, entity_name
from amnesia.edits import ColumnEdit

BASELINES: tuple[Baseline, ...] = ("contrast", "generic")
METHODS = ("auto", "single")
PREFERENCES = ("few", "mild")


@dataclass(frozen=True)
class Accept:
    """Bounds on mean knowledge scores: targets at most, held-out targets at most, (held-out) controls at least; and at
    most on perplexity after the edit over that before, for each language in which the original model is fluent."""

    # Dimensionless, any finite number; held-out wordings are harder. Set by hand, not measured.
    max_target: float = 0.2
    max_held_out_target: float = 0.4
    min_control: float = 0.95
    max_perplexity: float = 1.1

    def limit(self, role: Role, split: Split) -> float:
        """The bound on the mean knowledge score of a role and split: of targets the highest, of others the lowest."""
        if role == "control":
            return self.min_control
        return self.max_target if split == "search" else self.max_held_out_target


@dataclass(frozen=True)
class Scoring:
    """When a fact counts as known: nats above an unknown entity, and rank of the answer's first token (0 is best)."""

    min_nats: float = 1.0  # 0 or more: scores are divided by it at least. Set by hand, not measured.
    max_rank: int = 10  # 0 or more. Set by hand, not measured.


@dataclass(frozen=True)
class Translation:
    """The entity's name in another language, given by its code (BCP 47, as `ko` or `zh-Hant`)."""

    language: str
    name: str


@dataclass(frozen=True)
class Target:
    """Whom the model should forget, of `[entity]`: its name, other names, names in other languages; and names of others
    that are easily taken for it, which must stay. Raises InputError for a name that `entity_name` refuses."""

    entity: str
    aliases: tuple[str, ...] = ()
    translations: tuple[Translation, ...] = ()
    neighbors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "entity", entity_name(self.entity))
        for key in ("aliases", "neighbors"):
            object.__setattr__(self, key, tuple(map(entity_name, getattr(self, key))))
        for row in self.translations:
            entity_name(row.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The entity's name and its aliases, without translations."""
        return self.entity, *self.aliases


@dataclass(frozen=True)
class LocalizeOptions:
    """How cells are ranked, of `[localize]`: `n_prompts` about the entity, against the prompts of a baseline.

    `layers` are the first and the last one that are searched (both included, from 0), None for the early ones.
    """

    baseline: Baseline = "contrast"
    n_prompts: int = 100  # 2 to 100: all templates there are.
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class EditOptions:
    """What is edited and in which formats, of `[edit]` and `[[cells]]`.

    `method` "auto" takes a direction on as many columns as it needs, "single" the column of a single cell. `max_cells`
    bounds the columns of all directions together (None: no bound); `prefer` says whether the edit takes few columns or
    is the mildest, which changes all. With `forms`, other forms of the name go with it; with `neighbors`, those are
    spared that share a word with it, where need be by more columns. `multiplier` is None for "auto": the choice finds
    it. `cells` is empty unless the recipe fixes the edit.
    """

    method: str = "auto"
    max_cells: int | None = None  # 1 or more.
    prefer: str = "few"
    forms: bool = True
    neighbors: bool = True
    multiplier: float | None = None  # Below 1.
    formats: tuple[Format, ...] = ("safetensors",)
    cells: tuple[ColumnEdit, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A recipe for one entity, checked and with every default filled in; `text` is the file as it was read."""

    model: ModelRef
    target: Target
    facts: tuple[Fact, ...]
    controls: tuple[Fact, ...]
    localization: LocalizeOptions
    edit: EditOptions
    scoring: Scoring
    accept: Accept
    text: str
