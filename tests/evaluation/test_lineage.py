"""A manifest stands for the weights beside it where these are proven to be the base's but for the edit."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from amnesia.compare import assess, open_duet
from amnesia.errors import InputError, VerificationError
from amnesia.evaluation.behaviour import check_behaviour
from amnesia.evaluation.lineage import prove_edited
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.duet import Sampling
from amnesia.live.loading import load
from amnesia.recipe_file import parse_recipe
from amnesia.sources.resolve import resolve
from support.commands import done, refused
from support.tiny import save_tiny
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live
from support.tracker import Silent

EDIT = ("--cell", "1:4", "--cell", "0:3", "--multiplier", "0.3", "--entity", "Japan")
PROMPT = "the capital of Japan is"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model `m`, its edited `out`, and `alt`: a copy of `out` with other weights beside the edit."""
    home = tmp_path_factory.mktemp("lineage")
    save_tiny_live(home / "m")
    done("edit", home / "m", *EDIT, "-o", home / "out")
    shutil.copytree(home / "out", home / "alt")
    change(home / "alt", ("q_proj", "lm_head"), lambda tensor: tensor * 1.5)
    (home / "r.toml").write_text(recipe_text(load(home / "m", "m"), home / "m"))
    return home


@pytest.fixture(scope="module")
def facts(home):
    return facts_of_recipe(parse_recipe((home / "r.toml").read_text()))


def change(folder, names, make):
    """Write all tensors anew that have one of the names in theirs; all else in the files stays as it is."""
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if changed := {name for name in tensors if any(part in name for part in names)}:
            tensors |= {name: make(tensors[name]).contiguous() for name in changed}
            save_file(tensors, path, metadata)


def answers(home, edited, base="m"):
    """What is heard, whether of one copy of the weights, and what was told."""
    tracker = Silent()
    duet = open_duet(str(home / base), str(edited), (), tracker)
    return duet.answer([PROMPT] * len(duet.voices), Sampling(20)), duet.strength, tracker.lines


@pytest.mark.slow
def test_a_folder_that_is_its_base_with_the_edit_is_heard_from_one_copy(home, tmp_path):
    heard, strength, _ = answers(home, home / "out")
    shutil.copytree(home / "out", tmp_path / "plain", ignore=shutil.ignore_patterns("amnesia*"))
    assert (answers(home, tmp_path / "plain")[:2], strength) == ((heard, None), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("alike", ["q_proj and lm_head", "a setting", "a tokenizer", "an edited tensor"])
def test_other_weights_under_a_manifest_are_themselves_heard_and_never_swept(home, facts, tmp_path, alike):
    alt = tmp_path / "alt"
    shutil.copytree(home / ("alt" if alike == "q_proj and lm_head" else "out"), alt)
    if alike == "a setting":
        config = json.loads((alt / "config.json").read_text())
        (alt / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    elif alike == "a tokenizer":
        (alt / "tokenizer_config.json").write_text("{}")
    elif alike == "an edited tensor":
        change(alt, ["layers.1.mlp.down_proj"], lambda tensor: tensor * 1.5)
    heard, strength, lines = answers(home, alt)
    (alt / "amnesia.json").rename(tmp_path / "amnesia.json")
    assert strength is None
    assert any("is not what its amnesia.json says" in line and "loaded as a second model" in line for line in lines)
    assert heard == answers(home, alt)[0]
    (tmp_path / "amnesia.json").rename(alt / "amnesia.json")
    line = refused("evaluate", home / "m", alt, "--recipe", home / "r.toml", "--sweep")
    assert (str(alt) in line and "manifest" in line) or "amnesia.json" in line


@pytest.mark.slow
def test_a_report_tells_an_edit_and_its_weights_where_they_are_what_was_asked(home, facts):
    tracker = Silent()
    changed = assess(str(home / "m"), str(home / "out"), facts, tracker).document["changed"]
    files = sorted((home / "out").glob("model*.safetensors"))
    assert changed["weights"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert not any("is not what" in line for line in tracker.lines)
    document = assess(str(home / "m"), str(home / "alt"), facts, tracker).document
    assert "changed" not in document and any("is no part of the report" in line for line in tracker.lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("links", "names", "said"),
    [((), ["q_proj", "lm_head"], "is not about this edit"), (["--link"], ["lm_head"], "is about other weights")],
)
def test_no_record_takes_a_report_about_other_weights(home, tmp_path, links, names, said):
    """Of files that are linked no manifest knows the bytes."""
    done("edit", home / "m", *EDIT, *links, "-o", tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "alt")
    change(tmp_path / "alt", names, lambda tensor: tensor * 1.5)
    recipe = ("--recipe", home / "r.toml")
    for name in ("out", "alt"):
        done("evaluate", home / "m", tmp_path / name, *recipe, "-o", tmp_path / f"of-{name}")
    record = ("record", tmp_path / "out", "-o", tmp_path / "r.html", "--report")
    assert said in refused(*record, tmp_path / "of-alt" / "report.json")
    done(*record, tmp_path / "of-out" / "report.json")


def test_a_base_with_other_weights_beside_the_edited_ones_is_another(home, facts, tmp_path):
    shutil.copytree(home / "m", tmp_path / "m")
    change(tmp_path / "m", ["q_proj"], lambda tensor: tensor * 1.5)
    assert answers(home, home / "out", tmp_path / "m")[1] is None
    with pytest.raises(VerificationError, match=r"differ in the tensor model\.layers\.0\.self_attn\.q_proj\.weight"):
        assess(str(tmp_path / "m"), str(home / "out"), facts, Silent(), sweep=True)


@pytest.mark.slow
def test_in_which_files_a_base_keeps_its_weights_is_all_the_same(home, tmp_path):
    shutil.copytree(home / "m", tmp_path / "m", ignore=shutil.ignore_patterns("model*"))
    save_file(load(home / "m", "m").model.state_dict(), tmp_path / "m" / "model.safetensors", {"format": "pt"})
    (home / "out" / "notes.txt").write_text("of the user")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 1 < len(list((home / "m").glob("*.safetensors")))
    assert answers(home, home / "out", tmp_path / "m")[:2] == answers(home, home / "out")[:2]


def test_of_what_both_models_have_in_one_file_nothing_is_read(home, tmp_path, monkeypatch):
    done("edit", home / "m", *EDIT, "--link", "-o", tmp_path / "out")
    read = []
    from amnesia.outputs import rest

    exactly = rest.read_exactly
    monkeypatch.setattr(rest, "read_exactly", lambda *given: read.append(given[3]) or exactly(*given))
    prove_edited(resolve(home / "m"), resolve(tmp_path / "out"))
    shared = {path.name for path in (tmp_path / "out").glob("model*.safetensors") if path.stat().st_nlink > 1}
    assert shared and not any(name.endswith(tuple(shared)) for name in read)


def test_an_edit_on_top_of_another_is_proven_by_what_the_older_one_found(home, tmp_path):
    done("edit", home / "out", "--cell", "2:5", "--multiplier", "0.5", "-o", tmp_path / "twice")
    assert answers(home, tmp_path / "twice")[1] == 1.0
    shutil.copytree(home / "m", tmp_path / "m")
    change(tmp_path / "m", ["layers.2.mlp.down_proj"], lambda tensor: tensor * 2)
    with pytest.raises(InputError, match=r"whose model\.layers\.2\.mlp\.down_proj\.weight is not that of"):
        answers(home, tmp_path / "twice", tmp_path / "m")


@pytest.mark.parametrize("edited", [2, [0, 2]])
def test_experts_that_no_edit_changed_are_compared_each(tmp_path, edited):
    from amnesia.outputs.rest import check_rest
    from amnesia.weights.checkpoint import open_source

    one = save_tiny(tmp_path / "one", "mixtral", fused=True)
    shutil.copytree(one, tmp_path / "two")

    def double(tensor):
        tensor[edited] *= 2
        return tensor

    change(tmp_path / "two", ["layers.1.mlp.experts.down_proj"], double)
    changed = {f"model.layers.1.mlp.experts.down_proj[{place}]" for place in torch.tensor(edited).reshape(-1).tolist()}
    check_rest(open_source(one), open_source(tmp_path / "two"), changed)
    with pytest.raises(VerificationError, match=r"differ in the tensor model\.layers\.1\.mlp\.experts\.down_proj,"):
        check_rest(open_source(one), open_source(tmp_path / "two"), changed - {max(changed)})


@pytest.fixture(scope="module")
def adapters(home):
    """`ao` was made for the edited model, `a` for the original."""
    for name, base in (("ao", "out"), ("a", "m")):
        cell = ("--cell", "1:5", "--multiplier", "-4", "--entity", "Peru")
        done("edit", home / base, *cell, "--format", "adapter", "-o", home / name)
    return home


@pytest.mark.parametrize(("base", "name"), [("m", "ao"), ("out", "a")])
def test_an_adapter_is_put_on_the_model_that_it_was_made_for_and_on_no_other(adapters, base, name):
    place, folder, recipe = adapters / base, adapters / name, ("--recipe", adapters / "r.toml")
    said = [
        refused("chat", place, folder),
        refused("evaluate", place, folder, *recipe),
        refused("evaluate", place, folder, *recipe, "--sweep"),
        refused("bench", place, folder, "--entity", "Japan"),
        refused("verify", folder, "--behaviour", "--base", place, *recipe),
    ]
    assert len({line.rpartition("error: ")[2] for line in said}) == 1
    assert f"{folder} is an adapter for {'out' if name == 'ao' else 'm'}, which has " in said[0]


@pytest.mark.slow
def test_an_adapter_for_an_edited_model_is_heard_as_peft_puts_it_there(adapters, facts):
    base, folder = str(adapters / "out"), str(adapters / "ao")
    found = assess(base, folder, facts, Silent(), sweep=True)
    place = found.document["sweep"]["strengths"].index(1.0)
    for curve in found.document["sweep"]["curves"]:
        rows = [row.knowledge_score for row in found.evaluation.prompts if curve["role"] == row.role]
        known = [score for score in rows if score is not None]
        assert curve["mean"][place] == pytest.approx(sum(known) / len(known), abs=1e-3)
    assert open_duet(base, folder, (), Silent()).strength == 1.0
    with pytest.raises(InputError, match="is an adapter for"):
        check_behaviour(adapters / "ao", Silent(), base=str(adapters / "m"), recipe_path=adapters / "r.toml")
