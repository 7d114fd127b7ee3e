import pytest

from amnesia.domain import Cell, Fact, ModelRef
from amnesia.edit_checks import check_edits
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError, InputError, first_line


@pytest.mark.parametrize("cell", [Cell(0, 0), Cell(2, 10941), Cell(2, 10941, 0), Cell(0, 3, 127)])
def test_cells_round_trip_through_text(cell):
    assert Cell.parse(str(cell)) == cell
    assert Cell.parse(f" {cell}\n") == cell


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":3", "2:-1", "-1:2", "2:3:4:5", "2::4", "a:b", "2 3", "9" * 5000 + ":1", "٣:1"]
)
def test_malformed_cells(text):
    with pytest.raises(InputError, match=r"is malformed: expected LAYER:NEURON, for example 2:10941, or LAYER:EXPERT:"):
        Cell.parse(text)


def test_edits_sort_by_cell_and_show_their_multiplier():
    edits = (ColumnEdit(Cell(2, 1)), ColumnEdit(Cell(0, 5), -0.5), ColumnEdit(Cell(0, 3), 2.0))
    assert [str(edit) for edit in check_edits(edits, 3, 4, 6, "m")] == ["0:3×2", "0:5×−0.5", "2:1×−1"]


def test_cells_sort_by_layer_expert_and_neuron():
    cells = [Cell(0, 9), Cell(0, 1, 0), Cell(0, 2, 0), Cell(0, 0, 3), Cell(1, 0)]
    assert sorted([cells[3], cells[4], cells[1], cells[2], cells[0]]) == cells
    assert Cell(0, 1) != Cell(0, 1, 0)
    assert sorted([(Cell(0, 1, 0), 1.0), (Cell(0, 1), 2.0)])[0][1] == 2.0


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell(0, 1, 2), r"cell 0:2:1 names an expert: layer 0 of m has none that can be edited; write it as 0:1"),
        (Cell(1, 1), r"cell 1:1 names no expert: layer 1 of m has experts 0–3; write it as LAYER:EXPERT:NEURON"),
        (Cell(1, 1, 4), r"expert 4 is out of range: layer 1 of m has experts 0–3; give one of these"),
        (Cell(1, 5, 3), r"neuron 5 is out of range: each expert of layer 1 of m has neurons 0–4; give one of these"),
    ],
)
def test_cells_of_experts_must_exist(cell, message):
    experts, widths = {1: (4, 5)}.get, {0: 6, 1: 0}.__getitem__
    check_edits([ColumnEdit(Cell(0, 5)), ColumnEdit(Cell(1, 4, 3))], 2, 4, widths, "m", experts)
    with pytest.raises(InputError, match=message):
        check_edits([ColumnEdit(cell)], 2, 4, widths, "m", experts)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([], "nothing to edit: give at least one LAYER:NEURON"),
        ([ColumnEdit(Cell(3, 0))], r"layer 3 is out of range: m has layers 0–2; run `amnesia localize`"),
        ([ColumnEdit(Cell(-1, 0))], r"layer -1 is out of range"),
        ([ColumnEdit(Cell(0, 6))], r"neuron 6 is out of range: layer 0 of m has neurons 0–5; run `amnesia localize`"),
        ([ColumnEdit(Cell(0, 1)), ColumnEdit(Cell(0, 1), -2.0)], "cell 0:1 is listed twice: give each cell once"),
        ([ColumnEdit(Cell(0, 1), 1.0)], "changes nothing or is beyond ±3.4e\\+38: use -1"),
        ([ColumnEdit(Cell(0, 1), float("nan"))], "multiplier nan of cell 0:1"),
        ([ColumnEdit(Cell(0, 1), float("-inf"))], "multiplier -inf of cell 0:1"),
        ([ColumnEdit(Cell(0, 1), 1e39)], "multiplier 1e\\+39 of cell 0:1"),
    ],
)
def test_edits_that_the_model_cannot_take(edits, message):
    with pytest.raises(InputError, match=message):
        check_edits(edits, 3, 4, 6, "m")


def test_a_fact_fills_in_its_entity_or_another():
    fact = Fact("Japan", "{entity}, the capital of {entity}, {odd}", "x")
    assert fact.text() == "Japan, the capital of Japan, {odd}"
    assert fact.text("Sarah") == "Sarah, the capital of Sarah, {odd}"


def test_errors_are_also_of_the_builtin_kind_and_give_one_line():
    assert issubclass(InputError, AmnesiaError)
    assert issubclass(InputError, ValueError)
    assert first_line(ValueError("\n first\nsecond")) == "first"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/m", ModelRef("org/m")),
        ("org/m@v1", ModelRef("org/m", "v1")),
        ("gpt2@refs/pr/1", ModelRef("gpt2", "refs/pr/1")),
        ("org/m@a@b", ModelRef("org/m", "a@b")),
        ("/data/me@host/m", ModelRef("/data/me@host/m")),
        ("./x@y", ModelRef("./x@y")),
        ("~/a@b", ModelRef("~/a@b")),
        ("a/b/c@d.gguf", ModelRef("a/b/c@d.gguf")),
        ("", ModelRef("")),
    ],
)
def test_models_by_name(text, ref):
    assert ModelRef.parse(text) == ref
    assert str(ref) == text


def test_the_edits_of_an_entity_are_any_sequence_and_have_a_name():
    edit = ColumnEdit(Cell(0, 1))
    assert EntityEdits("Japan", [edit]) == EntityEdits("Japan", (edit,))
    assert hash(EntityEdits("Japan", iter([edit]))) == hash(EntityEdits("Japan", (edit,)))
    with pytest.raises(InputError, match="an entity without a name"):
        EntityEdits("", (edit,))
    with pytest.raises(InputError, match="nothing to edit"):
        EditSpec((), ModelRef("m"))
