"""When two evaluations of the same models agree."""

import pytest


def same(one, other, rounding=1e-6):
    """Whether all scores are equal, those of neutral texts, more of which fit into one pass, but for rounding."""
    for report in (one, other):
        report["texts"] = {name: row for name, row in report["damage"].items() if name != "ability"}
    assert numbers_of(one.pop("texts")) == pytest.approx(numbers_of(other.pop("texts")), rel=rounding, abs=rounding)
    assert one.pop("damage")["ability"] == other.pop("damage")["ability"]
    return one == other


def numbers_of(found):
    """All numbers of a JSON document, in order."""
    if isinstance(found, dict | list):
        return [n for part in (found.values() if isinstance(found, dict) else found) for n in numbers_of(part)]
    return [found] if isinstance(found, float) else []
