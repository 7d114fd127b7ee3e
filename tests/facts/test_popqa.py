import csv
import io
import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia.errors import InputError
from amnesia.facts.popqa import PopqaRow, facts_for, one_per_subject, read_popqa, strata, worded
from amnesia.facts.relations import relation_of, relation_templates
from oracles.upstream_popqa import COLUMNS, RELATIONS
from support.folders import DATA

UPSTREAM = (
    *COLUMNS[:4],
    *("subj_id", "prop_id", "obj_id", "s_aliases", "o_aliases", "s_uri", "o_uri", "s_wiki_title", "o_wiki_title"),
    *COLUMNS[4:],
)


def table(rows, columns=COLUMNS):
    """Text of a PopQA file in the quoting of the upstream one, written by the standard library."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, delimiter="\t", restval="x", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def raw(subject="Canada", relation="capital", answer="Ottawa", **other):
    return {
        "id": "832908",
        "subj": subject,
        "prop": relation,
        "obj": answer,
        "s_pop": "816653",
        "o_pop": "84101",
        "question": f"What is the {relation} of {subject}?",
        "possible_answers": json.dumps([answer]),
    } | other


def row(subject, relation="capital", answer="Ottawa"):
    return PopqaRow(subject, relation, answer, (), 1, "?")


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "popQA.tsv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_read_rows_of_the_upstream_columns(write):
    answers = json.dumps(["Ottawa", "Ottawa (Ontario)", 'the "Bytown"'])
    (found,) = read_popqa(write(table([raw(possible_answers=answers)], UPSTREAM)))
    assert found == PopqaRow(
        subject="Canada",
        relation="capital",
        answer="Ottawa",
        aliases=("Ottawa (Ontario)", 'the "Bytown"'),
        popularity=816653,
        question="What is the capital of Canada?",
    )


def test_byte_order_mark_blank_lines_and_empty_ids_are_no_obstacle(write):
    text = table([raw(id=""), raw("Perú", answer="Lima")]).replace("\n", "\r\n") + "\r\n"
    assert [found.subject for found in read_popqa(write(text, "utf-8-sig"))] == ["Canada", "Perú"]


# The csv writer leaves a lone carriage return unquoted, and surrogates cannot be written as UTF-8.
printable = st.text(st.characters(exclude_categories=["Cc", "Cs"]))


@settings(deadline=None, max_examples=50)
@given(subject=printable.map(str.strip).filter(bool), answers=st.lists(printable, max_size=3))
def test_any_printable_text_survives_the_file(tmp_path_factory, subject, answers):
    path = tmp_path_factory.mktemp("popqa") / "popQA.tsv"
    path.write_text(table([raw(subject, possible_answers=json.dumps(answers))]), encoding="utf-8", newline="")
    (found,) = read_popqa(path)
    assert found.subject == " ".join(unicodedata.normalize("NFC", subject).split())
    assert set(found.aliases) == set(filter(str.strip, answers)) - {"Ottawa"}


def test_a_table_of_ones_own_needs_three_columns(write):
    own = "type\tsubject\trelation\tobject\taliases\ncity\tRome\tcountry\tItaly\tItalia| Italien \nriver\tPo\tcountry\tItaly\t\n"
    rome, po = read_popqa(write(own))
    assert rome == PopqaRow("Rome", "country", "Italy", ("Italia", "Italien"), 0, "", "city")
    assert po == PopqaRow("Po", "country", "Italy", (), 0, "", "river")
    (short,) = read_popqa(write("object\tsubject\trelation\nItaly\tRome\tcountry\n"))
    assert short == PopqaRow("Rome", "country", "Italy", (), 0)
    (listed,) = read_popqa(write('subject\trelation\tobject\taliases\nRome\tcountry\tItaly\t"[""a|b""]"\n'))
    assert listed.aliases == ("a|b",)
    (blank,) = read_popqa(write('subject\trelation\tobject\taliases\nRome\tcountry\tItaly\t"["""", "" "", ""x""]"\n'))
    assert blank.aliases == ("x",)
    (bracket,) = read_popqa(write("subject\trelation\tobject\taliases\nRome\tcountry\tItaly\t[Italia] | 1861\n"))
    assert bracket.aliases == ("[Italia]", "1861")
    (number,) = read_popqa(write("subject\trelation\tobject\taliases\nRome\tcountry\tItaly\t1861\n"))
    assert number.aliases == ("1861",)


def test_quotes_stay_unless_a_program_has_set_them(write):
    rows = ('"Weird Al" Yankovic\tgenre\tpop', '"Heroes"\tperformer\t"Bowie', '"A" and "B"\tgenre\t""')
    weird, heroes, both = read_popqa(write("subject\trelation\tobject\n" + "\n".join(rows) + "\n"))
    assert (weird.subject, heroes.subject, heroes.answer, both.subject, both.answer) == (
        '"Weird Al" Yankovic', '"Heroes"', '"Bowie', '"A" and "B"', '""'
    )  # fmt: skip
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows(
        [["subject", "relation", "object"], ["Rome", "country", 'the "Boot"'], ["Po\nPad", "country", "I\tt"]]
    )
    rome, po = read_popqa(write(file.getvalue()))
    assert (rome.subject, rome.answer, po.subject, po.answer) == ("Rome", 'the "Boot"', "Po Pad", "I t")


def test_an_error_names_the_line_on_which_its_row_begins(write):
    with pytest.raises(InputError, match="line 4 has 1 fields"):
        read_popqa(write('subject\trelation\tobject\n"a\r\nb ""c"""\tgenre\tpop\nalone\n'))


@pytest.mark.parametrize(
    ("asked", "subject"),
    [
        ("Beyonc\u00e9", "Beyonce\u0301"),
        ("beyonce\u0301 ", "Beyonc\u00e9"),
        ("Schindler's List", "Schindler\u2019s List"),
        ("Schindler\u2019s List", "Schindler's List"),
        ("New\u00a0York", "New York"),
        ("New  York", "New\u00a0York"),
    ],
)
def test_names_are_found_however_they_are_typed(write, asked, subject):
    rows = read_popqa(write(f"subject\trelation\tobject\n{subject}\tcapital\tOttawa\nOther\tcapital\tLima\n"))
    assert facts_for(rows, asked).facts[0].entity in ("Beyonc\u00e9", subject.replace("\u00a0", " "))
    assert [found.subject for found in one_per_subject(rows, [asked])] == ["Other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"lacks the column\(s\) subject, relation, object"),
        (table([raw()]).replace("obj", "answer", 1), r"column\(s\) object"),
        ("subject\trelation\tobject\tsubject\n", "has the column subject 2 times: keep one"),
        (table([raw(s_pop="9" * 5000)]), "expected a whole number"),
        (table([raw(possible_answers="[" * 100_000)]), "is not JSON"),
        (table([raw()]) + "1\tPeru\n", "line 3 has 2 fields: expected 8"),
        (table([raw(possible_answers="[Ottawa]")]), "line 2: `possible_answers` is not JSON"),
        (table([raw(possible_answers='"Ottawa"')]), "expected a list of strings"),
        (table([raw(possible_answers="[1]")]), "expected a list of strings"),
        (table([raw(s_pop="many")]), "`s_pop` is 'many': expected a whole number"),
        (table([raw(s_pop="-1")]), "`s_pop` is '-1'"),
        (table([raw(), raw(subject=" ")]), "line 3: `subj` is empty"),
        (table([raw(answer="")]), "`obj` is empty"),
        (table([raw()]) + '1\t"Per"u\n', "line 3 has 2 fields: expected 8"),
    ],
)
def test_malformed_files_are_refused_in_one_line(write, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_popqa(write(text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path, write):
    with pytest.raises(InputError, match="No such file"):
        read_popqa(tmp_path / "absent.tsv")
    with pytest.raises(InputError, match="not UTF-8"):
        read_popqa(write(table([raw("Perú")]), "latin-1"))


def test_facts_of_an_entity_in_any_case_and_once_each():
    rows = [row("Canada"), row("Peru", answer="Lima"), row("Canada"), row("Canada", "color", "red")]
    facts = facts_for(rows, "canada").facts
    assert {fact.entity for fact in facts} == {"Canada"}
    capital, color = relation_templates()["capital"], relation_templates()["color"]
    assert [fact.prompt for fact in facts if fact.split == "search"] == [*capital.search, *color.search]
    assert [fact.prompt for fact in facts if fact.split == "held_out"] == [*capital.held_out, *color.held_out]
    assert {fact.answer for fact in facts if fact.prompt in color.search} == {"red"}


def test_relations_without_wordings_are_counted():
    rows = [row("Canada"), row("Canada", "anthem", "O"), row("Canada", "anthem", "P"), row("Peru", "anthem", "Q")]
    found = facts_for(rows, "Canada")
    assert found.n_unknown_relation == (("anthem", 2),)
    assert len(found.facts) == 9
    assert one_per_subject(rows, ["canada"]) == ()


def test_facts_about_nobody_in_the_file_are_an_error():
    with pytest.raises(InputError, match="no row about 'Atlantis'"):
        facts_for([row("Canada")], "Atlantis")


def test_one_row_for_each_other_subject_drawn_deterministically():
    rows = [row(f"Land {i}", "capital" if i % 2 else "color", f"Town {i}") for i in range(40)]
    rows += [row("Canada", "capital"), row("canada", "color"), row("Land 1", "sport", "chess"), rows[0]]
    drawn = one_per_subject(rows, ["Canada"], seed=3)
    assert drawn == one_per_subject(rows, ["Canada"], seed=3)
    assert drawn != one_per_subject(rows, ["Canada"], seed=4)
    assert sorted(found.subject for found in drawn) == sorted(f"Land {i}" for i in range(40))


def test_every_other_draw_is_of_the_quarter_of_the_most_popular():
    rows = [PopqaRow(f"Land {i}", "capital", f"Town {i}", (), 1000 + i, "?") for i in range(40)]
    drawn = [found.popularity >= 1030 for found in one_per_subject(rows, [])]
    assert drawn == [True, False] * 10 + [False] * 20
    tied = [PopqaRow(f"Land {i}", "capital", f"Town {i}", (), 900 + 100 * (i < 15), "?") for i in range(40)]
    assert [found.popularity for found in one_per_subject(tied, [])][:30] == [1000, 900] * 15


def test_wordings_and_splits_take_turns():
    facts = worded(row(f"Land {i}", "capital" if i % 2 else "color", f"Town {i}") for i in range(20))
    assert [fact.split for fact in facts] == ["search", "held_out"] * 10
    assert [fact.answer for fact in facts] == [f"Town {i}" for i in range(20)]
    for index, fact in enumerate(facts):
        assert relation_of(fact.prompt) == ("capital" if index % 2 else "color")
    assert len({fact.prompt for fact in facts}) == 18


def test_aliases_of_answers_stay_with_the_fact():
    canada = PopqaRow("Canada", "capital", "Ottawa", ("Bytown",), 1, "?")
    assert {fact.answer_aliases for fact in facts_for([canada], "Canada").facts} == {("Bytown",)}
    assert worded([canada])[0].answer_aliases == ("Bytown",)


def test_quarters_of_popularity_by_hand():
    rows = [PopqaRow("x", "capital", "y", (), popularity, "?") for popularity in (1, 2, 3, 4, 1000)]
    label = strata(rows)
    assert [label(value) for value in (0, 2, 3, 4, 5)] == [
        "quarter 1 (up to 2)", "quarter 1 (up to 2)", "quarter 2 (up to 3)", "quarter 3 (up to 4)", "quarter 4 (above 4)"
    ]  # fmt: skip


def test_the_sample_has_all_relations():
    rows = read_popqa(DATA / "popqa_sample.tsv")
    assert len(rows) == 2253
    assert {found.relation for found in rows} == RELATIONS
    label = strata(rows)
    counts = Counter(label(found.popularity) for found in rows)
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) < 20
