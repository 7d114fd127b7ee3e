"""Trees of token rows: every row can be read back, nothing shared stands twice, and only ancestors are visible."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amnesia.live.trees import forests, trees, visible

# Drawing lists of lists takes its time on a busy machine, which says nothing about the code.
patient = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=15)


@patient
@given(ROWS, st.integers(4, 20), st.integers(1, 10))
def test_rows_are_read_back_from_their_trees(rows, max_tokens, max_rows):
    seen = []
    for tree in trees(rows, max_tokens, max_rows):
        assert len(tree.ids) <= max_tokens or len(tree.rows) == 1
        assert len(tree.rows) <= max_rows
        for index, slots in zip(tree.rows, tree.slots, strict=True):
            assert [tree.ids[slot] for slot in slots] == rows[index]
            assert [tree.positions[slot] for slot in slots] == list(range(len(rows[index])))
            assert [tree.parents[slot] for slot in slots] == [-1, *slots[:-1]]
        seen += tree.rows
    assert sorted(seen) == list(range(len(rows)))


@patient
@given(ROWS)
def test_one_tree_holds_every_prefix_once(rows):
    (tree,) = trees(rows, 10_000, 10_000)
    assert len(tree.ids) == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})


@patient
@given(ROWS, st.integers(4, 40))
def test_a_place_sees_itself_and_what_precedes_it(rows, max_tokens):
    for forest in forests(rows, max_tokens, 5, 3):
        width = max(len(tree.ids) for tree in forest)
        assert width * len(forest) <= max_tokens or len(forest) == 1
        assert len(forest) <= 3
        assert sum(len(tree.rows) for tree in forest) <= 5
        mask = visible(forest, width)
        for line, tree in enumerate(forest):
            for slots in tree.slots:
                for place, slot in enumerate(slots):
                    assert mask[line, slot].nonzero().flatten().tolist() == sorted(slots[: place + 1])
            for place in range(len(tree.ids), width):
                assert mask[line, place].nonzero().flatten().tolist() == [place]


def test_the_mask_of_a_small_tree():
    (tree,) = trees([[7, 8, 9], [7, 8, 4], [5]], 10, 10)
    assert (tree.ids, tree.positions, tree.parents) == ((5, 7, 8, 4, 9), (0, 0, 1, 2, 2), (-1, -1, 1, 2, 2))
    expected = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 0, 1]]
    assert visible([tree], 5)[0].tolist() == torch.tensor(expected, dtype=torch.bool).tolist()
