"""Edits side by side on tiny models, against the evaluation of each by itself and against arithmetic written out here."""

import hashlib
import json
import re
from dataclasses import replace
from importlib import resources

import pytest
from click.testing import CliRunner

from amnesia.bench.page import bench_document, bench_figure, bench_html, bench_text, write_bench
from amnesia.bench.results import SCORE, Bench, Contract, Entry, Measure
from amnesia.bench.run import run_bench
from amnesia.bench.suites import fact_suite
from amnesia.cli.main import main
from amnesia.compare import assess
from amnesia.domain import Cell, Loading
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import InputError
from amnesia.evaluation.results import Estimate
from amnesia.facts.popqa import read_popqa
from amnesia.facts.questions import facts_of_popqa
from amnesia.facts.relations import relation_templates
from amnesia.outputs.commands import save
from support.tiny_text import save_tiny_live
from support.tracker import Silent, Watched

OWN = resources.files("amnesia.bench").joinpath("own.tsv")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def outputs(model, tmp_path_factory):
    """Two edits of the model, each in a folder of its own that ends in the name of the format."""
    folders = []
    for name, multiplier in (("weak", 0.5), ("strong", -20.0)):
        folder = tmp_path_factory.mktemp(name) / name
        edits = EntityEdits("Japan", (ColumnEdit(Cell(1, 11), multiplier), ColumnEdit(Cell(0, 3), multiplier)))
        save(str(model), edits, folder / "safetensors")
        folders.append(str(folder / "safetensors"))
    return folders


def lenient(suite):
    """A tiny model "knows" what it happens to find likelier of the entity than of unseen names."""
    scoring = replace(suite.facts.scoring, min_nats=0.02, max_rank=10**6)
    return replace(suite, facts=replace(suite.facts, scoring=scoring))


def test_the_table_that_ships_has_wordings_and_no_contradictions():
    rows = read_popqa(OWN)
    assert len(rows) >= 200
    assert len({(row.subject, row.relation) for row in rows}) == len(rows)
    assert {row.relation for row in rows} <= relation_templates().keys()
    assert all(row.answer not in row.aliases for row in rows)


@pytest.mark.slow
def test_each_model_is_measured_as_by_itself(model, outputs):
    suite = lenient(fact_suite("own", None, ["Japan"]))
    suite = replace(suite, facts=replace(suite.facts, questions=suite.facts.questions[::3]))
    with Watched().watching() as tracker:
        found = run_bench(str(model), outputs, suite, tracker)
    assert tracker.passes and not tracker.silent()
    assert [entry.name for entry in found.entries] == ["m", "weak/safetensors", "strong/safetensors"]
    first, *others = found.entries
    assert (first.forget_left, first.neighbor_left) == (pytest.approx(1.0), pytest.approx(1.0))
    for entry, folder in zip(others, outputs, strict=True):
        alone = assess(str(model), folder, suite.facts, Silent()).evaluation
        values = {(row.set, row.kind, row.metric): row.value for row in entry.measures}
        for role, name in (("target", "forget"), ("control", "neighbor")):
            for split, kind in (("search", "wordings that a search may see"), ("held_out", "held-out wordings")):
                row = alone.whole(role, split)
                assert values[name, kind, "knowledge score"] == row.knowledge_score
                assert values[name, kind, "right answers"] == row.after.exact_match
        assert values["utility", "neutral text", "perplexity ratio"].mean == alone.damage.perplexity_ratio
        rows = [alone.whole("control", split) for split in ("search", "held_out")]
        expected = sum(row.knowledge_score.mean * row.n for row in rows) / sum(row.n for row in rows)
        assert entry.neighbor_left == pytest.approx(expected)
    assert abs(others[1].forget_left - 1) > abs(others[0].forget_left - 1)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_models_that_stay_on_the_disk_are_measured_alike(model, outputs, tmp_path):
    save(model, EntityEdits("Japan", (ColumnEdit(Cell(1, 11), -20.0),)), tmp_path / "adapter", format="adapter")
    suite = lenient(fact_suite("own", None, ["Japan"]))
    edited = [outputs[1], str(tmp_path / "adapter")]
    found = run_bench(str(model), edited, suite, Silent(), Loading(offload=True))
    for one, other in zip(found.entries, run_bench(str(model), edited, suite, Silent()).entries, strict=True):
        assert (one.name, one.forget_left) == (other.name, pytest.approx(other.forget_left, abs=1e-4))
    assert found.entries[1].forget_left != found.entries[2].forget_left


@pytest.mark.slow
def test_it_says_when_too_few_facts_about_others_are_known(model):
    said = []

    class Noting(Silent):
        def notice(self, text):
            said.append(text)

    suite = lenient(fact_suite("own", None, ["Japan"]))
    run_bench(str(model), [], suite, Noting())
    assert not [text for text in said if "facts about others" in text]
    few = [row for row in suite.facts.questions if row.role == "target"]
    few += [row for row in suite.facts.questions if row.role == "control"][:4]
    found = run_bench(str(model), [], replace(suite, facts=replace(suite.facts, questions=tuple(few))), Noting())
    n_known = sum(row.n for row in found.entries[0].measures if (row.set, row.metric) == ("neighbor", SCORE))
    (text,) = [text for text in said if "facts about others" in text]
    assert 0 < n_known <= 4 and f"knows {n_known} of the facts" in text


def test_a_contract_is_that_of_its_data_and_says_when_they_differ():
    one, again, other = (fact_suite("own", None, [name]).contract for name in ("Japan", "japan", "France"))
    assert one == again
    assert one.prompts != other.prompts
    assert one.data == {"own.tsv": hashlib.sha256(OWN.read_bytes()).hexdigest()}
    assert one.entities == ("Japan",)
    facts = facts_of_popqa(OWN, ["Japan"], 100)
    asked = [[row.role, row.split, *row.pair, *row.fact.answer_aliases] for row in facts.questions]
    assert one.n_prompts == len(asked)
    assert one.prompts == hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def sample(*names):
    contract = Contract("own", 1, ("<b>Japan</b>",), 5, {"own.tsv": "a" * 64}, "b" * 64, {"n_controls": 100})
    return Bench(
        contract,
        tuple(
            Entry(
                name,
                (
                    Measure("forget", "question", "right answers", 4, Estimate(0.5 - 0.1 * n, 0.1, 0.9)),
                    *(
                        [Measure("utility", "neutral text", "perplexity ratio", 2, Estimate(1.0036, 1.0036, 1.0036))]
                        if n
                        else []
                    ),
                ),
                1 - 0.5 * n,
                1 - 0.05 * n,
            )
            for n, name in enumerate(names)
        ),
    )


def test_the_table_has_a_column_for_each_model():
    lines = [" ".join(line.split()) for line in bench_text(sample("m", "a", "b")).splitlines()]
    assert lines[0] == "own, version 1: 5 prompts, <b>Japan</b> to be forgotten; contract bbbbbbbbbbbbbbbb"
    assert lines[2:] == [
        "m a b",
        "forget: question, right answers (4) 0.50 (0.10 to 0.90) 0.40 (0.10 to 0.90) 0.30 (0.10 to 0.90)",
        "utility: neutral text, perplexity ratio (2) – 1.004 1.004",
        "forgotten 0.00 0.50 1.00",
        "damage to neighbors 0.00 0.05 0.10",
    ]


def test_the_figure_says_what_it_shows_and_the_page_escapes_names():
    bench = sample("m", "<script>alert(1)</script>")
    assert "forgotten 0.50, damage 0.05" in bench_figure(bench)
    page = bench_html(bench)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "<b>Japan" not in page
    assert re.search(r"default-src 'none'; style-src 'sha256-", page.replace("&#39;", "'"))
    assert page == bench_html(bench)


def test_files_appear_together_in_a_new_folder(tmp_path):
    bench = sample("m", "a")
    write_bench(bench, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench.html", "bench.json"]
    document = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(bench_document(bench)))
    assert document["contract"]["prompts"] == "b" * 64
    assert document["entries"][1]["forget_left"] == 0.5


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_options_that_do_not_fit_are_named(model, tmp_path):
    for arguments, line in (
        (["--suite", "popqa"], "--suite popqa and --popqa belong together: give both, or neither"),
        (["--suite", "rwku"], "--suite rwku and --data belong together: give both, or neither"),
        (["--data", tmp_path], "--suite rwku and --data belong together: give both, or neither"),
    ):
        done = run(model, "--entity", "Japan", *arguments)
        assert (done.exit_code, done.output) == (2, f"error: {line}\n")
    done = run(model, "--entity", "Belmoria")
    assert done.exit_code == 2 and done.output.count("\n") == 1
    assert done.output.startswith(
        "error: the own suite has no facts about 'Belmoria': choose one of its 120 entities ("
    )


def test_a_folder_that_is_in_use_stays_as_it_is(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    done = run(model, "--entity", "Japan", "-o", tmp_path)
    line = f"{tmp_path} exists and is not empty: choose another output, or move it away yourself"
    assert (done.exit_code, done.output) == (2, f"error: {line}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_weights_that_are_missing_are_told_before_anything_is_asked(model, tmp_path):
    for path in model.iterdir():
        if ".safetensors" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    done = run(model, tmp_path, "--entity", "Japan")
    assert done.exit_code == 2
    assert "has no safetensors weights" in done.output and "asking" not in done.output


@pytest.mark.slow
def test_a_model_that_knows_nothing_is_an_error(model):
    suite = fact_suite("own", None, ["Japan"])
    with pytest.raises(InputError, match="the model knows none of the .* target facts about 'Japan'"):
        run_bench(str(model), [], suite, Silent())
