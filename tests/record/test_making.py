"""The erasure record: what it says is what is in the files, and what it cannot rest on it refuses."""

import hashlib
import json
import re
import shutil
from dataclasses import replace

import pytest
import tomli_w
from safetensors.torch import load_file, save_file

from amnesia.errors import InputError
from amnesia.outputs.proofs import weight_hashes
from amnesia.record.making import make_record
from amnesia.record.page import record_html
from amnesia.report.document import changed_json
from amnesia.weights.checkpoint import add_file
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.commands import done, refused
from support.report_sample import sample
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf

RECIPE = """
[model]
id = "tiny"
[entity]
name = "Japan"
aliases = ["Nippon", "Nihon"]
translations = { de = "Nippon-Land" }
[accept]
max_target = 0.2
min_control = 0.95
[[facts]]
prompt = "{entity} is"
answer = "big"
[[controls.facts]]
entity = "Peru"
prompt = "{entity} is"
answer = "high"
"""
TWO = {"France": 100.0, "Japan": -100.0}
OPTIONAL = ("stress", "relearning", "probes", "sweep", "lm_eval")


def report_of(folder, **changes):
    """A report that is about the edit in `folder`."""
    manifest = read_manifest(folder)
    changed = changed_json(manifest, weight_hashes(folder, manifest))
    return sample() | {"changed": changed, "entity": "Japan"} | changes


def finish(folder, report, recipe=RECIPE):
    """Make an edited folder what a run leaves: with its recipe and its report."""
    manifest = add_file(read_manifest(folder), folder, "report.json", json.dumps(report).encode())
    write_manifest(replace(manifest, recipe=recipe), folder)


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A tiny model with three columns edited by a run whose report has neither stress nor probes."""
    place = tmp_path_factory.mktemp("record")
    source = save_tiny(place / "source")
    done(
        "edit",
        source,
        "--cell",
        "0:3",
        "--cell",
        "0:7",
        "--multiplier",
        "-2.5",
        "--entity",
        "Japan",
        "-o",
        place / "out",
    )
    report = {key: value for key, value in report_of(place / "out").items() if key not in OPTIONAL}
    finish(place / "out", report)
    return place / "out"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_record_holds_what_the_files_hold(edited, tmp_path):
    assert "Japan: all bounds met" in done(
        "record", edited, "-o", tmp_path / "record.json", "--base", edited.parent / "source"
    )
    record = json.loads((tmp_path / "record.json").read_text())
    manifest = json.loads((edited / "amnesia.json").read_text())
    (saved,) = record["saved"]
    assert [(row["before"], row["after"]) for row in saved["tensors"]] == [
        (row["sha256"]["before"], row["sha256"]["after"]) for row in manifest["tensors"]
    ]
    assert saved["tensors"][0]["indices"] == [3, 7] and saved["base_compared"] and saved["unproven"] == []
    # A multiplier of -2.5 does not invert exactly.
    assert (saved["undo"], saved["undo_sha256"]) == (manifest["undo"], sha256(edited / manifest["undo"]))
    assert record["scope"]["entities"] == ["Japan"] and record["scope"]["aliases"] == ["Nippon", "Nihon"]
    assert record["scope"]["translations"] == {"de": "Nippon-Land"}
    assert record["original"]["name"] == "source"
    assert {row["file"]: row["sha256"] for row in record["documents"]} == {
        name: sha256(edited / name) for name in ("amnesia.json", "report.json")
    }
    assert len(record["returns"]["untried"]) == 4 and record["returns"]["attempts"] == []


def test_tests_stand_beside_the_bounds_of_the_recipe(edited):
    record = make_record(edited)
    (tested,) = record.tested
    found = {row.name: row for row in tested.checks}
    target = found["knowledge score: target, search wordings"]
    # The sample has a mean of 0.27 with an interval of 0.1.
    assert (target.limit, target.passed, target.is_upper) == (0.2, False, True)
    assert target.high - target.value == pytest.approx(0.1)
    others = found["knowledge score: others, search facts"]
    assert (others.limit, others.passed) == (0.95, others.value >= 0.95)
    fluent = {row["language"]: row["fluent"] for row in sample()["damage"]["languages"]}
    for language, is_fluent in fluent.items():
        assert (found[f"perplexity ratio: {language}"].limit is not None) == is_fluent
    page = record_html(record)
    assert "✖ failed" in page and "at most 0.2" in page and "Not accepted" in page


def test_several_entities_are_judged_each_by_its_own_bounds(edited, tmp_path):
    out, rows = tmp_path / "two", []
    cells = [{"entity": name, "edits": [{"layer": 0, "neuron": n, "multiplier": -1.0}]} for n, name in enumerate(TWO)]
    (tmp_path / "edit.json").write_text(json.dumps({"entities": cells}))
    done("edit", edited.parent / "source", "--edit", tmp_path / "edit.json", "-o", out)
    recipe = RECIPE.partition("[entity]")[0] + "[accept]\nmin_control = 0.5\n"
    for name, bound in TWO.items():
        recipe += f'[[entities]]\nname = "{name}"\ntranslations = {{ de = "{name}-Land" }}\n'
        recipe += f"accept = {{ max_target = {bound}, min_control = {bound / 1e3} }}\n"
        recipe += '[[entities.facts]]\nprompt = "{entity} is"\nanswer = "big"\n'
    recipe += "[[controls.facts]]" + RECIPE.partition("[[controls.facts]]")[2]
    for row in sample()["prompts"]:
        rows += [row | {"entity": name} for name in TWO] if "target" in row["kind"] else [row]
    finish(out, report_of(out, prompts=rows), recipe)
    record = make_record(out)
    assert record.scope.translations == {"de": "France-Land, Japan-Land"}
    checks = {row.name: row for row in record.tested[0].checks}
    found = [checks[f"knowledge score: target, search wordings: {name}"] for name in TWO]
    assert [(row.limit, row.passed) for row in found] == [(100.0, True), (-100.0, False)]
    # Of what all share, the closest bound counts.
    assert checks["knowledge score: others, search facts"].limit == 0.1


def test_further_reports_say_what_comes_back(edited, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "report.json").write_text(json.dumps(report_of(edited, accepted=None)))
    record = make_record(edited, [tmp_path / "eval"])
    left_out = [
        "other ways of asking: misspelled, not applicable (the name has one letter)",
        "probes of inner layers, samples and choices: inner layers, not applicable (why not)",
    ]
    assert [*record.returns.untried] == left_out
    ways = {row.way for row in record.returns.attempts}
    assert ways == {"asked", "quantized", "trained", "probed"}
    trained = next(row for row in record.returns.attempts if row.way == "trained")
    assert "24 steps" in trained.name and trained.edited == pytest.approx(0.5)
    # Of a method without knowledge scores the right answers count.
    quantized = next(row for row in record.returns.attempts if row.way == "quantized")
    assert (quantized.measure, quantized.original, quantized.edited) == ("share of right answers", 1.0, 0.25)
    assert [row.file for row in record.documents] == ["amnesia.json", "report.json", "eval/report.json"]
    assert "Trained a little" in record_html(record)
    assert WAYS in record_html(record) and UNTRIED not in record_html(record)
    nothing = "shows little in the original model, and says nothing"
    assert quantized.found and nothing not in record_html(record)
    report = report_of(edited, accepted=None)
    report["stress"]["quantization"][0]["found"] = False
    (tmp_path / "eval" / "report.json").write_text(json.dumps(report))
    assert f"int8 (torch) ({nothing})" in record_html(make_record(edited, [tmp_path / "eval"]))
    twice = refused("record", edited, "-o", tmp_path / "r.html", *["--report", tmp_path / "eval"] * 2)
    assert "give each once" in twice


def test_reports_are_told_apart_by_what_is_in_them(edited, tmp_path):
    paths = [tmp_path / name / "eval" / "report.json" for name in "abc"]
    for n, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(report_of(edited, accepted=[None, True, None][n])))
    record = make_record(edited, paths[:2])
    names = ["report.json", "eval/report.json", "eval/report.json (2)"]
    assert [row.report for row in record.tested] == names
    assert [row.accepted for row in record.tested[1:]] == [None, True]
    assert {row.file: row.sha256 for row in record.documents[1:]} == {
        name: sha256(path) for name, path in zip(names, [edited / "report.json", *paths], strict=False)
    }
    for given in (paths, [paths[0], paths[0].parent], [edited]):
        with pytest.raises(InputError, match=r"one report was given twice \(.+/report.json\)"):
            make_record(edited, given)


def test_a_report_about_another_edit_is_refused(edited, tmp_path):
    report = report_of(edited)
    report["changed"]["tensors"][0]["after"] = "0" * 64
    (tmp_path / "report.json").write_text(json.dumps(report))
    said = refused("record", edited, "-o", tmp_path / "r.html", "--report", tmp_path / "report.json")
    assert "is not about this edit" in said and not (tmp_path / "r.html").exists()


def test_a_report_about_other_weights_with_the_same_edit_is_refused(edited, tmp_path):
    """Their manifest and their edited tensors are those of the output."""
    shutil.copytree(edited, tmp_path / "alt")
    for path in (tmp_path / "alt").glob("model*.safetensors"):
        tensors = load_file(path)
        tensors |= {name: row * 1.5 for name, row in tensors.items() if "q_proj" in name}
        save_file(tensors, path, {"format": "pt"})
    (tmp_path / "report.json").write_text(json.dumps(report_of(tmp_path / "alt")))
    record = ("record", edited, "-o", tmp_path / "r.html", "--report", tmp_path / "report.json")
    assert f"report.json is about other weights than those in {edited}: evaluate this output" in refused(*record)
    report = report_of(edited)
    del report["changed"]["weights"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert "does not say which weights it is about" in refused(*record)
    (tmp_path / "report.json").write_text(json.dumps(report_of(edited)))
    done(*record)
    # Nor may such a report lie in the output itself.
    shutil.copytree(edited, tmp_path / "own")
    (tmp_path / "own" / "report.json").write_text(json.dumps(report_of(tmp_path / "alt")))
    said = refused("record", tmp_path / "own", "-o", tmp_path / "own.html")
    assert (
        "report.json has" in said
        and "was changed since it was written" in said
        and not (tmp_path / "own.html").exists()
    )


def test_a_damaged_output_gets_no_record(edited, tmp_path):
    manifest = read_manifest(edited)
    path = edited / manifest.tensors[0].file
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused("record", edited, "-o", tmp_path / "r.html")
    finally:
        path.write_bytes(content)
    assert not (tmp_path / "r.html").exists()


def test_all_formats_of_a_run_are_in_one_record(edited, tmp_path):
    out = tmp_path / "both"
    for name in ("safetensors", "adapter"):
        options = ("--cell", "0:3", "--entity", "Japan", "--format", name)
        done("edit", edited.parent / "source", *options, "-o", out / name)
        finish(out / name, report_of(out / name, edited=name))
    record = make_record(out)
    assert [row.format for row in record.saved] == ["adapter", "safetensors"]
    page = record_html(record)
    assert page.count("By adapter/report.json and safetensors/report.json") == 1
    assert "left off" in page and "multipliers invert exactly" in page and "undo file is" not in page
    other = ("--cell", "0:4", "--entity", "Japan", "-o", out / "gguf")
    done("edit", edited.parent / "source", *other)
    assert "different edits" in refused("record", out, "-o", tmp_path / "r.html")


WAYS = "What other ways bring back is listed under “What comes back, and how”."
UNTRIED = "Whether other ways bring parts of it back was not tried."


@pytest.mark.parametrize(
    ("multiplier", "name", "means", "way"),
    [
        ("-2.5", "safetensors", "the original weights or the undo file", "with the file <code>amnesia-undo"),
        (
            "-2",
            "safetensors",
            "the original weights, or the edited weights and their amnesia.json",
            "json</code> alone",
        ),
        ("-2", "adapter", "the original weights, to which the adapter is only added", "when the adapter is left off"),
        ("-2", "gguf-lora", "the original weights, to which the adapter is only added", "when the adapter is left off"),
    ],
)
def test_a_record_says_with_what_the_edit_is_taken_back(edited, tmp_path, multiplier, name, means, way):
    source, out = edited.parent / "source", tmp_path / "out"
    if name == "gguf-lora":
        source = write_gguf(tmp_path / "tiny.gguf")
    done("edit", source, "--cell", "0:3", "--multiplier", multiplier, "--format", name, "-o", out)
    (tmp_path / "request.toml").write_text('undo_keeper = "Ada"\n')
    page = record_html(make_record(out, request=tmp_path / "request.toml"))
    assert f"by whoever has {means}. {UNTRIED}" in page and way in page
    has_undo = "amnesia-undo" in way
    assert ("The request names <bdi>Ada</bdi> as keeper of the undo file; who has it was" in page) == has_undo
    assert ("as keeper of the undo file: there is none, and none is needed" in page) == (not has_undo)
    assert "Who keeps" not in page
    assert ("Who keeps the undo file is not on record" in record_html(make_record(out))) == has_undo


def test_formats_are_taken_back_each_in_its_way(edited, tmp_path):
    done("edit", edited.parent / "source", "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "out")
    record = make_record(edited)
    page = record_html(replace(record, saved=(*record.saved, *make_record(tmp_path / "out").saved)))
    assert "the original weights, the undo file, or edited weights that go back by their amnesia.json alone" in page
    assert "the edit of that format cannot be taken back exactly" in page


def test_the_same_files_give_the_same_bytes_and_texts_of_others_are_escaped(edited, tmp_path):
    request = {
        "id": "DSR-17",
        "decision": "<script>alert(1)</script>",
        "undo_keeper": "legal & privacy",
        "own field": 3,
    }
    text = "\ufeff" + tomli_w.dumps(request) + "next_test = 2030-01-31\n"
    (tmp_path / "request.toml").write_text(text)
    for name in ("a.html", "b.html"):
        done("record", edited, "-o", tmp_path / name, "--request", tmp_path / "request.toml")
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert (
        "names <bdi>legal &amp; privacy</bdi> as keeper" in page
        and "<bdi>own field</bdi>" in page
        and "2030-01-31" in page
    )
    assert "default-src &#39;none&#39;" in page and not re.search(r"(?:src|href)=|https?://", page)
    assert str(tmp_path) not in page and str(edited.parent) not in page
    # What was filed once is not written over.
    assert "choose another file" in refused("record", edited, "-o", tmp_path / "a.html")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("next_test = 'soon'", "expected a date"),
        ("next_test = true", "has true as next_test, expected a date"),
        ("id = [1, true]", "has [1, true] as id"),
        ("id = 1.5", "has 1.5 as id, expected a string, a date, a whole number"),
        ("id = 07:30:00", "has 07:30:00 as id"),
        ("[requester]\nname = 'x'", "has a table as requester"),
        (f"id = 0x{'f' * 5000}", "has a whole number of 20000 bits as id"),
        ("id", "is not valid TOML"),
        ("id = '\ud800'", "is not valid TOML"),
    ],
)
def test_a_request_that_cannot_be_read_is_named(edited, tmp_path, text, said):
    (tmp_path / "request.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert said in refused("record", edited, "-o", tmp_path / "r.html", "--request", tmp_path / "request.toml")
    assert not (tmp_path / "r.html").exists()


def test_a_record_stands_beside_the_output_and_is_a_page_or_json(edited, tmp_path):
    assert "write it beside" in refused("record", edited, "-o", edited / "record.html")
    assert "name the file so" in refused("record", edited, "-o", tmp_path / "record.pdf")
    assert "cannot be read" in refused("record", edited, "-o", tmp_path / "r.html", "--request", tmp_path / "none.toml")
    assert done("verify", edited)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_columns_that_a_later_edit_took_back_are_named_and_no_suppression_is_claimed(tmp_path, kind):
    if kind == "gguf":
        (tmp_path / "source").mkdir()
        source, name = write_gguf(tmp_path / "source" / "tiny.gguf"), "tiny.gguf"
    else:
        source, name = save_tiny(tmp_path / "source"), "."
    before = source
    for entity, cell in (("Alpha", "0:3"), ("Back", "0:3"), ("Beta", "1:5")):
        done("edit", before, "--cell", cell, "--entity", entity, "--allow-overlap", "-o", tmp_path / entity)
        before = tmp_path / entity / name
    for base in (None, source, tmp_path / "Alpha" / name):
        given = None if base is None else str(base)
        record, earlier = make_record(tmp_path / "Back", base=given), make_record(tmp_path / "Beta", base=given)
        assert record.scope.restored == ("Back", "Alpha") and earlier.scope.restored == record.scope.restored
        for row in (record, earlier):
            (restored,) = row.saved[0].restored
            assert (restored.name, restored.indices) == (record.saved[0].tensors[0].name, (3,))
        page = record_html(record)
        assert "Nothing that the model writes about <bdi>Back</bdi> is suppressed" in page
        assert "to suppress what it writes" not in page
        page = record_html(earlier)
        assert "were changed to suppress what it writes about <bdi>Beta</bdi>" in page
        mark = " (taken back: nothing differs from before all edits)"
        assert f"<bdi>Back</bdi>{mark}, <bdi>Alpha</bdi>{mark}</dd>" in page
        assert "1 is in the end as before all edits, taken back by a later edit or rounded to what it was" in page
    told = done("record", tmp_path / "Back", "-o", tmp_path / "back.json")
    assert "(Back: taken back, nothing differs from before all edits)" in told
    assert json.loads((tmp_path / "back.json").read_bytes())["scope"]["restored"] == ["Back", "Alpha"]
    # Of two entities of one edit, each is told by its own columns.
    rows = [{"layer": 0, "neuron": 3, "multiplier": -1.0}, {"layer": 1, "neuron": 5, "multiplier": -1.0}]
    both = [{"entity": entity, "edits": [row]} for entity, row in zip(("One", "Two"), rows, strict=True)]
    (tmp_path / "edit.json").write_text(json.dumps({"entities": both}))
    done("edit", source, "--edit", tmp_path / "edit.json", "-o", tmp_path / "both")
    options = ("--cell", "1:5", "--entity", "Two", "--allow-overlap")
    done("edit", tmp_path / "both" / name, *options, "-o", tmp_path / "one")
    assert make_record(tmp_path / "one").scope.restored == ("Two",)
    assert make_record(tmp_path / "both").scope.restored == ()
