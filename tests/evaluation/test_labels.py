"""Role and split in one word and in words."""

import pytest

from amnesia.domain import ROLES, SPLITS
from amnesia.evaluation.labels import facts_label, is_held_out, is_target, kind_of, role_of, split_of, words


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("role", ROLES)
def test_one_word_says_both(role, split):
    row = {"kind": kind_of(role, split)}
    assert (role_of(row), split_of(row)) == (role, split)
    assert (is_target(row), is_held_out(row)) == (role == "target", split == "held_out")


def test_words():
    assert [kind_of(role, split) for role in ROLES for split in SPLITS] == [
        "target", "held_out_target", "control", "held_out_control"
    ]  # fmt: skip
    assert [facts_label(role, split, "Japan") for role in ROLES for split in SPLITS] == [
        "Japan, search wordings", "Japan, held-out wordings", "others, search facts", "others, held-out facts"
    ]  # fmt: skip
    assert words("same_relation") == "same relation"
    with pytest.raises(KeyError):
        role_of({"kind": "neutral"})
