"""What keeps a queue from an entity or from all: said before the work, or no result of one."""

import json
from dataclasses import replace

import pytest

from amnesia.choice.extraction import choose
from amnesia.choice.settings import ChoiceSettings
from amnesia.domain import DEFAULT_LOADING
from amnesia.errors import InputError
from amnesia.evaluation.results import TextScore
from amnesia.live.loading import load
from amnesia.queue import work
from amnesia.queue.folder import begin, claimed
from amnesia.queue.listed import read_list
from amnesia.queue.outcome import without_listed
from amnesia.queue.summary import by_language
from amnesia.queue.work import run_queue
from amnesia.sources.resolve import resolve
from support.commands import call, done, refused
from support.queue_recipes import text_of
from support.tracker import Silent


def test_an_entity_that_is_being_worked_on_is_left_alone(tmp_path):
    folder = tmp_path / "entity"
    folder.mkdir()
    with claimed(folder) as own, claimed(folder) as other:
        assert (own, other) == (True, False)
    with claimed(folder) as own:
        assert own
        (folder / "result.json").touch()
    with claimed(folder) as own:
        assert not own


def test_where_the_model_knows_nobody_nothing_is_written(model, tmp_path):
    (tmp_path / "list.txt").write_text("Japan\nAtlantis\n", encoding="utf-8")
    rows = ["subject\trelation\tobject", "Japan\tcapital\tTokyo", "Peru\tcapital\tLima", "Kenya\tcapital\tNairobi"]
    (tmp_path / "facts.tsv").write_text("\n".join(rows), encoding="utf-8")
    command = ("run", "--entities", tmp_path / "list.txt", "--model", model, "--popqa", tmp_path / "facts.tsv")
    result = call(*command, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no row about 'Atlantis'" in result.stdout and "no edit was written" in result.stdout
    assert not any((tmp_path / "out" / "joint").iterdir())
    document = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [(row["verdict"], row["scores"], row["together"]) for row in document["entities"]] == [
        ("unknown", None, None)
    ] * 2
    assert "No edit was written." in (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    # Systems put hidden files into folders that somebody looks at.
    (tmp_path / "out" / "joint" / ".DS_Store").write_bytes(b"x")
    again = call(*command, "-o", tmp_path / "out")
    assert (again.exit_code, again.stdout) == (1, result.stdout)


@pytest.mark.parametrize("name", ["gguf", "gguf-lora"])
def test_a_format_that_cannot_be_written_is_named_before_the_work(model, tmp_path, monkeypatch, name):
    live = load(model, "m")
    (tmp_path / "Japan.toml").write_text(text_of(live, model, "Japan", formats=("safetensors", name)))
    (tmp_path / "list.txt").write_text("Japan.toml\n")
    monkeypatch.setattr(work, "load_source", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(InputError, match="the recipe of Japan: formats gguf and gguf-lora need a .gguf model"):
        run_queue(read_list(tmp_path / "list.txt"), None, None, tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_what_fails_for_all_is_no_result_of_one(entities, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("the weights lie on two devices")

    monkeypatch.setattr(work, "choose", fail)
    with pytest.raises(InputError, match="two devices"):
        run_queue(read_list(entities), None, None, tmp_path / "out", Silent())
    assert not list((tmp_path / "out").rglob("result.json"))


def test_a_table_or_a_model_that_cannot_be_read_begins_no_queue(entities, tmp_path, monkeypatch):
    """Another table, or another type of numbers, may be given for the same output."""
    (tmp_path / "facts.tsv").write_text("subject\tobject\nJapan\tTokyo\n", encoding="utf-8")
    with pytest.raises(InputError, match="relation"):
        run_queue(read_list(entities), None, tmp_path / "facts.tsv", tmp_path / "out", Silent())

    tracker = Silent()

    def too_large(*_, notice):
        assert notice == tracker.notice  # What a large model takes is said.
        raise InputError("m takes 9 GB of memory")

    monkeypatch.setattr(work, "load_source", too_large)
    with pytest.raises(InputError, match="9 GB"):
        run_queue(read_list(entities), None, None, tmp_path / "out", tracker)
    assert not (tmp_path / "out").exists()


def test_a_queue_goes_on_with_what_it_was_begun_with(tmp_path):
    queue = begin(tmp_path / "out", ["Japan", "Peru"], {"table": None, "weak edits": False}, tmp_path / "m")
    queue.entity(1).rmdir()
    assert begin(tmp_path / "out", ["Japan", "Peru"], {"table": None, "weak edits": False}, tmp_path / "m") == queue
    assert queue.entity(1).is_dir()  # What somebody took away is done again.
    for settings, what in (
        ({"table": "ab", "weak edits": False}, "table"),
        ({"table": None, "weak edits": True}, "weak edits"),
        ({"table": None}, "weak edits"),
    ):
        with pytest.raises(InputError, match=f"was begun with other {what}"):
            begin(tmp_path / "out", ["Japan", "Peru"], settings, tmp_path / "m")


def test_another_table_and_a_changed_recipe_are_other_queues(entities, model, tmp_path):
    listed = read_list(entities)
    (tmp_path / "facts.tsv").write_text("subject\trelation\tobject\nPeru\tcapital\tLima\n", encoding="utf-8")
    source = resolve(str(model))
    settings = [
        work._settings(listed, source, popqa, False, DEFAULT_LOADING) for popqa in (None, tmp_path / "facts.tsv")
    ]
    assert settings[0]["table"] is None and len(settings[1]["table"]) == 64
    row = listed[0]
    other = replace(row, recipe=replace(row.recipe, text=row.recipe.text + "\n"))
    changed = work._settings([other, *listed[1:]], source, None, False, DEFAULT_LOADING)
    assert {key for key in changed if changed[key] != settings[0][key]} == {"recipes"}
    assert [name for name, digest in changed["recipes"].items() if digest != settings[0]["recipes"][name]] == ["Japan"]


def test_an_edit_before_is_proven_before_the_work(model, tmp_path, monkeypatch):
    done("edit", model, "--cell", "1:5", "--entity", "Norway", "-o", tmp_path / "once")
    weights = min((tmp_path / "once").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / "list.txt").write_text("Japan\n")
    monkeypatch.setattr(work, "load_source", lambda *_: pytest.fail("the work has begun"))
    command = ("run", "--entities", tmp_path / "list.txt", "--model", tmp_path / "once", "-o", tmp_path / "out")
    assert weights.name in refused(*command)
    assert not (tmp_path / "out").exists()


def test_controls_that_any_choice_saw_are_held_out_of_none(entities):
    japan, canada, _ = (row.recipe for row in read_list(entities))
    search, held_out = (
        replace(japan.controls[0], split=split, entity=name)
        for split, name in (("search", "Peru"), ("held_out", "the Andes"))
    )
    recipes = [
        replace(japan, controls=(search, held_out)),
        replace(canada, controls=(replace(search, entity="peru", split="held_out"), held_out)),
    ]
    splits = [[fact.split for fact in recipe.controls] for recipe in work._of_one_split(recipes)]
    assert splits == [["search", "held_out"]] * 2


def test_controls_about_others_who_are_to_go_are_left_out(entities):
    japan = read_list(entities)[0].recipe
    (fact, *_) = (fact for fact in japan.controls if fact.split == "search")
    named = [
        replace(fact, entity="Canada"),
        replace(fact, answer="Norway"),
        replace(fact, entity="Peru", answer="Lima"),
    ]
    kept = without_listed(replace(japan, controls=tuple(named)), ("Japan", "Canada", "Norway"))
    assert [(fact.entity, fact.answer) for fact in kept.controls] == [("Peru", "Lima")]
    with pytest.raises(InputError, match="about anybody who is not listed"):
        without_listed(replace(japan, controls=tuple(named[:2])), ("Japan", "Canada", "Norway"))


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for rank, device in (("0", None), ("1", "cuda:1"), ("2", "cuda:0"), ("3", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert work._on_own_device(DEFAULT_LOADING).device == device
        assert work._on_own_device(replace(DEFAULT_LOADING, device="cpu")).device == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert work._on_own_device(DEFAULT_LOADING).device is None


def test_perplexity_of_a_language_counts_each_text_by_its_words():
    texts = [TextScore("news", "en", 9, 30, 10.0, 20.0, None), TextScore("letters", "en", 9, 10, 10.0, 10.0, None)]
    assert by_language(texts) == {"en": pytest.approx(2**0.75)}


@pytest.mark.slow
def test_who_is_forgotten_already_is_not_spared(model, tmp_path, monkeypatch):
    done("edit", model, "--cell", "1:5", "--entity", "Norway", "-o", tmp_path / "once")
    done("edit", tmp_path / "once", "--cell", "1:6", "--entity", "Iran", "-o", tmp_path / "twice")
    live, seen = load(model, "m"), []
    for entity in ("Japan", "Canada"):
        (tmp_path / f"{entity}.toml").write_text(text_of(live, tmp_path / "twice", entity), encoding="utf-8")
    (tmp_path / "list.txt").write_text("Japan.toml\nCanada.toml\n")

    def watched(*arguments):
        seen.append(arguments[-1])
        return choose(*arguments)

    monkeypatch.setattr(work, "choose", watched)
    about, asked = work.facts_about, []
    monkeypatch.setattr(work, "facts_about", lambda *given: asked.append({*given[2]}) or about(*given))
    monkeypatch.setattr(ChoiceSettings, "min_neighbor", 1e6)
    tracker = Silent()
    run_queue(read_list(tmp_path / "list.txt"), None, None, tmp_path / "out", tracker)
    assert seen == [["Canada", "Iran", "Norway"], ["Japan", "Iran", "Norway"]]
    # Nor are those neighbors of the joint edit, or who is held out; what it takes along is said before it is written.
    assert asked == [{*names, "Cuba"} for names in seen]
    assert any("neighbors is lost in part" in line for line in tracker.lines)
    # A summary does without what the joint edit left of neighbors.
    (tmp_path / "out" / "joint.json").unlink()
    assert run_queue(read_list(tmp_path / "list.txt"), None, None, tmp_path / "out", Silent()).neighbors == ()
