"""Lay texts out as trees: where rows of tokens begin alike, what they share stands, and is computed, once.

A causal model's keys, values and activations at a token depend only on that token and those before it. So rows that
share a prefix can share its computation: every tree is one sequence in which a token sees itself and its ancestors.
Positions count from the beginning of each row. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TREE_TOKENS = 192
"""Tokens in one tree. The attention of a tree is quadratic in it, what trees cannot share with each other is linear."""


LABEL = 1 << 32
"""A token id plus n × LABEL is the same token, kept apart from others: it, and what follows it, stands for itself."""


@dataclass(frozen=True)
class Tree:
    """Rows of tokens with shared beginnings.

    `rows` are indices into the caller's list, and `slots[i]` the places in the tree of the tokens of row `rows[i]`.
    Each place has a token id, its `parents` place (-1 at the root), and its position in the text.
    """

    rows: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    ids: tuple[int, ...]
    parents: tuple[int, ...]
    positions: tuple[int, ...]


def trees(rows: Sequence[Sequence[int]], max_tokens: int, max_rows: int) -> Iterator[Tree]:
    """Group rows of token ids into trees of at most `max_tokens` places and `max_rows` rows.

    A longer row has a tree for itself.
    """
    # Sorted, rows that begin alike are neighbors, and a row shares the most with the one before it.
    order = sorted(range(len(rows)), key=lambda index: tuple(rows[index]))
    members: list[int] = []
    slots: list[tuple[int, ...]] = []
    ids: list[int] = []
    parents: list[int] = []
    positions: list[int] = []
    for index in order:
        row = rows[index]
        shared = common(row, rows[members[-1]]) if members else 0
        if members and (len(ids) + len(row) - shared > max_tokens or len(members) == max_rows):
            yield Tree(tuple(members), tuple(slots), tuple(ids), tuple(parents), tuple(positions))
            members, slots, ids, parents, positions, shared = [], [], [], [], [], 0
        path = list(slots[-1][:shared]) if slots else []
        for position in range(shared, len(row)):
            parents.append(path[-1] if path else -1)
            path.append(len(ids))
            ids.append(row[position] % LABEL)
            positions.append(position)
        members.append(index)
        slots.append(tuple(path))
    if members:
        yield Tree(tuple(members), tuple(slots), tuple(ids), tuple(parents), tuple(positions))


def forests(
    rows: Sequence[Sequence[int]], max_tokens: int, max_rows: int, max_trees: int
) -> Iterator[tuple[Tree, ...]]:
    """Trees in batches of at most `max_tokens` places, padding to the widest tree included, `max_rows` and `max_trees`.

    A row that is longer than `max_tokens` has a batch for itself.
    """
    group: list[Tree] = []
    width = n_rows = 0
    for tree in trees(rows, min(TREE_TOKENS, max_tokens), max_rows):
        n_places = max(width, len(tree.ids)) * (len(group) + 1)
        if n_places > max_tokens or n_rows + len(tree.rows) > max_rows or len(group) == max_trees:
            if group:
                yield tuple(group)
            group, width, n_rows = [], 0, 0
        group.append(tree)
        width = max(width, len(tree.ids))
        n_rows += len(tree.rows)
    if group:
        yield tuple(group)


def visible(forest: Sequence[Tree], width: int) -> Tensor:
    """Which places each place sees, boolean (n_trees, width, width): itself and its ancestors.

    Padding sees itself, because an attention without anything to see is not a number.
    """
    mask = torch.eye(width, dtype=torch.bool).repeat(len(forest), 1, 1).numpy()
    for line, tree in enumerate(forest):
        for place, parent in enumerate(tree.parents):
            if parent >= 0:
                mask[line, place] |= mask[line, parent]
    return torch.from_numpy(mask)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )
