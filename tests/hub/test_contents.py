"""What is published verifies where it arrives, although names and reports in it are not those of the folder."""

import json

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit
from amnesia.errors import VerificationError
from amnesia.files.disk import git_hash, hash_file
from amnesia.files.staging import REPORT_NAME, staged_output
from amnesia.hub.card import BaseCard
from amnesia.hub.contents import prepare
from amnesia.hub.local_paths import without_local_paths
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.sources.remote import HubFile
from amnesia.weights.checkpoint import add_file, open_source, write_edited
from amnesia.weights.manifest_file import read_manifest, write_manifest
from amnesia.weights.steps import trace_back
from support.checkpoints import write_output
from support.tiny import save_tiny, write_with


def arrive(output, folder, **options):
    """The folder that others fetch once `output` was published."""
    for name, content in prepare(output, "ada/edited", BaseCard(ModelRef("org/base")), **options).files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


@pytest.mark.parametrize("with_own_report", [False, True])
def test_an_edit_on_top_of_one_that_has_a_report(tmp_path, with_own_report):
    source = save_tiny(tmp_path / "source")
    report = {
        "model": {"id": str(source)},
        "aggregates": [],
        "damage": {"neutral_perplexity": {"before": 20.0, "after": 20.1}},
        "n_excluded": 0,
        "prompts": [],
    }
    steps = (("one", "Paris", Cell(0, 3), True), ("two", "Rome", Cell(1, 7), with_own_report))
    for name, entity, cell, has_report in steps:
        opened = open_source(source if name == "one" else tmp_path / "one")
        with staged_output(tmp_path / name) as staging:
            manifest = write_with(write_edited, opened, [ColumnEdit(cell)], staging, entity=entity)
            if has_report:
                manifest = add_file(manifest, staging, REPORT_NAME, json.dumps(report).encode())
            write_manifest(manifest, staging)
    assert REPORT_NAME in {row.file for row in read_manifest(tmp_path / "two").untouched}
    arrived = arrive(tmp_path / "two", tmp_path / "arrived")
    assert json.loads((arrived / REPORT_NAME).read_bytes())["model"]["id"] == "org/base"
    assert verify(arrived).unproven == ()
    assert verify(arrived, source).n_cells == 2
    undo(arrived, tmp_path / "back", every_step=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*") if path.is_file()} == {
        path.name: path.read_bytes() for path in source.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("at_the_top", [False, True])
def test_the_card_says_what_mlx_lm_would_miss_in_the_configuration(tmp_path, at_the_top):
    source = save_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_bytes())
    assert "rope_theta" not in config
    config["rope_parameters"]["rope_theta"] = 500000.0
    config |= {"rope_theta": 500000.0} if at_the_top else {}
    (source / "config.json").write_text(json.dumps(config))
    with staged_output(tmp_path / "edited") as staging:
        write_manifest(write_with(write_edited, open_source(source), [ColumnEdit(Cell(0, 3))], staging), staging)
    arrived = arrive(tmp_path / "edited", tmp_path / "arrived")
    assert ("mlx-lm" in (arrived / "README.md").read_text(encoding="utf-8")) == (not at_the_top)
    assert (arrived / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_paths_of_this_machine_stay_here(tmp_path):
    source = save_tiny(tmp_path / "source")
    path = source / "config.json"
    config = json.loads(path.read_bytes()) | {"_name_or_path": "/home/ada/secret", "extra": {"vocab_file": "~/v.txt"}}
    path.write_text(json.dumps(config))
    with staged_output(tmp_path / "edited") as staging:
        edits = [ColumnEdit(Cell(0, 3))]
        write_manifest(write_with(write_edited, open_source(source), edits, staging, entity="Paris"), staging)
    arrived = arrive(tmp_path / "edited", tmp_path / "arrived")
    found = json.loads((arrived / "config.json").read_bytes())
    assert found == config | {"_name_or_path": "org/base", "extra": {"vocab_file": "v.txt"}}
    assert b"/home" not in b"".join(path.read_bytes() for path in arrived.rglob("*") if path.is_file())
    assert verify(arrived).unproven == ()
    # What is on the Hub already goes along as it is, but not what only came to the same weights.
    manifest, content = read_manifest(tmp_path / "edited"), path.read_bytes()
    for there, is_kept in ((content, True), (b"{}", False)):
        files = {"config.json": HubFile(len(there), git_hash(there), None)}
        known = prepare(
            tmp_path / "edited", "ada/edited", BaseCard(ModelRef("org/base")), matched=manifest.base, there=files
        )
        assert (known.files["config.json"] == tmp_path / "edited" / "config.json") == is_kept


def test_files_beside_the_model_are_known_as_they_are_published_and_only_the_card_may_be_written_on(tmp_path):
    source = save_tiny(tmp_path / "source")
    added = {"README.md": b"a card", "LICENSE.txt": b"a licence"}
    write_output(source, tmp_path / "one", [ColumnEdit(Cell(0, 3))], added=added)
    write_output(tmp_path / "one", tmp_path / "two", [ColumnEdit(Cell(1, 3), 0.3)], added=added)
    for folder in (tmp_path / "one", tmp_path / "two"):
        arrived = arrive(folder, tmp_path / f"{folder.name} arrived")
        for step in trace_back(arrived, read_manifest(arrived)):
            assert {row.file: row.sha256 for row in step.manifest.written} == {
                name: hash_file(step.after[name]) for name in step.manifest.names_written
            }
        (arrived / "README.md").write_text("a card that was written on")
        verify(arrived, source)
        (arrived / "LICENSE.txt").write_text("another licence")
        with pytest.raises(VerificationError, match="LICENSE.txt has .* it was changed since it was written"):
            verify(arrived)


@pytest.mark.parametrize("name", ["processor_config.json", "video_preprocessor_config.json", "tokenizer_config.json"])
def test_no_configuration_keeps_a_path(tmp_path, name):
    source = save_tiny(tmp_path / "source")
    (source / name).write_text(
        '{"base_model_name_or_path": "/home/ada/m", "vocab_files": ["/home/ada/v"], "x": "\\ud83d"}'
    )
    write_output(source, tmp_path / "edited", [ColumnEdit(Cell(0, 3))])
    arrived = arrive(tmp_path / "edited", tmp_path / "arrived")
    found = json.loads((arrived / name).read_bytes())
    assert found == {"base_model_name_or_path": "org/base", "vocab_files": ["v"], "x": "\ud83d"}


def test_a_licence_that_is_added_is_a_file_of_every_edit(tmp_path):
    source = save_tiny(tmp_path / "source")
    write_output(source, tmp_path / "one", [ColumnEdit(Cell(0, 3))])
    write_output(tmp_path / "one", tmp_path / "two", [ColumnEdit(Cell(1, 3))])
    (source / "NOTICE").write_bytes(b"the notice")
    arrived = arrive(tmp_path / "two", tmp_path / "arrived", extra={"NOTICE": b"the notice"})
    assert verify(arrived, source).n_cells == 2
    for number in range(2):
        undo(arrived, arrived := tmp_path / str(number))
        assert (arrived / "NOTICE").read_bytes() == b"the notice"
        assert number or verify(arrived).unproven == ()


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"_name_or_path": "/home/ada/secret"}, {"_name_or_path": "org/base"}),
        ({"name_or_path": "C:\\models\\secret"}, {"name_or_path": "org/base"}),
        ({"a": [{"special_tokens_map_file": "/home/ada/map.json"}]}, {"a": [{"special_tokens_map_file": "map.json"}]}),
        ({"a_name_or_path": "~/m", "dirs": ["/a/b", ["/c/d"]]}, {"a_name_or_path": "org/base", "dirs": ["b", ["d"]]}),
        ({"path": "/home/ada/p", "filename": "/a/f"}, {"path": "p", "filename": "f"}),
        ({"_name_or_path": "org/base", "template": "/home", "n_dir": 3}, None),
    ],
)
def test_settings_that_name_a_path(setting, shown):
    content = json.dumps(setting).encode()
    found = without_local_paths(content, "org/base")
    assert found == content if shown is None else json.loads(found) == shown
