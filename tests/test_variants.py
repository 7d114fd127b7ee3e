import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amnesia.errors import InputError
from amnesia.variants import acronym_of, typos, variants_of


def distance(first, second):
    """Optimal string alignment: insertions, deletions, substitutions, and swaps of neighbors."""
    table = [[max(i, j) if not i * j else 0 for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            cost = first[i - 1] != second[j - 1]
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + cost)
            if i > 1 and j > 1 and first[i - 1] == second[j - 2] and first[i - 2] == second[j - 1]:
                table[i][j] = min(table[i][j], table[i - 2][j - 2] + 1)
    return table[-1][-1]


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None)
@given(st.text("abcdeä ", min_size=6).filter(lambda text: any(len(word) > 3 for word in text.split())))
def test_typos_are_one_edit_away(name):
    found = typos(name, 2)
    assert len(set(found)) == 2
    assert all(distance(name, typo) == 1 for typo in found)
    assert found == typos(name, 2)


def test_acronyms():
    assert acronym_of("the Federal Bureau of Investigation") == "FBI"
    assert acronym_of("Michael Jordan") is None


def test_every_form_comes_once_and_says_what_it_is():
    forms = {row.name: row.kind for row in variants_of("Donald Trump", ("Trump", "트럼프"), n_typos=2)}
    assert [name for name, kind in forms.items() if kind == "given"] == ["Trump", "트럼프"]
    assert forms["Donald Trump"] == "name"
    assert forms["donald trump"] == "lower case"
    assert forms["DONALD TRUMP"] == "upper case"
    assert list(forms.values()).count("typo") == 2


def test_a_name_too_short_for_typos():
    with pytest.raises(InputError, match="'Li' has 2 typos of one edit, asked for were 3"):
        typos("Li", 3)
