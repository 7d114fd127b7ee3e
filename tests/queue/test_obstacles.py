"""What keeps a queue from an entity or from all: said before the work, or no result of one."""

import json

import pytest

from amnesia.errors import InputError
from amnesia.live.loading import load
from amnesia.queue import work
from amnesia.queue.folder import claimed
from amnesia.queue.listed import read_list
from amnesia.queue.work import run_queue
from support.commands import call
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


def test_a_table_that_cannot_be_read_is_no_result_of_one(entities, tmp_path):
    (tmp_path / "facts.tsv").write_text("subject\tobject\nJapan\tTokyo\n", encoding="utf-8")
    with pytest.raises(InputError, match="relation"):
        run_queue(read_list(entities), None, tmp_path / "facts.tsv", tmp_path / "out", Silent())
    assert not list((tmp_path / "out").rglob("result.json"))
