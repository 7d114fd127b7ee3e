"""What is saved from the page: each format once, and a recipe only where it says what the sliders do."""

import dataclasses

import pytest
import torch

from amnesia.choice.results import Extraction
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, DirectionEdit, EntityEdits
from amnesia.mining.recipe_text import joint_text
from amnesia.outputs.commands import verify
from amnesia.outputs.write import edits_from_file
from amnesia.recipe import Target
from amnesia.recipe_file import load_recipe, parse_recipe
from amnesia.ui.session import Session, Subject
from amnesia.vector import Vector
from support.folders import tree
from support.tiny_gguf import llama_gguf
from support.ui_client import EDIT, done, events, failed, post, served


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "adapter", "gguf", "gguf-lora", "edit", "recipe"])
def test_an_edit_is_saved_once_and_never_over_what_is_there(client, session, source, live, tmp_path, form):
    if form.startswith("gguf"):
        source = session.source = dataclasses.replace(source, gguf=llama_gguf(tmp_path / "tiny.gguf", live.model))
    done(post(client, "search", {"entity": "Japan"}))
    wanted = {**EDIT, "strength": 0.5, "cells": [{"cell": "2:7", "multiplier": -3}]}
    expected = (ColumnEdit(Cell(1, 11), 0.0), ColumnEdit(Cell(0, 3), -0.5), ColumnEdit(Cell(2, 7), -3.0))
    path = tmp_path / "new" / "out"
    told = done(post(client, "save", {"edit": wanted, "format": form, "output": f" {path} "}))
    assert told["saved"] == {"path": str(path)} and session.written == [path]
    if form not in ("edit", "recipe"):
        (row,) = verify(path, source).values()
        assert (row.n_cells, row.entity) == (3, "Japan")
    elif form == "edit":
        assert edits_from_file(path) == (EntityEdits("Japan", expected),)
    else:
        assert load_recipe(path).facts == session.recipe.facts
        assert load_recipe(path).edit.cells == expected
    before = tree(tmp_path)
    line = failed(post(client, "save", {"edit": wanted, "format": form, "output": str(path)}))
    assert line == f"{path} exists: choose another name, or move it away yourself"
    assert tree(tmp_path) == before


def test_a_recipe_lists_cells_that_were_chosen_by_hand(source, live, recipe, tmp_path):
    without = parse_recipe(recipe.text.partition("\n")[2])
    session = Session(source, live)
    session.subject = Subject("Japan", without)
    with served(session) as client:
        wanted = {**EDIT, "cells": [{"cell": "2:7", "multiplier": -3}]}
        done(post(client, "save", {"edit": wanted, "format": "recipe", "output": str(tmp_path / "r.toml")}))
    assert load_recipe(tmp_path / "r.toml").edit.cells == (ColumnEdit(Cell(2, 7), -3.0),)


def test_a_recipe_is_refused_where_it_cannot_say_what_the_sliders_do(session, source, live, recipe, tmp_path):
    one = Vector.of(torch.ones(1))
    direction = DirectionEdit(1, 0, -0.5, (3,), one, Vector.of(torch.ones(live.shape.d_model)), one, one)
    without = parse_recipe(recipe.text.partition("\n")[2])
    session.subject = Subject("Japan", without, (), Extraction(EntityEdits("Japan", (direction,)), "strong", 0, 1, 9))
    with served(session) as client:
        for place, wanted in enumerate(
            (EDIT, {**EDIT, "strength": 0.5}, {**EDIT, "cells": [{"cell": "2:7", "multiplier": -3}]})
        ):
            path = tmp_path / f"{place}.toml"
            answer = post(client, "save", {"edit": wanted, "format": "recipe", "output": str(path)})
            if wanted is EDIT:
                done(answer)
                assert load_recipe(path).edit.cells == ()
            else:
                line = failed(answer)
                assert "how strong" in line and "save the weights, which hold both (safetensors, " in line
                assert not path.exists()


def test_a_recipe_is_refused_where_its_cells_are_all_left_as_they_are(client, tmp_path):
    done(post(client, "search", {"entity": "Japan"}))
    wanted = {**EDIT, "strength": 0}
    answer = post(client, "save", {"edit": wanted, "format": "recipe", "output": str(tmp_path / "r.toml")})
    assert "the edit changes nothing" in failed(answer) and not (tmp_path / "r.toml").exists()


def test_a_recipe_is_refused_where_the_choice_is_turned_down_to_nothing(session, recipe, tmp_path):
    without, path = parse_recipe(recipe.text.partition("\n")[2]), tmp_path / "r.toml"
    chosen = EntityEdits("Japan", (ColumnEdit(Cell(2, 7), -3.0),))
    session.subject = Subject("Japan", without, (), Extraction(chosen, "strong", 0, 1, 9))
    with served(session) as client:
        answer = post(client, "save", {"edit": {**EDIT, "strength": 0}, "format": "recipe", "output": str(path)})
        assert "the edit changes nothing" in failed(answer) and not path.exists()
        # Facts of which nothing was chosen are a recipe all the same.
        session.subject = Subject("Japan", without)
        done(post(client, "save", {"edit": EDIT, "format": "recipe", "output": str(path)}))
    assert load_recipe(path).edit.cells == ()


def test_a_recipe_of_several_lists_the_cells_of_the_one_that_was_chosen(source, live, recipe, tmp_path):
    without = parse_recipe(recipe.text.partition("\n")[2])
    several = parse_recipe(joint_text([without, renamed(without, "Norway")], without.model, without.controls), "Japan")
    session = Session(source, live)
    session.subject = Subject("Japan", several)
    with served(session) as client:
        wanted = {**EDIT, "cells": [{"cell": "2:7", "multiplier": -3}]}
        done(post(client, "save", {"edit": wanted, "format": "recipe", "output": str(tmp_path / "r.toml")}))
    assert load_recipe(tmp_path / "r.toml", "Japan").edit.cells == (ColumnEdit(Cell(2, 7), -3.0),)
    assert load_recipe(tmp_path / "r.toml", "Norway").edit.cells == ()
    assert load_recipe(tmp_path / "r.toml", "Japan").facts == several.facts


def renamed(recipe, entity):
    facts = tuple(dataclasses.replace(fact, entity=entity) for fact in recipe.facts)
    return dataclasses.replace(recipe, target=Target(entity), facts=facts)


def test_a_save_that_is_cancelled_leaves_nothing(source, live, recipe, tmp_path):
    class Cancelling(Session):
        def save(self, job, wanted, form, output):
            def told(kind, **content):
                if kind == "task" and content["line"].startswith("writing"):
                    job.cancel()

            job.tell = told
            super().save(job, wanted, form, output)

    with served(Cancelling(source, live, recipe)) as client:
        done(post(client, "search", {"entity": "Japan"}))
        wanted = {"edit": EDIT, "format": "safetensors", "output": str(tmp_path / "out")}
        assert events(post(client, "save", wanted))[-1] == ("cancelled", {})
    assert tree(tmp_path) == {}
