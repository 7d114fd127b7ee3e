"""Two models over the same questions, whatever made the second."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from gguf.constants import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from amnesia.cli.main import main
from amnesia.compare import assess, check_report, open_duet, write_report
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, OutputError
from amnesia.evaluation.behaviour import check_behaviour
from amnesia.evaluation.results import Estimate
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.duet import Sampling
from amnesia.live.loading import load, load_source
from amnesia.live.model import apply_edits
from amnesia.outputs.diff import diff
from amnesia.pipeline import run
from amnesia.recipe_file import parse_recipe
from amnesia.sources.resolve import resolve
from support.commands import done
from support.folders import tree
from support.report_sample import sample
from support.reports import check_report_json
from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_recipe import recipe_text
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_tokenizer
from support.tracker import Silent

STRONG = "cells = [{ layer = 1, neuron = 11, multiplier = -8.0 }, { layer = 0, neuron = 3, multiplier = -8.0 }]"
IN_GGUF = ("--format", "gguf")
FORMATS = ("safetensors", "adapter")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def recipe(model):
    return parse_recipe(recipe_text(load(model, "m"), model, formats=FORMATS))


@pytest.fixture(scope="module")
def facts(recipe):
    return facts_of_recipe(recipe)


def scores(row):
    return {name: getattr(row, name) for name in ("knowledge_score", "knowledge_score_first")}


@pytest.mark.slow
def test_what_was_saved_is_evaluated_as_in_the_run(tmp_path, model, recipe, facts):
    result = run(recipe, tmp_path / "out", Silent())
    for name in FORMATS:
        found = assess(str(model), str(tmp_path / "out" / name), facts, Silent())
        expected = result.evaluations[name]
        if name == "safetensors":
            assert found.evaluation == expected
        for one, other in zip(found.evaluation.prompts, expected.prompts, strict=True):
            # The run has the adapter's figures from the weights that its merge gives.
            assert one.after.logprob == pytest.approx(other.after.logprob, abs=1e-3)
            assert replace(one, after=other.after, kl=other.kl, **scores(other)) == other
        check_report_json(found.document)
        assert found.document["edited"] == name
        assert found.document["changed"] == result.reports[name]["changed"]


@pytest.mark.slow
def test_a_lora_file_of_llama_cpp_is_evaluated_as_what_it_makes_of_its_gguf(tmp_path, model):
    gguf = llama_gguf(tmp_path / "m.gguf", AutoModelForCausalLM.from_pretrained(model), tokenizer=tiny_tokenizer())
    recipe = parse_recipe(recipe_text(load(model, "m"), gguf, formats=("safetensors", "gguf-lora")))
    result = run(recipe, tmp_path / "out", Silent())
    found = assess(str(gguf), str(tmp_path / "out" / "gguf-lora"), facts_of_recipe(recipe), Silent())
    assert found.evaluation == result.evaluations["gguf-lora"]
    assert found.document["edited"] == "gguf-lora"
    whole, lora = (
        [row.after.logprob for row in result.evaluations[name].prompts] for name in ("safetensors", "gguf-lora")
    )
    assert lora == pytest.approx(whole, abs=1e-4)
    assert whole != [row.before.logprob for row in found.evaluation.prompts]


@pytest.fixture(scope="module")
def of_gguf(tmp_path_factory):
    """A GGUF, its recipe, and what a run made of it in both formats that llama.cpp reads."""
    home = tmp_path_factory.mktemp("gguf")
    model = tiny_model("llama", vocab_size=VOCAB_SIZE, intermediate_size=64)
    gguf = llama_gguf(home / "m.gguf", model, GGMLQuantizationType.Q8_0, tokenizer=tiny_tokenizer())
    text = recipe_text(load_source(resolve(gguf)), gguf, formats=("gguf", "gguf-lora"), edit=STRONG)
    result = run(parse_recipe(text), home / "out", Silent())
    return gguf, facts_of_recipe(parse_recipe(text)), result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", ""])
def test_the_folder_of_an_edited_gguf_is_evaluated_with_its_manifest(of_gguf, name):
    gguf, facts, result = of_gguf
    found = assess(str(gguf), str(gguf.parent / "out" / name), facts, Silent(), sweep=True)
    assert found.evaluation == result.evaluations["gguf"]
    assert found.document["edited"] == "gguf"
    assert found.document["changed"] == result.reports["gguf"]["changed"]
    assert found.document["sweep"] == result.reports["gguf"]["sweep"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "gguf-lora", ""])
def test_the_folder_of_an_edited_gguf_is_heard_beside_its_base(of_gguf, name):
    gguf, _, _ = of_gguf
    duet = open_duet(str(gguf), str(gguf.parent / "out" / name), (), Silent())
    assert duet.strength == 1.0
    (edited,) = (gguf.parent / "out" / "gguf").glob("*.gguf")
    plain = open_duet(str(gguf), str(edited), (), Silent())  # A file is without its manifest.
    assert plain.strength is None
    sampling = Sampling(12)
    answers = duet.answer(["the capital of Japan is"], sampling)
    assert answers == plain.answer(["the capital of Japan is"] * 2, sampling)
    assert answers[0] != answers[1]


@pytest.mark.slow
def test_an_edited_gguf_is_asked_and_compared_by_the_folder_of_its_run(of_gguf):
    gguf, _, _ = of_gguf
    found = check_behaviour(gguf.parent / "out", Silent(), base=str(gguf))
    assert found.n_targets == 5
    assert diff(str(gguf), str(gguf.parent / "out")).edit is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "gguf-lora"])
def test_an_edit_of_another_gguf_is_neither_heard_nor_swept(of_gguf, tmp_path, name):
    gguf, facts, _ = of_gguf
    torch.manual_seed(1)
    model = tiny_model("llama", vocab_size=VOCAB_SIZE, intermediate_size=64)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 2
        model.model.layers[1].mlp.up_proj.weight *= 2
    other = llama_gguf(tmp_path / "other.gguf", model, GGMLQuantizationType.Q8_0, tokenizer=tiny_tokenizer())
    edited = str(gguf.parent / "out" / name)
    for start in (
        lambda model: open_duet(str(model), edited, (), Silent()),
        lambda model: assess(str(model), edited, facts, Silent(), sweep=True),
    ):
        with pytest.raises(InputError, match=r"whose blk\.1\.ffn_.* is not that of .*other\.gguf"):
            start(other)
        with pytest.raises(InputError, match=r"was made of the GGUF .*m\.gguf, and .* is none"):
            start(save_tiny_live(tmp_path / "m") if not (tmp_path / "m").exists() else tmp_path / "m")


def test_a_sweep_starts_from_the_model_that_was_edited(tmp_path, model, facts):
    done("edit", model, "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "out")
    other = save_tiny_live(tmp_path / "other", dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"was made of .*, whose .* is not that of .*other"):
        assess(str(other), str(tmp_path / "out"), facts, Silent(), sweep=True)


@pytest.mark.slow
def test_a_gguf_that_was_edited_twice_is_heard_beside_each_of_those_before(of_gguf, tmp_path):
    gguf, _, _ = of_gguf
    done("edit", gguf, "--cell", "0:3", "--multiplier", "-4", "--entity", "Japan", "-o", tmp_path / "1", *IN_GGUF)
    once = tmp_path / "1" / "m.gguf"
    done("edit", once, "--cell", "1:9", "--multiplier", "-4", "--entity", "Peru", "-o", tmp_path / "2", *IN_GGUF)
    twice = tmp_path / "2" / "m.gguf"
    for base in (gguf, once):
        heard = open_duet(str(base), str(twice.parent), (), Silent()).answer(["Japan is"], Sampling(12))
        assert heard == open_duet(str(base), str(twice), (), Silent()).answer(["Japan is"] * 2, Sampling(12))


@pytest.mark.slow
def test_a_sweep_passes_through_both_models(tmp_path, model, recipe, facts):
    result = run(recipe, tmp_path / "out", Silent())
    found = assess(str(model), str(tmp_path / "out" / "safetensors"), facts, Silent(), sweep=True)
    check_report_json(found.document)
    assert found.document["sweep"] == result.reports["safetensors"]["sweep"]
    strengths = found.document["sweep"]["strengths"]
    for curve in found.document["sweep"]["curves"]:
        scores = [row.knowledge_score for row in found.evaluation.prompts if curve["role"] == row.role]
        known = [score for score in scores if score is not None]
        assert curve["mean"][strengths.index(0.0)] == 1.0
        assert curve["mean"][strengths.index(1.0)] == pytest.approx(sum(known) / len(known), abs=1e-3)
        assert (curve["n"], curve["n_excluded"]) == (len(known), len(scores) - len(known))


@pytest.mark.slow
def test_what_the_edited_model_forgets_too_is_no_control(tmp_path, model, facts):
    done("edit", model, "--cell", "0:3", "--entity", "kenya", "-o", tmp_path / "once")
    done("edit", tmp_path / "once", "--cell", "1:11", "--entity", "Japan", "-o", tmp_path / "both")
    tracker = Silent()
    found = assess(str(model), str(tmp_path / "both"), facts, tracker).evaluation
    controls = {row.fact.entity for row in facts.questions if row.role == "control"}
    assert "Kenya" in controls
    assert {row.entity for row in found.prompts if row.role == "control"} == controls - {"Kenya"}
    assert "no controls, because the edited model is to forget them, too: kenya" in tracker.lines
    assert {row.entity for row in found.prompts if row.role == "target"} == {"Japan"}


def test_a_sweep_needs_to_know_the_cells(model, facts):
    with pytest.raises(InputError, match=r"has no amnesia\.json that says what it is"):
        assess(str(model), str(model), facts, Silent(), sweep=True)
    with pytest.raises(InputError, match="give EDITED too"):
        assess(str(model), None, facts, Silent(), sweep=True)


@pytest.mark.slow
def test_a_sweep_of_a_model_that_was_edited_twice_starts_where_it_should(tmp_path, model, facts):
    for source, output, entity in ((model, "once", "Japan"), (tmp_path / "once", "twice", "Peru")):
        cells = ("--cell", "0:3", "--multiplier", "-2", "--entity", entity, "--allow-overlap")
        done("edit", source, *cells, "-o", tmp_path / output)
    for start in (model, tmp_path / "once"):
        found = assess(str(start), str(tmp_path / "twice"), facts, Silent(), sweep=True)
        place = found.document["sweep"]["strengths"].index(1.0)
        for curve in found.document["sweep"]["curves"]:
            rows = [row for row in found.evaluation.prompts if curve["role"] == row.role]
            scores = [row.knowledge_score for row in rows if row.knowledge_score is not None]
            assert curve["mean"][place] == pytest.approx(sum(scores) / len(scores), abs=1e-3)
    with pytest.raises(InputError, match="was not made of"):
        assess(str(tmp_path / "twice"), str(tmp_path / "once"), facts, Silent(), sweep=True)


def test_one_model_alone(model, facts):
    found = assess(str(model), None, facts, Silent())
    assert {row.knowledge_score for row in found.evaluation.aggregates} == {Estimate(1.0, 1.0, 1.0)}
    check_report_json(found.document)
    assert found.document["edited"] is None
    assert found.document["damage"]["kl_controls"] is None
    assert "One model was measured" in found.document["findings"][0]["text"]


@pytest.mark.slow
def test_a_copy_scores_one_on_everything(tmp_path, model, facts):
    """An edit that changes nothing, saved by another tool."""
    live = load(model, "m")
    live.model.save_pretrained(tmp_path / "copy")
    live.tokenizer.save_pretrained(tmp_path / "copy")
    evaluation = assess(str(model), str(tmp_path / "copy"), facts, Silent()).evaluation
    one, zero = Estimate(1.0, 1.0, 1.0), Estimate(0.0, 0.0, 0.0)
    for row in evaluation.aggregates:
        assert (row.knowledge_score, row.knowledge_score_first, row.exact_match_change) == (one, one, zero)
        assert row.before == row.after
    assert evaluation.damage.perplexity_after == evaluation.damage.perplexity_before
    assert evaluation.damage.kl_controls == zero
    assert {row.kl for row in evaluation.damage.texts} == {0.0}


@pytest.mark.slow
def test_another_tool_may_have_made_the_edit(tmp_path, model, facts):
    live = load(model, "m")
    apply_edits(live, [ColumnEdit(Cell(1, 11), -3.0)])
    live.model.save_pretrained(tmp_path / "merged")
    live.tokenizer.save_pretrained(tmp_path / "merged")
    document = assess(str(model), str(tmp_path / "merged"), facts, Silent()).document
    assert "changed" not in document
    assert document["edited"] == "merged"
    assert str(tmp_path) not in json.dumps({**document, "model": None})
    assert document["damage"]["kl_controls"]["mean"] > 0


@pytest.mark.slow
def test_an_evaluation_that_was_broken_off_goes_on(tmp_path, model, recipe, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "r.toml").write_text(recipe.text, encoding="utf-8")
    command = ["evaluate", model, "--recipe", tmp_path / "r.toml", "-o", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr("amnesia.evaluation.measurement.generate", interrupt)
        assert CliRunner().invoke(main, list(map(str, command))).exit_code == 130
    assert {path.name for path in tmp_path.iterdir()} == {"r.toml", ".out.amnesia-measured"}
    monkeypatch.setattr("amnesia.evaluation.measurement.answer_logprobs", lambda *_: pytest.fail("asked again"))
    assert CliRunner().invoke(main, list(map(str, command))).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"r.toml", "out"}
    check_report_json(json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")))


def test_reports_do_not_replace_models(tmp_path, model):
    with pytest.raises(OutputError, match="overlaps the source"):
        check_report(model, ("smollm2-135m", str(model)), force=True)
    with pytest.raises(OutputError, match="--force"):
        check_report(model, (None,), force=False)
    check_report(tmp_path / "new", (str(model), None))


def test_a_report_is_replaced_only_as_it_was_written(tmp_path):
    write_report(sample(), tmp_path / "out")
    write_report(sample(), tmp_path / "out", force=True)
    for name, old, new in (
        ("report.html", b"</main>", b"<h2>My notes</h2></main>"),
        ("report.json", b'"accepted": true', b'"accepted": false'),
        ("report.json", b"{", b"{ "),
    ):
        path = tmp_path / "out" / name
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new, 1))
        before = tree(tmp_path)
        assert path.read_bytes() != content
        with pytest.raises(OutputError, match=f"{name} was changed since amnesia wrote it: --force"):
            write_report(sample(), tmp_path / "out", force=True)
        assert tree(tmp_path) == before
        path.write_bytes(content)
    (tmp_path / "out" / "report.html").unlink()
    with pytest.raises(
        OutputError, match=r"out has no report.html, which says how its report.json was written: --force"
    ):
        write_report(sample(), tmp_path / "out", force=True)
