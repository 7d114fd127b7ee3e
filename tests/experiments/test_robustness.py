"""Ranks and z-scores under other names against a localization of each name, answers against plain transformers."""

import pytest
import torch

from amnesia.domain import Cell
from amnesia.errors import InputError
from amnesia.experiments.robustness import Followed, robustness, unrelated_names
from amnesia.facts.names import contrast_entities, entity_templates
from amnesia.facts.variants import Variant
from amnesia.localization import cells
from amnesia.localization.cells import cell_maps
from oracles import plain
from support.tiny import tiny_direction
from support.tiny_text import tiny_live

OTHERS = contrast_entities()[::4]
FORMS = [
    Variant("Michael Jordan", "name"),
    Variant("Jordan", "last name"),
    Variant("마이클 조던", "translation", "ko"),
    Variant("マイケル・ジョーダン", "translation", "ja"),
    Variant("مايكل جوردان", "translation", "ar"),
    Variant("迈克尔·乔丹", "translation", "zh"),
    Variant("Майкл Джордан", "translation", "ru"),
]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", plain.FIVE)
def test_rows_equal_a_localization_of_each_name(model_type, monkeypatch):
    monkeypatch.setattr(cells, "contrast_entities", lambda: OTHERS)
    live = tiny_live(model_type)
    result = robustness(live, "Michael Jordan", FORMS, n_cells=3, unrelated=("Paris", "Nowhere"), n_prompts=3)
    assert [(row.name, row.kind, row.language) for row in result.names] == [
        *((form.name, form.kind, form.language) for form in FORMS),
        ("Paris", "unrelated", None),
        ("Nowhere", "unrelated", None),
    ]
    aliases = [form.name for form in FORMS]
    for row in result.names:
        (cell_map,), _, _ = cell_maps(live, [row.name], baseline="contrast", n_prompts=3, aliases=aliases)
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


@pytest.mark.slow
@pytest.mark.parametrize("model_type", plain.FIVE)
def test_directions_answer_at_the_token_of_a_name_where_they_answer_most(model_type):
    live = tiny_live(model_type)
    directions = [tiny_direction(1), tiny_direction(0, columns=(3, 8, 40), seed=1)]
    result = robustness(live, "Michael Jordan", FORMS, directions=directions, unrelated=("Nowhere",), n_prompts=3)
    assert result.directions == (Followed(1, 0, 16), Followed(0, 0, 3))
    for row in result.names:
        # Every template ends with the name, whose tokens may be fewer where it begins the text.
        found = []
        for template in entity_templates()[:3]:
            text, start = template.replace("{entity}", row.name), template.index("{entity}")
            ids = live.tokenizer(text, return_offsets_mapping=True)
            first = max(n for n, (low, high) in enumerate(ids["offset_mapping"]) if low <= start < high)
            activations = plain.run(live.model, ids["input_ids"])[1]
            found.append(
                torch.stack(
                    [
                        activations[edit.layer, first:, list(edit.columns)] @ torch.tensor(edit.read.array)
                        for edit in directions
                    ]
                ).flip(1)
            )
        n = min(own.shape[1] for own in found)
        answers = torch.stack([own[:, :n] for own in found])
        best = answers.mean(0).argmax(1)
        at = torch.stack([answers[:, place, token] for place, token in enumerate(best)])
        assert row.answers == pytest.approx(at.mean(1).tolist(), abs=1e-4)
        assert row.std_answers == pytest.approx(at.std(1, correction=0).tolist(), abs=1e-4)
    for kind in result.kinds:
        values = [value for row in result.names if row.kind == kind.kind for value in row.answers]
        assert kind.mean_answer == pytest.approx(sum(values) / len(values))


def test_unrelated_names_share_no_word_with_any_form():
    names = unrelated_names(["Japan", "Paris"], 4)
    assert len(set(names)) == 4
    assert not set(names) & {"Japan", "Paris"}
    forms = [Variant("Japan", "name"), Variant("Paris", "given")]
    result = robustness(tiny_live(), "Japan", forms, unrelated=names, n_prompts=3)
    assert [row.name for row in result.names if row.kind == "unrelated"] == list(names)
    assert {row.answers for row in result.names} == {()}
    assert {row.mean_answer for row in result.kinds} == {None}
