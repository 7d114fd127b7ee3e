"""The experiments as commands on a tiny model: numbers and figures side by side, and mistakes in one line."""

import json
import re
import sys

import pytest
from click.testing import CliRunner

from amnesia.cli.main import main
from amnesia.experiments import figures
from amnesia.live.model import MAX_BATCH_TOKENS
from support.folders import tree


def amnesia(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check_figure(folder, name, *texts):
    """The JSON file, after checking that both figures show it and that they can be drawn from it again."""
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.json", f"{name}.png", f"{name}.svg"]
    document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
    assert all(text in svg for text in texts)
    assert figures.draw(document)[".svg"].decode() == svg
    return document


@pytest.mark.slow
def test_layers(model, tmp_path):
    done = amnesia("layers", model, "Japan", "Paris", "--prompts", 4, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    document = check_figure(tmp_path / "out", "layers", "Japan: layer", "significance")
    assert [row["entity"] for row in document["entities"]] == ["Japan", "Paris"]
    assert "Paris" in done.stdout


@pytest.mark.slow
def test_a_figure_is_replaced_with_force_unless_a_file_of_it_is_the_users(model, tmp_path):
    command = ("layers", model, "Japan", "--prompts", 3, "-o", tmp_path / "out")
    assert amnesia(*command).exit_code == 0
    done = amnesia(*command, "--force")
    assert done.exit_code == 0, done.output
    numbers = tmp_path / "out" / "layers.json"
    for path, content in (
        (tmp_path / "out" / "layers.svg", b"<svg>years of work</svg>"),
        (tmp_path / "out" / "layers.png", b"\x89PNG years of work"),
        (numbers, json.dumps(json.loads(numbers.read_bytes()) | {"note": "mine"}, indent=2).encode()),
        (numbers, numbers.read_bytes().replace(b'"n_prompts": 3', b'"n_prompts": 4')),
    ):
        original = path.read_bytes()
        assert content != original
        path.write_bytes(content)
        before = tree(tmp_path)
        for replacing in (command, ("edit", model, "--cell", "1:4", "-o", tmp_path / "out")):
            done = amnesia(*replacing, "--force")
            assert done.exit_code == 2
            assert f"{path} was changed since amnesia wrote it: --force" in done.stderr
        assert tree(tmp_path) == before
        path.write_bytes(original)


@pytest.mark.slow
def test_sweep(recipe, tmp_path):
    done = amnesia("sweep", "--recipe", recipe, "--steps", 5, "--tokens", "entity", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    document = check_figure(tmp_path / "out", "sweep", "zero ablation", "knowledge score")
    assert document["multipliers"] == [1.0, 0.0, -1.0, -2.0, -3.0]
    assert [(cell["layer"], cell["neuron"]) for cell in document["cells"]] == [(1, 11), (0, 3)]
    assert "zero ablation" in done.stdout


@pytest.mark.slow
def test_localize_draws_beside_its_file(model, tmp_path):
    done = amnesia("localize", model, "Japan", "--plot", "-o", tmp_path / "japan.json")
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {"japan.json", "japan.png", "japan.svg"}
    assert "Japan" in (tmp_path / "japan.svg").read_text(encoding="utf-8")
    assert "--plot needs a file" in amnesia("localize", model, "Japan", "--plot").stderr
    done = amnesia("localize", model, "Peru", "--plot", "-o", tmp_path / "japan.json")
    assert done.exit_code == 0, done.output
    assert "Peru" in (tmp_path / "japan.svg").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".svg", ".png", ".SVG"])
def test_localize_keeps_its_result_and_the_pictures_of_others(model, tmp_path, suffix):
    done = amnesia("localize", model, "Japan", "--plot", "-o", tmp_path / f"japan{suffix}")
    assert done.exit_code == 2
    assert "is for the JSON" in done.stderr
    assert amnesia("localize", model, "Japan", "-o", tmp_path / "japan.json").exit_code == 0
    picture = tmp_path / f"japan{suffix.lower()}"
    picture.write_bytes(b"years of work")
    done = amnesia("localize", model, "Japan", "--plot", "-o", tmp_path / "japan.json")
    assert done.exit_code == 2
    assert f"{picture} exists, and was not drawn by amnesia" in done.stderr
    assert picture.read_bytes() == b"years of work"


def test_matplotlib_is_needed_for_figures_only(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = amnesia("layers", model, "Japan", "--prompts", 4, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "pip install 'amnesia[plots]', or give --no-plots" in done.stderr
    assert not (tmp_path / "out").exists()
    done = amnesia("layers", model, "Japan", "--prompts", 4, "-o", tmp_path / "out", "--no-plots", "--json")
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["layers.json"]
    written = json.loads((tmp_path / "out" / "layers.json").read_text(encoding="utf-8"))
    assert len(written.pop("sha256")) == 64
    assert json.loads(done.stdout) == written


@pytest.mark.processes
def test_no_plots_needs_no_matplotlib(model, recipe, tmp_path, monkeypatch):
    for name in ("matplotlib", *(name for name in sys.modules if name.startswith("matplotlib."))):
        monkeypatch.setitem(sys.modules, name, None)  # Importing it is an error.
    commands = [
        ("layers", model, "Japan", "--prompts", 3),
        ("robustness", model, "Japan", "--given-only", "--n-unrelated", 1, "--no-direction"),
        ("atlas", model, "Japan", "--no-directions"),
        ("sweep", "--recipe", recipe, "--steps", 2),
        ("inject", "--recipe", recipe, "--form", "cells", "--value", 5),
        ("sufficiency", "--recipe", recipe, "--form", "cells", "--value", 5, "--max-unfrozen", 1),
    ]
    for command in commands:
        folder = tmp_path / command[0]
        done = amnesia(*command, "--no-plots", "-o", folder)
        assert done.exit_code == 0, done.output
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".sqlite"}
        assert json.loads((folder / f"{command[0]}.json").read_text(encoding="utf-8"))["figure"] == command[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cell", "9:0"), "layer 9 is out of range"),
        (("--cell", "one"), "cell 'one' is malformed"),
        (("--to", "2"), "20 multipliers from 1 to 2"),
    ],
)
def test_mistakes_are_one_line(recipe, options, message):
    done = amnesia("sweep", "--recipe", recipe, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "form", "title"),
    [
        (("--layers", "0-1", "--strength", 2), "direction", "direction of layers 0, 1 × 2"),
        (("--form", "cells", "--factor", 4), "cells", "2 cells × 4"),
    ],
)
def test_inject(recipe, tmp_path, options, form, title):
    done = amnesia("inject", "--recipe", recipe, *options, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    document = check_figure(tmp_path / "out", "inject", "wrong entity", "mean entity", title)
    assert document["put"]["form"] == form
    assert {row["condition"] for row in document["answers"]} == {row["condition"] for row in document["conditions"]}
    assert done.stdout.splitlines()[0].startswith("Japan at 'XXX")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--factor", 2), "--factor is for --form cells, and the form is direction"),
        (("--cell", "1:2"), "--cell is for --form cells"),
        (("--top", 1), "--top is for --form cells"),
        (("--form", "cells", "--layers", "0"), "--layers is for --form direction, and the form is cells"),
        (("--layers", "7"), "layers 7-7 are out of range"),
        (("--strength", "inf"), "inf is no amount to inject"),
        (("--placeholder", ""), "an argument is empty"),
    ],
)
def test_what_cannot_be_injected_is_one_line(recipe, options, message):
    done = amnesia("inject", "--recipe", recipe, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_sufficiency(recipe, tmp_path):
    done = amnesia("sufficiency", "--recipe", recipe, "--max-unfrozen", 2, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    document = check_figure(tmp_path / "out", "sufficiency", "all frozen", "attention")
    assert document["put"]["form"] == "direction"
    assert len(document["steps"]) <= 2


@pytest.mark.slow
def test_a_dollar_in_a_name_begins_no_formula():
    names = ("$uicideboy$", r"A$AP \foo $ign")
    cells = [{"layer": 0, "neuron": 1, "score": 2.0}]
    ranked = {
        "figure": "localize",
        "model": "m",
        "baseline": "contrast",
        "entities": [{"entity": name, "cells": cells} for name in names],
    }
    drawn = figures.draw(ranked)[".svg"].decode()
    assert all(f">{name}</text>" in drawn for name in names)
    by_layer = {"figure": "layers", "model": "m", "n_prompts": 3, "layers": [0, 1]}
    entities = [{"entity": name, "significance": [100.0, 2.0]} for name in names]
    drawn = figures.draw({**by_layer, "entities": entities})[".svg"].decode()
    assert all(f">{name}: layer 0" in drawn for name in names)
    # What marks the logarithmic axis stays a formula.
    assert "mathdefault" not in re.sub("<!--.*?-->", "", drawn)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["U2", "X", "東京", "दिल्ली"])
def test_a_short_name_has_as_many_typos_as_there_are(model, tmp_path, name):
    options = ("robustness", model, name, "--n-unrelated", 1, "--top", 1, "--no-direction", "--no-plots")
    done = amnesia(*options, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "ask for fewer" in amnesia(*options, "--typos", 30, "-o", tmp_path / "other").stderr


@pytest.mark.slow
def test_robustness(model, tmp_path):
    done = amnesia(
        "robustness", model, "Michael Jordan", "--variant", "Jordan", "--translation", "ko=조던", "--n-unrelated", 2, "--typos", 1, "--top", 2,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = check_figure(tmp_path / "out", "robustness", "Michael Jordan", "unrelated", "answer uᵀa of directions")
    assert len(document["cells"]) == 2
    (direction,) = document["directions"]
    assert direction["token"] == 0 and direction["n_columns"] == 48
    # Random activations vary from text to text, but their mean at the name's last token is the key, whose answer is 1.
    assert document["names"][0]["answers"][0] == pytest.approx(1, abs=0.3)
    assert "mean uᵀa" in done.stdout
    assert [row["kind"] for row in document["names"]] == [
        "name", "given", "translation", "lower case", "upper case", "typo", "typo of 2 edits", "unrelated", "unrelated",
    ]  # fmt: skip
    assert "name it as ENTITY or by --recipe" in amnesia("robustness", model).stderr
    mistake = amnesia("robustness", model, "Japan", "--translation", "Nippon").stderr
    assert mistake.startswith("error: unknown language code `Nippon` in --translation")


@pytest.mark.slow
def test_robustness_of_a_recipe(model, recipe, tmp_path):
    path = tmp_path / "translated.toml"
    named = '[entity]\nname = "Japan"\naliases = ["Nippon"]\ntranslations = { ja = "日本", el = "Ιαπωνία" }'
    path.write_text(recipe.read_text(encoding="utf-8").replace('[entity]\nname = "Japan"', named), encoding="utf-8")
    done = amnesia(
        "robustness", model, "--recipe", path, "--given-only", "--n-unrelated", 1, "--no-direction", "--json"
    )
    assert done.exit_code == 0, done.output
    assert [(row["name"], row["kind"], row["language"]) for row in json.loads(done.stdout)["names"][:-1]] == [
        ("Japan", "name", None), ("Nippon", "given", None), ("日本", "translation", "ja"), ("Ιαπωνία", "translation", "el"),
    ]  # fmt: skip
    assert "entity 'Peru' is not in this recipe" in amnesia("robustness", model, "Peru", "--recipe", path).stderr


@pytest.mark.slow
def test_atlas(model, tmp_path):
    names = ["--file", tmp_path / "names.txt", "-o", tmp_path / "out"]
    names[1].write_text("Japan\nParis\n\nthe Nile\n", encoding="utf-8")
    done = amnesia("atlas", model, *names, "--compare", model)
    assert done.exit_code == 0, done.output
    assert "same top cell for 100\xa0% of 3 entities" in done.stdout
    svg = (tmp_path / "out" / "atlas.svg").read_text(encoding="utf-8")
    assert "layer of the top cell" in svg
    document = json.loads((tmp_path / "out" / "atlas.json").read_text(encoding="utf-8"))
    assert sum(document["histogram"]["counts"]) == document["n_entities"] == 3
    assert figures.draw(document)[".svg"].decode() == svg
    again = amnesia("atlas", model, *names)
    assert "localizing 0 of 3" in again.stderr
    other = b'{"figure": "atlas", "note": "years of work"}'
    for suffix, changed in ((".svg", None), (".png", other), (".json", None), (".json", other)):
        path = tmp_path / "out" / f"atlas{suffix}"
        original = path.read_bytes()
        path.write_bytes(changed or original.replace(b"a", b"b", 1))
        before = tree(tmp_path)
        said = amnesia("atlas", model, *names).stderr
        assert f"error: {path} is not as amnesia wrote it, and would be replaced: move it away" in said
        assert tree(tmp_path) == before
        path.write_bytes(original)
    assert amnesia("atlas", model, *names).exit_code == 0
    assert "give the entities in one way" in amnesia("atlas", model, "-o", tmp_path / "out").stderr


def close(found, expected):
    """Whether two JSON documents agree, numbers as far as sums in another order do."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(expected, float) else expected)


def exhaustive(*command):
    return pytest.param(command, marks=pytest.mark.exhaustive)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        exhaustive("robustness", "MODEL", "Japan", "--given-only", "--n-unrelated", 2, "--top", 1),
        ("robustness", "MODEL", "Japan", "--given-only", "--n-unrelated", 2, "--top", 1, "--no-direction"),
        ("layers", "MODEL", "Japan", "--prompts", 3, "--layers", "0-1"),
        ("atlas", "MODEL", "Japan", "Paris", "-o", "FOLDER"),
        exhaustive("atlas", "MODEL", "Japan", "Paris", "-o", "FOLDER", "--no-directions"),
        ("inject", "--recipe", "RECIPE"),
        exhaustive("sufficiency", "--recipe", "RECIPE", "--max-unfrozen", 1),
        ("sweep", "--recipe", "RECIPE", "--cell", "1:11"),
    ],
    ids=lambda command: command[0],
)
def test_experiments_read_layers_from_the_disk(model, recipe, tmp_path, monkeypatch, command):
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    given = {"MODEL": model, "RECIPE": recipe}
    documents = []
    for place, options in (("memory", ()), ("disk", ("--offload",))):
        words = [given.get(word, tmp_path / place if word == "FOLDER" else word) for word in command]
        done = amnesia(*words, "--no-plots", "--json", *options)
        assert done.exit_code == 0, done.output
        assert ("read from the disk" in done.stderr) == (place == "disk")
        documents.append(json.loads(done.stdout))
    assert close(*documents)
    # What was gathered in memory is found again, without a pass through all layers.
    assert len(list((tmp_path / "cache").glob("moments-*"))) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [exhaustive("inject"), ("sufficiency", "--max-unfrozen", 1)], ids=lambda command: command[0]
)
def test_in_16_bits_nothing_but_the_size_of_batches_tells_the_disk_from_memory(
    model, recipe, tmp_path, monkeypatch, command
):
    """Sums of other batches round otherwise, of which `--offload` warns."""
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("amnesia.live.loading.OFFLOADED_TOKENS", MAX_BATCH_TOKENS)
    found = []
    for options in ((), ("--offload",)):
        words = (*command, "--recipe", recipe, "--no-plots", "--json", "--dtype", "bfloat16", *options)
        found.append(amnesia(*words))
        assert found[-1].exit_code == 0, found[-1].output
    assert found[0].stdout == found[1].stdout
