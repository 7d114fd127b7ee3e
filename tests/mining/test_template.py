"""The recipe that `init` writes: it loads, has every key, and says the defaults that the reader takes."""

import re

import pytest

from amnesia.errors import InputError
from amnesia.mining.template import template
from amnesia.recipe import Accept, EditOptions, LocalizeOptions, Scoring
from amnesia.recipe_file import KEYS, load_recipe, parse_recipe
from support.commands import done, refused

# What has no default, or excludes another key.
EXAMPLES = "revision layers max_cells layer expert neuron neighborhood".split()


def test_it_loads_with_all_defaults(tmp_path):
    done("init", "Steve  Jobs", "-o", tmp_path / "my.toml")
    recipe = load_recipe(tmp_path / "my.toml")
    assert (recipe.target.entity, str(recipe.model)) == ("Steve Jobs", "smollm2-135m")
    found = (recipe.localization, recipe.edit, recipe.scoring, recipe.accept)
    assert found == (LocalizeOptions(), EditOptions(), Scoring(), Accept())
    assert {fact.split for fact in recipe.facts} == {fact.split for fact in recipe.controls} == {"search", "held_out"}
    assert done("init", "Steve  Jobs") == (tmp_path / "my.toml").read_text(encoding="utf-8")
    assert "exists, and may have been mended by hand" in refused("init", "Steve Jobs", "-o", tmp_path / "my.toml")


def test_every_key_has_a_comment_and_every_default_is_the_readers():
    text = template("Steve Jobs", "org/model@main")
    for section, keys in KEYS.items():
        if section in ("", "controls", "entities"):
            continue
        part = re.split(rf"^(?:# )?\[+{re.escape(section)}\]+$", text, flags=re.MULTILINE)[1].partition("\n\n")[0]
        for key in keys:
            assert re.search(rf"^# {key}: .+\n(# )?{key} = .+$", part, re.MULTILINE), (section, key)
    assert all(key in text for key in KEYS["entities"])

    def spoken(line):
        name = re.match(r"# (\w+) = ", line)
        return line[2:] if name and name[1] not in EXAMPLES else line

    head, cells, tail = re.split(r"(# \[\[cells\]\].*?\n\n)", text, maxsplit=1, flags=re.DOTALL)
    everything = "\n".join(map(spoken, (head + tail).splitlines()))
    assert everything.count("\n# aliases: ") == 1 and "\naliases = []" in everything
    one, other = parse_recipe(text), parse_recipe(everything)
    assert (one.target, one.facts, one.controls, one.model) == (other.target, other.facts, other.controls, other.model)
    assert (one.localization, one.edit, one.scoring, one.accept) == (
        other.localization,
        other.edit,
        other.scoring,
        other.accept,
    )
    fixed = parse_recipe(head + re.sub(r"^# (?=\[\[|\w+ = )(?!expert)", "", cells, flags=re.MULTILINE) + tail)
    assert [str(edit) for edit in fixed.edit.cells] == ["1:100×−1"]


@pytest.mark.parametrize("entity", ["", " \n"])
def test_a_name_is_needed(entity):
    with pytest.raises(InputError, match="no entity given, or an empty one"):
        template(entity, "m")


def test_names_of_others_are_only_names():
    text = template('x"\n[edit]\nmethod = "none', 'm"')
    assert parse_recipe(text).target.entity == 'x" [edit] method = "none'
