"""Edits that are made again on another model: where they answer to their name, and where they do not."""

import json
import shutil
import tomllib

import pytest
import torch
from safetensors.torch import load_file

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, DirectionEdit, EntityEdits
from amnesia.errors import InputError
from amnesia.facts.names import entity_templates
from amnesia.live.loading import load
from amnesia.outputs.commands import save, verify
from amnesia.recipe_file import parse_recipe
from amnesia.transfer import TransferSettings, answers, read_transferred, transfer
from amnesia.vector import Vector
from amnesia.weights.edit_rows import edit_json
from amnesia.weights.manifest_file import read_manifest
from oracles.plain import projection
from support.commands import call, refused
from support.folders import tree
from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_recipe import ANYTHING, MIN_NATS, recipe_text
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_tokenizer
from support.tracker import Watched

LAYER = 1
N_TEXTS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def live(model):
    return load(model, "m")


def another(folder, **settings):
    """A tiny model of other weights or sizes."""
    tiny_model("llama", vocab_size=VOCAB_SIZE, **settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def keys_of(live, names):
    """Mean activations (n_names, d_mlp) at the last token of each name, one prompt at a time."""
    seen = []
    starts = dict.fromkeys(text[: text.index("{entity}")] for text in entity_templates()[:N_TEXTS])
    starts = [start for start in starts if start]
    handle = projection(live.model, LAYER).register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))
    with torch.no_grad():
        for name in names:
            for start in starts:
                ids = live.tokenizer(start + name, return_tensors="pt").input_ids
                live.model(input_ids=ids)
    handle.remove()
    return torch.stack(seen).reshape(len(names), len(starts), -1).mean(1)


@pytest.fixture(scope="module")
def group(live):
    """A direction that answers 1 to Japan and as little as may be to others, by plain least squares."""
    keys = keys_of(live, ("Japan", "Peru", "Kenya", "Cuba", "Norway", "Michael Jordan", "Steve Jobs")).double()
    second = keys[1:].T @ keys[1:] + 1e-3 * torch.eye(keys.shape[1], dtype=torch.float64)
    read = torch.linalg.solve(second, keys[0])
    read /= read @ keys[0]
    write = projection(live.model, LAYER).weight.double() @ (keys[0] - keys[1:].mean(0))
    vectors = (read, write, keys[0], keys.square().mean(0).sqrt())
    edit = DirectionEdit(LAYER, 0, -0.5, tuple(range(len(read))), *(Vector.of(row.numpy()) for row in vectors))
    return EntityEdits("Japan", (edit,))


@pytest.mark.slow
def test_answers_are_those_of_the_model_asked_one_text_at_a_time(live, group):
    settings = TransferSettings(n_names=2, n_texts=N_TEXTS)
    (reply,) = answers(live, group, settings)
    assert reply.own == pytest.approx(1, abs=1e-3)
    (edit,) = group.edits
    doubled = EntityEdits("Japan", (DirectionEdit(**{**vars(edit), "read": Vector.of(2 * edit.read.array)}),))
    (twice,) = answers(live, doubled, settings)
    assert (twice.own, twice.other) == (pytest.approx(2 * reply.own), pytest.approx(2 * reply.other))
    cells = EntityEdits("Japan", (ColumnEdit(Cell(LAYER, 3)),))
    (cell,) = answers(live, cells, settings)
    assert cell.own == 1.0 and cell.other > 0
    assert answers(live, EntityEdits("cells 1:3", cells.edits), settings) == []


def test_what_can_be_given_as_the_edit(tmp_path, model, group):
    save(model, group, tmp_path / "out")
    assert read_transferred(tmp_path / "out") == ((group,), None)
    assert read_transferred(tmp_path / "out" / "amnesia.json") == ((group,), None)
    document = {"entity": "Japan", "edits": [edit_json(edit) for edit in group.edits]}
    (tmp_path / "edit.json").write_text(json.dumps(document), encoding="utf-8")
    assert read_transferred(tmp_path / "edit.json") == ((group,), None)
    save(tmp_path / "out", EntityEdits("Peru", (ColumnEdit(Cell(0, 3)),)), tmp_path / "both")
    with pytest.raises(InputError, match="was made on top of the edit for 'Japan': transfer one edit at a time"):
        read_transferred(tmp_path / "both")
    (tmp_path / "no.json").write_text("{", encoding="utf-8")
    for name in ("no.json", "absent.json"):
        with pytest.raises(InputError, match=name):
            read_transferred(tmp_path / name)


@pytest.mark.slow
def test_on_its_own_model_it_is_the_same_edit_and_is_measured(tmp_path, model, live, group):
    text = recipe_text(live, model, accept=ANYTHING)
    shutil.copytree(model, tmp_path / "relative")
    save(model, group, tmp_path / "edited")
    settings = TransferSettings(n_names=4, n_texts=N_TEXTS, max_other=1e9)
    with Watched().watching() as tracker:
        result = transfer(
            tmp_path / "edited", str(tmp_path / "relative"), tmp_path / "out", tracker, recipe=parse_recipe(text),
            settings=settings,
        )  # fmt: skip
    assert tracker.passes and not tracker.silent()
    assert result.holds and result.output == tmp_path / "out"
    for path in (tmp_path / "edited").glob("*.safetensors"):
        before, after = load_file(path), load_file(tmp_path / "out" / path.name)
        assert all(torch.equal(before[name], after[name]) for name in before)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.edits == (group,)
    assert parse_recipe(manifest.recipe).model == ModelRef("relative")  # No path of this machine.
    assert {"report.json", "report.html"} <= set(manifest.added)
    assert any("of the recipe's" in line for line in tracker.lines)
    (report,) = verify(tmp_path / "out", tmp_path / "relative").values()
    assert report.base_read
    # The recipe in its manifest is enough the next time.
    again = transfer(tmp_path / "out", str(tmp_path / "relative"), tmp_path / "again", settings=settings)
    assert again.run is not None and again.holds


@pytest.mark.slow
def test_a_model_whose_neurons_are_others_does_not_answer_and_nothing_is_written(tmp_path, model, group):
    other = another(tmp_path / "other", seed=5)
    settings = TransferSettings(n_names=4, n_texts=N_TEXTS)
    save(model, group, tmp_path / "edited")
    before = tree(tmp_path)
    result = transfer(tmp_path / "edited", str(other), tmp_path / "out", settings=settings)
    assert not result.holds and result.output is None
    assert tree(tmp_path) == before
    forced = transfer(tmp_path / "edited", str(other), tmp_path / "out", settings=settings, force=True)
    assert not forced.holds and read_manifest(tmp_path / "out").edits == (group,)
    done = call("transfer", tmp_path / "edited", other, "-o", tmp_path / "no")
    assert done.exit_code == 1
    assert "the edit does not answer to its name in this model" in done.stdout
    assert "nothing was written" in done.stdout


def test_models_of_other_sizes_are_refused(tmp_path, model, group):
    save(model, group, tmp_path / "edited")
    for name, settings, fault in (
        ("flat", {"num_hidden_layers": 1}, "layer 1 is out of range"),
        ("narrow", {"intermediate_size": 16}, "use the model that the edit was made for"),
    ):
        other = another(tmp_path / name, **settings)
        assert fault in refused("transfer", tmp_path / "edited", other, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["safetensors", "adapter", "gguf"])
def test_a_model_of_another_width_that_has_all_the_cells_is_refused(tmp_path, model, name):
    source = model
    if name == "gguf":
        source = llama_gguf(tmp_path / "m.gguf", tiny_model("llama", vocab_size=VOCAB_SIZE))
    save(source, EntityEdits("Japan", (ColumnEdit(Cell(LAYER, 3)),)), tmp_path / "edited", format=name)
    wide = another(tmp_path / "wide", intermediate_size=64)
    told = refused("transfer", tmp_path / "edited", wide, "-o", tmp_path / "out")
    assert "has 64 neurons in layer 1 that write 32 numbers" in told
    assert "give a relative of the model that the edit was made for" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_cells_of_which_one_answers_by_chance_do_not_answer(tmp_path, model, live):
    settings = TransferSettings(n_names=8, n_texts=N_TEXTS)
    edits = [ColumnEdit(Cell(layer, neuron)) for layer in range(2) for neuron in range(live.shape.d_mlp)]
    replies = answers(live, EntityEdits("Japan", tuple(edits)), settings)
    held = [reply.edit for reply in replies if reply.holds(settings)]
    others = [edit for edit in edits if edit not in held]
    assert held and len(others) > 1
    for name, chosen, holds in (("few", [held[0], *others[:2]], False), ("half", [held[0], others[0]], True)):
        save(model, EntityEdits("Japan", tuple(chosen)), tmp_path / name)
        result = transfer(tmp_path / name, str(model), tmp_path / f"{name}-out", settings=settings)
        assert (result.answers, result.output is not None) == (holds, holds)


@pytest.mark.parametrize(
    ("entity", "cell", "why"),
    [("Japan", Cell(1, 3, 1), "as cells of experts cannot be watched"), (None, Cell(0, 3), "which it does not have")],
)
def test_why_nothing_was_asked_is_said(tmp_path, model, entity, cell, why):
    source = save_tiny_live(tmp_path / "moe", "glm4_moe") if cell.expert is not None else model
    edit = ColumnEdit(cell)
    save(source, edit if entity is None else EntityEdits(entity, (edit,)), tmp_path / "one")
    shown = Watched()
    transfer(tmp_path / "one", str(source), tmp_path / "two", tracker=shown)
    assert any(f"nor is anything asked for the name, {why}; give a recipe" in line for line in shown.lines)


@pytest.mark.slow
def test_cells_of_a_model_that_is_experts_throughout_are_made_again(tmp_path, live):
    source = save_tiny_live(tmp_path / "moe", "mixtral")
    save(source, EntityEdits("Japan", (ColumnEdit(Cell(1, 3, 1)),)), tmp_path / "one")
    for recipe, line in (
        (None, "no facts about Japan alone: nothing is measured, nor is anything asked for the name, as cells"),
        (parse_recipe(recipe_text(live, source)), "cells of experts cannot be changed in memory: nothing is measured"),
    ):
        shown = Watched()
        result = transfer(tmp_path / "one", str(source), tmp_path / f"{len(line)}", tracker=shown, recipe=recipe)
        assert any(row.startswith(line) for row in shown.lines)
        assert result.holds and read_manifest(tmp_path / f"{len(line)}").edits == read_manifest(tmp_path / "one").edits


@pytest.mark.slow
def test_of_a_recipe_with_several_entities_one_is_chosen(tmp_path, model, live):
    single = tomllib.loads(recipe_text(live, model, edit="", accept=ANYTHING))
    of_peru = [row for row in single["controls"]["facts"] if row.pop("entity") == "Peru"]
    rows = [f'[model]\nid = "{model}"\n[scoring]\nmin_nats = {MIN_NATS}\nmax_rank = 600\n[accept]\n{ANYTHING}']
    for name, facts in (("Japan", single["facts"]), ("Peru", of_peru)):
        shown = ("{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.items()) + " }" for row in facts)
        rows.append(f'[[entities]]\nname = "{name}"\nfacts = [{", ".join(shown)}]')
    (tmp_path / "two.toml").write_text("\n".join(rows), encoding="utf-8")
    save(model, EntityEdits("Japan", (ColumnEdit(Cell(1, 11), -9.0),)), tmp_path / "one")
    given = ("transfer", tmp_path / "one", model, "-o", tmp_path / "out", "--recipe", tmp_path / "two.toml", "--force")
    assert "choose one with --entity" in refused(*given)
    assert "the recipe is about 'Peru', the edit about Japan" in refused(*given, "--entity", "Peru")
    assert "give --recipe, or drop it" in refused(*given[:5], "--entity", "Japan")
    result = call(*given, "--entity", "Japan", "--json")
    assert result.exit_code in (0, 1), result.stderr
    assert [row["entity"] for row in json.loads(result.stdout)["answers"]] == ["Japan"]
