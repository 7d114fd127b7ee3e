"""Role and split in one word and in words."""

import pytest

from amnesia.domain import ROLES, SPLITS
from amnesia.evaluation.labels import KINDS, facts_label, kind_of, parts_of, words


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("role", ROLES)
def test_one_word_says_both(role, split):
    assert parts_of(kind_of(role, split)) == (role, split)


def test_words():
    assert KINDS == ("target", "held_out_target", "control", "held_out_control")
    assert [facts_label(role, split, "Japan") for role in ROLES for split in SPLITS] == [
        "Japan, search wordings", "Japan, held-out wordings", "others, search facts", "others, held-out facts"
    ]  # fmt: skip
    assert words("same_relation") == "same relation"
    with pytest.raises(KeyError):
        parts_of("neutral")
