"""The page that shows a report: its structure, its text and its safety, without a browser."""

import base64
import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

import amnesia
from amnesia.numbers import change, flat, positive, short, signed
from amnesia.report import view
from amnesia.report.content import read_report
from amnesia.report.glossary import terms
from amnesia.report.page import report_html
from amnesia.stress import results
from support.report_sample import OPTIONAL, alone, hostile, sample, without

VOID = {"meta", "br", "link", "img", "input", "hr"}

REPORT = Path(amnesia.__file__).parent / "report"


class Page(HTMLParser):
    """Elements and texts of a page; fails where tags are not properly nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), "an attribute is given twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else None, data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("style", "script")).split())


VARIANTS = {
    "everything": sample(),
    "nothing optional": without(*OPTIONAL),
    "another tool's": without(*OPTIONAL, accepted=None, edited="other"),
    "one model": alone(),
    "private": without(*OPTIONAL, edited=None, findings=[], prompts=[], entity="entity-0123"),
    "nobody": without(*OPTIONAL, entity=None, prompts=[], aggregates=[], findings=[]),
    "hostile": hostile("<script>alert(1)</script>\"'&"),
}


@pytest.mark.parametrize("document", VARIANTS.values(), ids=VARIANTS)
def test_structure(document):
    page = Page(report_html(document))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    referred = [one["href"][1:] for one in page.all("a")]
    for _, attributes in page.elements:
        referred += (attributes.get("aria-labelledby") or "").split()
        referred += (attributes.get("aria-describedby") or "").split()
    assert set(referred) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(page.all(tag)) for tag in ("main", "nav", "header", "footer")] == [1, 1, 1, 1]
    assert page.all("html") == [{"lang": "en"}]
    assert all(one["scope"] in ("row", "col") for one in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("summary")) == len(page.all("details"))
    for one in page.all("svg"):
        assert one["role"] == "img" and one["aria-labelledby"]
    assert len({data for tag, data in page.texts if tag == "h2"}) == len(page.all("h2"))
    sections = [one["id"] for one in page.all("section")]
    assert sections == list(view.sections(read_report(document))) == [one["href"][1:] for one in page.all("a")[1:]]
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)


@pytest.mark.parametrize("document", VARIANTS.values(), ids=VARIANTS)
def test_nothing_comes_from_elsewhere(document):
    text = report_html(document)
    page = Page(text)
    assert not any({"src", "style", "srcset", "action"} & set(attributes) for _, attributes in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not re.search(r"url\(|@import|https?://", text)
    (policy,) = (one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (content,) = ("".join(data for name, data in page.texts if name == tag),)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</title></style></script></svg><script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)> ' onclick='x",
        "{{ 7 * 191 }}{% raw %}&lt;b&gt;<!--",
        "\u202egnp.exe\u0000\x1b[31m ]]>",
    ],
)
def test_what_is_quoted_stays_text(text):
    clean, page = Page(report_html(hostile("word"))), Page(report_html(hostile(text)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]
    assert [sorted(attributes) for _, attributes in page.elements] == [sorted(row) for _, row in clean.elements]
    assert len(page.all("script")) == 1
    assert "1337" not in page.text
    assert page.text.count(" ".join(text.split()).split()[0]) > 20


def test_the_sample_is_a_report():
    """The pages of these tests are of the documents that the package writes."""
    schema = json.loads((REPORT / "report.schema.json").read_text(encoding="utf-8"))
    for document in (sample(), alone(), without(*OPTIONAL)):
        jsonschema.validate(document, schema)
    stress = sample()["stress"]
    relearning = sample()["relearning"]
    rows = stress["attacks"][0]["rows"] + stress["quantization"][0]["rows"]
    for kind, found in (
        (results.Stress, [stress]),
        (results.AttackResult, stress["attacks"]),
        (results.QuantizationResult, stress["quantization"]),
        (results.Relearning, [relearning]),
        (results.RelearningResult, relearning["runs"]),
        (results.RelearningStep, relearning["runs"][0]["steps"]),
        (results.AttackForm, stress["attacks"][0]["variants"]),
        (results.Example, stress["attacks"][2]["examples"]),
        (results.StressScore, rows),
    ):
        for one in found:
            assert one.keys() == {field.name for field in dataclasses.fields(kind)}, kind


def test_the_same_report_gives_the_same_page():
    text = report_html(sample())
    assert text == report_html(sample()) == report_html(json.loads(json.dumps(sample())))


@pytest.mark.slow
@pytest.mark.parametrize("key", OPTIONAL)
def test_a_part_that_is_absent_leaves_no_trace(key):
    before, after = (view.sections(read_report(document)) for document in (sample(), without(key)))
    assert [name for name in before if name not in after] == [name for name in (OPTIONAL[key],) if name]
    page = Page(report_html(without(key)))
    for words in {
        "stress": ("Other ways of asking", "brought back?"),
        "relearning": ("bring it back?", "negative preference"),
        "probes": ("Median rank (0 is best)", "leak@5", "Tell me about France"),
        "sweep": ("Mean knowledge score by strength of the edit",),
        "changed": ("SHA-256", "amnesia verify", "bit for bit"),
        "lm_eval": ("hellaswag",),
        "extraction": ("handle, the best of",),
    }[key]:
        assert words in Page(report_html(sample())).text
        assert words not in page.text


def test_what_a_reader_must_see():
    page = Page(report_html(sample()))
    for words in (
        "Of 4 questions about France, the original model answers 4 correctly and the edited one 1. "
        "Nothing that was tried brings it back (attacks, quantization, training, probes). "
        "Of 10 questions about others it answers 10 correctly, before 10; perplexity of neutral text changed by +1.5 %; "
        "of 200 common questions it answers 50 %, before 62 %.",
        "Accepted: every bound of the recipe is met",
        "Damage Registers in which perplexity rises most",
        "Good Forgotten: France is like an unknown name",
        "This is suppression, not erasure.",
        "24 steps of fine-tuning (LoRA) on instructions about other things took the edited model's knowledge score of "
        "France from −0.10 to 0.50",
        "Rome. ✘ wrong",
        "5" * 64,
        "model.layers.2.mlp.down_proj.weight",
        "amnesia verify . --base acme/tiny-model@0123456789abcdef0123456789abcdef01234567",
        "The anthem of France is La Marseillaise not known: the answer is 0.40 nats above an unknown entity",
        "not applicable: the name has one letter",
        "amnesia 0.1.0, torch 2.13.0, transformers 5.3.0",
    ):
        assert words in page.text, words
    refused = Page(report_html(without(accepted=False)))
    assert "Not accepted: bounds of the recipe are missed" in refused.text
    assert "What tiny-model knows about France" in Page(report_html(alone())).text


def test_the_page_of_one_model_speaks_of_no_edit():
    page = Page(report_html(alone()))
    said = page.text
    for sentence in (row["text"] for row in alone()["findings"]):
        said = said.replace(sentence, "")
    for probe in alone()["probes"]["probes"]:
        said = said.replace(probe["description"], "")
    for word in ("original model", "edited", "Edited", "After", "% → ", "Knowledge score", "after the edit"):
        assert word not in said, said[max(0, said.find(word) - 80) :][:160]
    assert "What is known" in said and "Probes in numbers" in said and "Tasks, as measured by lm-eval" in said
    document = alone()
    for row in document["prompts"]:
        for when in ("before", "after"):
            row[when] |= dict.fromkeys(("generated", "exact_match", "reply"))
    assert "facts about France; what it writes is not in this report." in Page(report_html(document)).text


def test_what_shows_little_in_the_original_says_nothing():
    document, said = sample(), "shows little in the original model, and says nothing"
    assert said not in Page(report_html(document)).text
    document["stress"]["quantization"][0]["found"] = False
    page = Page(report_html(document)).text
    assert page.count(said) == 1
    assert "Nothing that was tried brings it back (attacks, training, probes)." in page


def test_without_generated_text_scores_speak():
    document = sample()
    for row in document["prompts"]:
        for when in ("before", "after"):
            row[when] |= dict.fromkeys(("generated", "exact_match", "reply"))
    for row in document["aggregates"]:
        row["exact_match_change"] = None
        for when in ("before", "after"):
            row[when] |= dict.fromkeys(("exact_match", "n_empty", "n_refused"))
    page = Page(report_html(document))
    assert (
        "Knowledge scores, where 1 is as before the edit and 0 like an unknown name: France, search wordings"
        in page.text
    )
    assert "not generated" in page.text


def described(text, key):
    """What each of the drawings of a figure says of itself, and the texts drawn on it."""
    for svg in re.findall(rf'<svg [^>]*aria-labelledby="{key}-.*?</svg>', text, re.DOTALL):
        page = Page(svg)
        (desc,) = (data for tag, data in page.texts if tag == "desc")
        yield desc, [data for tag, data in page.texts if tag == "text"]


def test_what_directions_answer_to_is_drawn_with_its_numbers():
    drawings = list(described(report_html(sample()), "histograms"))
    assert len(drawings) == 2
    for desc, texts in drawings:
        for label, numbers in (
            ("France", "1.01, 99 % within 1.31 (42)"),
            ("other names", "0.07, 99 % within 0.45 (954)"),
            ("text", "0.03, 99 % within 0.21 (4,534)"),
        ):
            assert f"{label} {numbers}" in desc
            assert texts[texts.index(label) + 1] == numbers
        assert "layer 0, token 1 before the last" in texts
    # Of eight bins from -0.5 to 1.5 the entity has answers in the last four: from 0.5 to 1.5.
    path = next(one for one in Page(report_html(sample())).all("path") if one["class"] == "histogram target")["d"]
    points = [tuple(map(float, point.split())) for point in path[1:-1].split("L")]
    base = points[0][1]
    risen = [x for x, y in points if y < base]
    low, high = (10 + (value + 0.58) / 2.16 * 780 for value in (0.5, 1.5))
    assert (min(risen), max(risen)) == pytest.approx((low, high), abs=0.1)
    heights = sorted({round(base - y, 1) for _, y in points})
    assert heights == pytest.approx([0, *(30 * math.log(n + 1) / math.log(21) for n in (1, 2, 19, 20))], abs=0.1)


def test_the_places_that_were_considered_are_drawn_with_their_numbers():
    drawings = list(described(report_html(sample()), "screening"))
    assert len(drawings) == 2
    for desc, texts in drawings:
        assert texts == [
            "“ Fr”", "“ance”", "layer 0", "−0.08", "moves 14.1", "0.92", "moves 3.25", "layer 1", "not tried",
            "moves 0.125", "0.55", "moves 2",
        ]  # fmt: skip
        assert "layer 0: “ Fr” −0.08, moves 14.1, chosen; “ance”" in desc.replace("chosen, ", "chosen; ")
    page = Page(report_html(sample()))
    heats = [one["class"] for one in page.all("rect") if one["class"].startswith("heat")]
    assert heats == 2 * ["heat h4 chosen", "heat h0", "heat h0", "heat h2"]
    carried = "what the residual stream behind a layer carries of the entity at one token of the name"
    assert f"{carried} is multiplied by −0.75, there alone" in page.text
    document = sample()
    document["extraction"]["screening"]["of"] = "layer"
    written = "when what a layer writes at one token of the name is multiplied by −0.75"
    assert written in Page(report_html(document)).text


@pytest.mark.parametrize("key", ["answers", "screening"])
def test_an_edit_without_directions_has_no_figures_of_them(key):
    document = sample()
    del document["extraction"][key]
    figures = {"answers": "histograms", "screening": "screening"}
    text = report_html(document)
    assert [name for name in figures if f'"{figures[name]}-' in text] == [name for name in figures if name != key]
    document["extraction"] = {name: row for name, row in document["extraction"].items() if name not in figures}
    assert not any(f'"{name}-' in report_html(document) for name in figures.values())


def test_examples_are_computed_from_rows_of_the_report():
    document = sample()
    examples = {term.name: term.example for term in terms(read_report(document))}
    numbers = [float(text) for text in re.findall(r"-?\d+\.\d+", examples["Knowledge score"].replace("−", "-"))]
    after, unknown, before, again, top, bottom, score = numbers
    row = document["prompts"][0]
    assert (after, before, unknown) == (row["after"]["logprob"], row["before"]["logprob"], row["logprob_unknown"])
    assert again == unknown
    assert top == pytest.approx(after - unknown) and bottom == pytest.approx(before - unknown)
    assert score == round(top / bottom, 2) == round(row["knowledge_score"], 2)
    assert examples["Answer rank"].endswith("0 before, 41 after.")
    assert "“Paris” or “City of Paris”: no." in examples["Right answer (exact match)"]
    assert examples["Mean and 95 % interval"].startswith("2 facts, scores summing to 0.54: mean 0.54 / 2 = 0.27")
    assert "e^3.481 = 32.5" in examples["Perplexity per word"]
    assert examples["KL divergence"].startswith("news (English): 0.0021 nats")
    assert examples["Excluded fact"].startswith("“The anthem of France is”")


@pytest.mark.slow
@pytest.mark.parametrize("n_controls", [700, 3000])
def test_size(n_controls):
    document = sample(n_controls)
    for n, row in enumerate(document["prompts"]):
        row["before"]["logprob"] -= n % 61 / 20
        row["after"]["logprob"] -= n % 97 / 10
        row["knowledge_score"] = None if row["excluded"] else 1 - n % 97 / 80
        row["before"]["generated"] = row["after"]["generated"] = "lorem ipsum " * 100
    text = report_html(document)
    assert len(text.encode()) < 1_000_000
    assert f"150 of {n_controls} are shown; report.json has all." in Page(text).text


def test_others_that_lost_most_come_first():
    document = sample(400)
    document["prompts"][200] |= {"knowledge_score": -3.0, "prompt": "the worst"}
    part = view.other_facts(read_report(document))
    assert (part.rows[0].prompt, part.n, part.n_left_out) == ("the worst", 400, 250)


def test_marks_beyond_the_figure_are_counted():
    document = sample()
    document["prompts"][0]["knowledge_score"] = -122.4
    document["prompts"][0]["after"]["logprob"] = -900.0
    page = Page(report_html(document))
    assert "1 lie beyond the figure and are drawn at its edge." in page.text
    for one in page.all("path"):
        for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", one["d"]):
            assert -10 <= float(x) <= 810 and -10 <= float(y) <= 2000


def test_numerals():
    assert [signed(value) for value in (-0.001, -0.256, 1, -2.5e13)] == [
        "0.00",
        "−0.26",
        "1.00",
        "−2.5 × 10¹³",
    ]
    assert [short(value) for value in (-1.0, 0.5, 12)] == ["−1", "0.5", "12"]
    assert [positive(value) for value in (12.34, 4560.4, 7.8e12, 9.99e6)] == [
        "12.3",
        "4,560",
        "7.8 × 10¹²",
        "1.0 × 10⁷",
    ]
    assert [change(ratio) for ratio in (1.011, 1.0, 0.9999, 0.95, 3.41, 7.8e12)] == [
        "+1.1\xa0%",
        "+0.0\xa0%",
        "+0.0\xa0%",
        "−5.0\xa0%",
        "3.4 times",
        "7.8 × 10¹² times",
    ]
    assert flat(" a\n b ") == "a b" and flat("abcdef", 4) == "abc…"
