import pytest

from amnesia.domain import Cell, ColumnEdit, Fact, check_edits
from amnesia.errors import AmnesiaError, InputError, first_line


@pytest.mark.parametrize("cell", [Cell(0, 0), Cell(2, 10941)])
def test_cells_round_trip_through_text(cell):
    assert Cell.parse(str(cell)) == cell
    assert Cell.parse(f" {cell}\n") == cell


@pytest.mark.parametrize("text", ["", "2", "2:", ":3", "2:-1", "-1:2", "2:3:4", "a:b", "2 3", "2:3.0"])
def test_malformed_cells(text):
    with pytest.raises(InputError, match=r"is malformed: expected LAYER:NEURON, for example 2:10941"):
        Cell.parse(text)


def test_edits_sort_by_cell_and_show_their_multiplier():
    edits = (ColumnEdit(Cell(2, 1)), ColumnEdit(Cell(0, 5), -0.5), ColumnEdit(Cell(0, 3), 2.0))
    assert [str(edit) for edit in check_edits(edits, 3, 6, "m")] == ["0:3×2", "0:5×-0.5", "2:1×-1"]


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([], "no cells to edit: give at least one LAYER:NEURON"),
        ([ColumnEdit(Cell(3, 0))], r"layer 3 is out of range: m has layers 0–2; run `amnesia localize`"),
        ([ColumnEdit(Cell(-1, 0))], r"layer -1 is out of range"),
        ([ColumnEdit(Cell(0, 6))], r"neuron 6 is out of range: layer 0 of m has neurons 0–5; run `amnesia localize`"),
        ([ColumnEdit(Cell(0, 1)), ColumnEdit(Cell(0, 1), -2.0)], "cell 0:1 is listed twice: give each cell once"),
        ([ColumnEdit(Cell(0, 1), 1.0)], "changes nothing or is not finite: use -1"),
        ([ColumnEdit(Cell(0, 1), float("nan"))], "is not finite"),
        ([ColumnEdit(Cell(0, 1), float("-inf"))], "is not finite"),
    ],
)
def test_edits_that_the_model_cannot_take(edits, message):
    with pytest.raises(InputError, match=message):
        check_edits(edits, 3, 6, "m")


def test_a_fact_fills_in_its_entity_or_another():
    fact = Fact("Japan", "{entity}, the capital of {entity}, {odd}", "x")
    assert fact.text() == "Japan, the capital of Japan, {odd}"
    assert fact.text("Sarah") == "Sarah, the capital of Sarah, {odd}"


def test_errors_are_also_of_the_builtin_kind_and_give_one_line():
    assert issubclass(InputError, AmnesiaError)
    assert issubclass(InputError, ValueError)
    assert first_line(ValueError("\n first\nsecond")) == "first"
    assert first_line(KeyError()) == "KeyError"
