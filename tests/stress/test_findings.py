import pytest

from amnesia.evaluation.results import Estimate
from amnesia.stress.findings import stress_findings
from amnesia.stress.persuasion import PERSUASIONS
from amnesia.stress.results import (
    AttackResult,
    QuantizationResult,
    Stress,
    StressScore,
)


def rows(other, **scores):
    """Rows of the edited model for the entity and `other`, and of the original that knows everything."""
    return tuple(
        StressScore(subject, model, 4, 4, Estimate(value, value, value), 0.0)
        for subject in ("entity", other)
        for model, value in (("original", 1.0), ("edited", scores[subject]))
    )


def attack(name, entity, never_known=0.0, reason=None, known=True):
    found = () if reason else rows("never_known", entity=entity, never_known=never_known)
    return AttackResult(name, "", "the plain question", 0, 0, known and not reason, found, (), (), reason)


def quantized(method, entity, control=1.0, reason=None, known=True):
    found = () if reason else rows("control", entity=entity, control=control)
    return QuantizationResult(method, "", known and not reason, found, reason)


def found(attacks=(), quantization=(), plain=0.1):
    stress = Stress(4, 4, ("X",), (attack("plain", plain), *attacks), tuple(quantization))
    return [(row.level, row.text) for row in stress_findings(stress, "Japan")]


NOTHING = [("good", "Nothing that was tried brought Japan back above a knowledge score of 0.4.")]


def test_nothing_came_back():
    assert found([attack("paraphrase", 0.4), attack("alias", 0, reason="no aliases")]) == NOTHING
    assert found(quantization=[quantized("Q4_0", 0.3, 0.81), quantized("int8", 0, reason="no")]) == NOTHING


def test_what_an_attack_brings_back():
    assert found([attack("in_context_hint", 0.62, 0.31)]) == [
        (
            "warning",
            "Japan comes back when asked after a hint: knowledge score 0.62 (original model 1.00, plain questions 0.10, "
            "invented names 0.31).",
        )
    ]
    # What the question gives away to anybody did not come from the model.
    assert found([attack("in_context_hint", 0.62, 0.5)]) == [
        (
            "good",
            "Nothing that was tried brought Japan back: its knowledge score rose to 0.62 at most, and an invented "
            "name's rose about as far.",
        )
    ]


def test_what_quantization_brings_back_and_costs():
    assert found(quantization=[quantized("none", 0.1), quantized("Q4_0", 0.55, 0.5), quantized("Q8_0", 0.1, 0.9)]) == [
        (
            "damage",
            "Quantized as Q4_0, the edited model keeps 0.50 of what is known about others; "
            "the original, quantized in the same way, 1.00.",
        ),
        ("warning", "Japan comes back when quantized as Q4_0: knowledge score 0.55."),
    ]


def test_what_shows_little_in_the_original_is_reported_as_saying_nothing():
    silent = [quantized("int8", 0.1, known=False), quantized("Q4_0", 0.1)]
    said = "The original model itself shows little of Japan, so that this says nothing: "
    assert found([attack("alias", 0.9, 0.9, known=False)], silent) == [
        *NOTHING, ("info", f"{said}asked by another name, quantized as int8.")
    ]  # fmt: skip
    # Nor does it come back there, where it was not before.
    tried = [attack("two_hop", 0.45, known=False)], [quantized("Q2_K", 0.45, known=False)]
    assert found(*tried) == [*NOTHING, ("info", f"{said}asked by way of a description, quantized as Q2_K.")]


def test_what_was_never_suppressed_cannot_come_back():
    ((level, text),) = found([attack("paraphrase", 0.9)], plain=0.8)
    assert level == "info"
    assert text == "The plain questions about Japan still reach 0.80, so that stress tests say nothing of an edit."


@pytest.mark.parametrize(
    "name", [*PERSUASIONS, "paraphrase", "alias", "misspelling", "other_language", "reverse", "two_hop", "three_hop"]
)
def test_every_attack_has_words(name):
    assert found([attack(name, 0.9)])[0][1].startswith("Japan comes back when asked ")
