"""The main job on a tiny model: what is written, what is evaluated, and what stays when something fails."""

import errno
import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from amnesia import pipeline
from amnesia.domain import DEFAULT_LOADING, Cell, ModelRef
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, OutputError, SourceError
from amnesia.evaluation import merged
from amnesia.evaluation.merged import same_weights
from amnesia.files.seals import sealed_json
from amnesia.files.staging import MANIFEST_NAME
from amnesia.live import loading
from amnesia.live.loading import load, load_source
from amnesia.live.model import freeze, wrap
from amnesia.outputs.proofs import outputs_in, prove
from amnesia.pipeline import run
from amnesia.recipe_file import parse_recipe, portable_text
from amnesia.report.page import report_html
from amnesia.report.tables import run_text
from amnesia.sources.resolve import resolve
from amnesia.weights.edit_rows import edit_json
from amnesia.weights.manifest_file import read_manifest
from support.folders import telling, tree
from support.reports import check_report_json
from support.tiny_recipe import recipe_text, unknown_fact
from support.tiny_text import save_tiny_live
from support.tracker import Silent, Watched

FORMATS = ("safetensors", "adapter")
LAYERS = (0, 1)
EDITS = (ColumnEdit(Cell(0, 3), -2.0), ColumnEdit(Cell(1, 11)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def live(model):
    return load(model, "m")


@pytest.fixture(scope="module")
def written(tmp_path_factory, model, live):
    output = tmp_path_factory.mktemp("run") / "out"
    recipe = parse_recipe(recipe_text(live, model, formats=FORMATS))
    with Watched().watching() as tracker:
        return run(recipe, output, tracker), output, recipe, tracker


@pytest.mark.slow
def test_no_pass_of_a_model_goes_unseen(written):
    assert written[3].passes and not written[3].silent()


def test_no_file_says_in_which_folder_of_this_machine_the_model_lay(written, model):
    """But for PEFT's own settings, by which it finds the base; when they are published, they name a repository."""
    result, output, recipe, _ = written
    assert str(model.parent) in recipe.text
    assert telling(output, str(model.parent)) == ["adapter/adapter_config.json"]
    for name in FORMATS:
        manifest = read_manifest(output / name)
        assert manifest.base.ref.name == "m"
        assert parse_recipe(manifest.recipe) == replace(recipe, model=ModelRef("m"), text=manifest.recipe)
        assert result.reports[name]["model"]["id"] == "m"


def test_formats_that_score_alike_have_one_table(written):
    result, *_ = written
    scores = dict.fromkeys(FORMATS, result.evaluations["safetensors"])
    text = run_text(result.extraction, scores, True)
    assert text.count("before and after") == text.count("(safetensors and adapter, as saved)") == 1


def test_each_format_has_its_folder_manifest_and_report(written, model):
    result, output, recipe, tracker = written
    assert (result.accepted, result.output) == (True, output)
    assert sorted(result.extraction.edits.edits) == sorted(recipe.edit.cells)
    assert sorted(path.name for path in output.iterdir()) == sorted(FORMATS)
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert "asking the saved safetensors" in tracker.lines
    for name in FORMATS:
        manifest = read_manifest(output / name)
        assert (manifest.format, manifest.entity, manifest.recipe) == (name, "Japan", portable_text(recipe.text))
        assert manifest.base.ref == ModelRef("m")
        assert sorted(edit for group in manifest.edits for edit in group.edits) == list(EDITS)
        document = json.loads((output / name / "report.json").read_text(encoding="utf-8"))
        assert document["model"] == {"id": "m", "revision": None}
        assert (document["entity"], document["accepted"]) == ("Japan", True)
        assert [row["kind"] for row in document["prompts"]].count("held_out_control") == 3
        means = {row["kind"]: row["knowledge_score"]["mean"] for row in document["aggregates"] if row["group"] == "all"}
        assert set(means) == {"target", "held_out_target", "control", "held_out_control"}
        assert {key: manifest.scores[key] for key in means} == means
        assert manifest.scores["neutral_perplexity_ratio"] == document["damage"]["neutral_perplexity"]["ratio"]
        check_report_json(document)
        assert document["changed"]["edits"] == [edit_json(edit) for edit in result.extraction.edits.edits]
        assert "edits" not in document["extraction"]
        assert [row["indices"] for row in document["changed"]["tensors"]] == [[3], [11]]
        assert document == json.loads(json.dumps(result.reports[name]))
        assert (output / name / "report.html").read_text(encoding="utf-8") == report_html(document)
        assert {"report.json", "report.html"} <= set(manifest.added)
    assert [path.name for path in outputs_in(output)] == ["adapter", "safetensors"]
    for folder in outputs_in(output):
        assert prove(folder, resolve(str(model))).base_read


def test_the_report_is_about_the_saved_files(written):
    """The oracle loads the folder with plain transformers and scores each answer token by token."""
    _, output, _, _ = written
    tokenizer = AutoTokenizer.from_pretrained(output / "safetensors")
    plain = AutoModelForCausalLM.from_pretrained(output / "safetensors", dtype=torch.float32).eval()
    document = json.loads((output / "safetensors" / "report.json").read_text(encoding="utf-8"))
    for row in document["prompts"]:
        start, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], f"{row['prompt']} {row['answer']}"))
        assert whole[: len(start)] == start
        with torch.no_grad():
            logprobs = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
        total = sum(logprobs[place - 1, whole[place]].item() for place in range(len(start), len(whole)))
        assert row["after"]["logprob"] == pytest.approx(total, abs=1e-4)
        score = (total - row["logprob_unknown"]) / (row["before"]["logprob"] - row["logprob_unknown"])
        assert row["knowledge_score"] == pytest.approx(score, abs=1e-2)


def test_the_adapter_scores_like_the_edited_weights(written):
    result, _, _, _ = written
    for edited, adapted in zip(*(result.evaluations[name].prompts for name in FORMATS), strict=True):
        assert edited.before == adapted.before
        assert edited.after.logprob == pytest.approx(adapted.after.logprob, abs=1e-4)
        assert edited.after.logprob != edited.before.logprob
        assert edited.after.generated == adapted.after.generated


def test_an_adapter_that_merges_to_the_saved_weights_is_asked_a_handful_of_prompts(written, model):
    result, output, _, tracker = written
    assert "merging the saved adapter" in tracker.lines
    assert "asking the saved adapter" not in tracker.lines
    assert result.evaluations["adapter"] is result.evaluations["safetensors"]
    found = json.loads((output / "adapter" / "report.json").read_text(encoding="utf-8"))["findings"]
    (line,) = [row["text"] for row in found if row["text"].startswith("Merged by PEFT")]
    base = AutoModelForCausalLM.from_pretrained(model)
    merged = PeftModel.from_pretrained(base, output / "adapter").merge_and_unload().state_dict()
    weights = AutoModelForCausalLM.from_pretrained(output / "safetensors").state_dict()
    assert all(torch.allclose(tensor, weights[name], rtol=0, atol=1e-7) for name, tensor in merged.items())
    assert "but for the rounding of" in line  # Multiples other than by −1 round twice in float32.
    assert "within 0.000" in line


def test_the_folder_of_several_formats_stands_for_its_whole_model(written):
    _, output, _, _ = written
    assert resolve(str(output)).folder == output / "safetensors"


@pytest.mark.slow
def test_an_adapter_with_other_numbers_is_not_taken_for_the_saved_weights(tmp_path, model, live):
    output = tmp_path / "out"
    evaluation = run(parse_recipe(recipe_text(live, model, formats=FORMATS)), output).evaluations["safetensors"]
    source, adapter = resolve(str(model)), output / "adapter"
    found = same_weights(source, adapter, output / "safetensors", LAYERS, evaluation, DEFAULT_LOADING)
    assert found is not None
    assert found.n_asked > 1
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, path)
    assert same_weights(source, adapter, output / "safetensors", LAYERS, evaluation, DEFAULT_LOADING) is None


@pytest.mark.slow
def test_a_single_format_fills_the_output_itself(tmp_path, model, live):
    recipe = parse_recipe(recipe_text(live, model))
    assert run(recipe, tmp_path / "out", Silent()).accepted
    assert (tmp_path / "out" / MANIFEST_NAME).exists()
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


@pytest.mark.slow
def test_bounds_that_are_missed_are_reported_with_the_output(tmp_path, model, live):
    accept = "max_target = 1e6\nmax_held_out_target = -1e6\nmin_control = -1e6"
    result = run(parse_recipe(recipe_text(live, model, accept=accept)), tmp_path / "out", Silent())
    assert not result.accepted
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["accepted"] is False


@pytest.mark.slow
def test_a_weak_edit_is_written_by_force_alone(tmp_path, model, live):
    strong = "cells = [{ layer = 0, neuron = 3, multiplier = -40.0 }]"  # Leaves less than half of what it knows.
    accept = "max_target = -1e6\nmin_control = -1e6"
    recipe = parse_recipe(recipe_text(live, model, edit=strong, accept=accept))
    result = run(recipe, tmp_path / "out", Silent())
    assert (result.extraction.verdict, result.accepted, result.output) == ("weak", False, None)
    assert list(tmp_path.iterdir()) == []
    forced = run(recipe, tmp_path / "out", Silent(), force=True)
    assert (forced.extraction, forced.accepted, forced.output) == (result.extraction, False, tmp_path / "out")
    assert [edit.multiplier for edit in read_manifest(tmp_path / "out").edits[0].edits] == [-40.0]


def test_nothing_is_written_without_a_handle(tmp_path, model, live):
    accept = "max_target = -1e6\nmin_control = 1e6"
    result = run(parse_recipe(recipe_text(live, model, accept=accept)), tmp_path / "out", Silent())
    assert (result.extraction.verdict, result.accepted, result.output) == ("none", False, None)
    assert result.evaluations == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_facts_that_are_not_known_are_counted(tmp_path, model, live):
    recipe = parse_recipe(recipe_text(live, model, extra=unknown_fact(live)))
    result = run(recipe, tmp_path / "out", Silent())
    (evaluation,) = result.evaluations.values()
    excluded = {row.prompt for row in evaluation.prompts if row.excluded}
    assert "the sound of Japan is" in excluded
    document = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert document["n_excluded"] == len(excluded)
    with pytest.raises(InputError, match="the model knows none of the 3 target facts about 'Japan'"):
        run(parse_recipe(recipe_text(live, model, scoring="min_nats = 1e6")), tmp_path / "none", Silent())
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["second format", "evaluation", "manifest"])
def test_a_failure_leaves_the_old_output_and_the_source(tmp_path, model, live, monkeypatch, when):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    real = pipeline.write_format
    name, function = {
        "second format": (
            "write_format",
            lambda plan, *a, **k: (fail if plan.format == "adapter" else real)(plan, *a, **k),
        ),
        "evaluation": ("load_adapter", fail),
        "manifest": ("write_manifest", fail),
    }[when]
    monkeypatch.setattr(merged if name == "load_adapter" else pipeline, name, function)
    source = tree(model)
    (tmp_path / "out").mkdir()
    old = sealed_json({"figure": "sweep"}).decode()
    (tmp_path / "out" / "sweep.json").write_text(old)
    recipe = parse_recipe(recipe_text(live, model, formats=FORMATS))
    with pytest.raises(OutputError, match="No space left on device"):
        run(recipe, tmp_path / "out", Silent(), force=True)
    assert tree(tmp_path) == {"out/sweep.json": old.encode()}
    assert tree(model) == source


def test_what_cannot_be_written_is_noticed_before_the_work(tmp_path, model, live, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the model must not be loaded"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    for text, output, message in (
        (recipe_text(live, model), tmp_path / "out", "--force"),
        (recipe_text(live, model), model / "out", "overlaps the source"),
        (
            recipe_text(live, model, formats=("gguf",)),
            tmp_path / "new",
            r"formats gguf and gguf-lora need a .gguf model",
        ),
        (recipe_text(live, model, edit="cells = [{ layer = 7, neuron = 1 }]"), tmp_path / "new", "layer 7 is out of"),
        (recipe_text(live, model, edit="cells = [{ layer = 0, neuron = 48 }]"), tmp_path / "new", "neuron 48 is out"),
        (recipe_text(live, "./missing"), tmp_path / "new", "does not exist"),
    ):
        with pytest.raises((InputError, OutputError, SourceError), match=message):
            run(parse_recipe(text), output, Silent())
    assert tree(tmp_path) == {"out/old": b""}


def test_damaged_folders_are_named_before_loading(tmp_path):
    folder = save_tiny_live(tmp_path / "m")
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{shard.name} has 200 bytes, its header describes"):
        load_source(resolve(str(folder)))


def test_loading_keeps_the_weights(model, live):
    plain = wrap(freeze(AutoModelForCausalLM.from_pretrained(model)), live.tokenizer)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, live.model.state_dict()[name])
