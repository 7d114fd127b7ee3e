import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amnesia.errors import InputError
from amnesia.facts.variants import Variant, acronym_of, edit_distance, typos, variants_of


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None)
@given(st.text("abcdeä ", min_size=6).filter(lambda text: any(len(set(word)) > 3 for word in text.split())))
def test_typos_are_as_many_edits_away_as_asked(name):
    for n_edits in (1, 2):
        found = typos(name, 2, n_edits=n_edits)
        assert len(set(found)) == 2
        assert all(edit_distance(name, typo) == n_edits for typo in found)
        assert found == typos(name, 2, n_edits=n_edits)


def neighbors(text, letters):
    """All texts that one insertion, deletion, substitution or swap of neighbors makes of a text."""
    found = {text[:i] + text[i + 1 :] for i in range(len(text))}
    found |= {text[:i] + letter + text[i:] for i in range(len(text) + 1) for letter in letters}
    found |= {text[:i] + letter + text[i + 1 :] for i in range(len(text)) for letter in letters}
    return found | {text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in range(len(text) - 1)}


@pytest.mark.parametrize("text", ["", "a", "abc", "aab", "abca"])
def test_edit_distance_equals_a_search_over_all_edits(text):
    near = neighbors(text, "abcx") - {text}
    assert edit_distance(text, text) == 0
    assert all(edit_distance(text, other) == 1 for other in near)
    # A swapped pair cannot be parted again in this distance, so that some of these are three edits away.
    far = {other for one in near for other in neighbors(one, "abcx")} - near - {text}
    assert {edit_distance(text, other) for other in far} <= {2, 3}
    assert edit_distance("ca", "abc") == 3


def test_acronyms():
    assert acronym_of("the Federal Bureau of Investigation") == "FBI"
    assert acronym_of("Michael Jordan") is None


def test_every_form_comes_once_and_says_what_it_is():
    given = [Variant("Trump", "given"), Variant("트럼프", "translation", "ko"), Variant("트럼프", "given")]
    forms = {row.name: row.kind for row in variants_of("Donald Trump", given, n_typos=2)}
    assert (forms["Trump"], forms["트럼프"]) == ("given", "translation")
    assert forms["Donald Trump"] == "name"
    assert forms["donald trump"] == "lower case"
    assert forms["DONALD TRUMP"] == "upper case"
    assert [list(forms.values()).count(kind) for kind in ("typo", "typo of 2 edits", "last name")] == [2, 2, 0]
    (acronym,) = [row for row in variants_of("Federal Bureau of Investigation") if row.kind == "acronym"]
    assert acronym.name == "FBI"


def test_a_name_too_short_for_typos():
    with pytest.raises(InputError, match="'Li' has 2 typos of one edit, asked for were 3"):
        typos("Li", 3)
    assert set(typos("Li", 3, at_most=True)) == {"L", "Lii"}
    assert typos("Lima", 2, at_most=True) == typos("Lima", 2)
