"""Ranks and z-scores under other names against a localization of each name."""

import pytest

from amnesia.domain import Cell
from amnesia.errors import InputError
from amnesia.experiments.robustness import robustness
from amnesia.facts.variants import Variant
from amnesia.localization.cells import cell_maps
from oracles.plain import FIVE
from support.tiny_text import tiny_live

FORMS = [
    Variant("Michael Jordan", "name"),
    Variant("Jordan", "last name"),
    Variant("마이클 조던", "translation", "ko"),
    Variant("マイケル・ジョーダン", "translation", "ja"),
    Variant("مايكل جوردان", "translation", "ar"),
    Variant("迈克尔·乔丹", "translation", "zh"),
    Variant("Майкл Джордан", "translation", "ru"),
]


@pytest.mark.parametrize("model_type", FIVE)
def test_rows_equal_a_localization_of_each_name(model_type):
    live = tiny_live(model_type)
    result = robustness(live, "Michael Jordan", FORMS, n_cells=3, unrelated=("Paris", "Nowhere"), n_prompts=6)
    assert [(row.name, row.kind, row.language) for row in result.names] == [
        *((form.name, form.kind, form.language) for form in FORMS),
        ("Paris", "unrelated", None),
        ("Nowhere", "unrelated", None),
    ]
    aliases = [form.name for form in FORMS]
    for row in result.names:
        (cell_map,), _, _ = cell_maps(live, [row.name], baseline="contrast", n_prompts=6, aliases=aliases)
        order = [score.cell for score in cell_map.top(10_000)]
        for cell, rank, mean in zip(result.cells, row.ranks, row.mean_z, strict=True):
            assert abs(order.index(cell) + 1 - rank) <= 1  # Scores that differ by rounding may change places.
            assert mean == pytest.approx(cell_map.mean_z[cell.layer, cell.neuron].item(), rel=1e-3, abs=1e-4)
    assert result.names[0].ranks == (1, 2, 3)
    summary = {row.kind: row for row in result.kinds}
    assert summary["name"].median_rank == 2
    assert (summary["translation"].n, summary["unrelated"].n) == (5, 2)


def test_cells_outside_of_the_search_are_refused():
    with pytest.raises(InputError, match="cell 0:3 is out of range: tiny was searched in layers 1–2"):
        robustness(tiny_live(), "Japan", [], cells=[Cell(0, 3)], layers=(1, 2), n_prompts=3)


def test_unrelated_names_share_no_word_with_any_form():
    forms = [Variant("Japan", "name"), Variant("Paris", "given")]
    result = robustness(tiny_live(), "Japan", forms, n_unrelated=4, n_prompts=3)
    names = [row.name for row in result.names if row.kind == "unrelated"]
    assert len(names) == 4
    assert not set(names) & {"Japan", "Paris"}
