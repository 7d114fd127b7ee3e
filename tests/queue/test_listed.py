import pytest

from amnesia.domain import ModelRef
from amnesia.errors import InputError, RecipeError
from amnesia.queue.listed import model_of, read_list
from support.commands import refused
from support.tiny_recipe import EVERY_KEY


def listed(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    return read_list(path)


def test_names_and_recipes_are_listed_and_comments_are_not(tmp_path):
    (tmp_path / "japan.toml").write_text(EVERY_KEY.replace("min_multiplier = -8.0\n", ""), encoding="utf-8")
    found = listed(tmp_path, "\ufeff# countries\n  South   Korea  # east\n\nC#\njapan.toml\n")
    assert [row.name for row in found] == ["South Korea", "C#", "Japan"]
    assert [row.recipe is None for row in found] == [True, True, False]
    assert model_of(found, "m") == "m"
    assert model_of(found[2:], None) == ModelRef("smollm2-135m", "main")


@pytest.mark.parametrize("name", ["my  recipe.toml", "Cafe\u0301.toml"])
def test_the_path_of_a_recipe_is_taken_as_it_is(tmp_path, name):
    (tmp_path / name).write_text(EVERY_KEY.replace("min_multiplier = -8.0\n", ""), encoding="utf-8")
    assert [row.name for row in listed(tmp_path, f"  {name} # here\n")] == ["Japan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Paris\nparis\n", "lists 'paris' twice"),
        ("# nobody\n", "lists no entity: give a text file"),
        ("none.toml\n", "none.toml cannot be read"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, text, message):
    with pytest.raises((InputError, RecipeError), match=message):
        listed(tmp_path, text)


def test_bad_commands_get_one_line(tmp_path):
    path = tmp_path / "list.txt"
    assert "cannot be read" in refused("run", "--entities", path, "-o", tmp_path / "out")
    path.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refused("run", "--entities", path, "-o", tmp_path / "out")
    path.write_text("Paris\n", encoding="utf-8")
    assert "'Paris' is listed without a recipe" in refused("run", "--entities", path, "-o", tmp_path / "out")
    assert "drop RECIPE, --entity" in refused("run", "--entities", path, "--entity", "Rome", "-o", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt"]
