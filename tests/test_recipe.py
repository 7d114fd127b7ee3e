"""Recipes: what they mean when they are right, and what they say when they are wrong."""

import tomllib
from pathlib import Path

import pytest

from amnesia.domain import Cell, Fact, ModelRef
from amnesia.edits import ColumnEdit
from amnesia.errors import RecipeError
from amnesia.recipe import Accept, LocalizeOptions, Scoring, Translation
from amnesia.recipe_file import KEYS, load_recipe, parse_layers, parse_recipe, portable_text

MODEL = '[model]\nid = "m"\n'
ENTITY = '[entity]\nname = "Japan"\n'
FACTS = '[[facts]]\nprompt = "{entity} is in"\nanswer = "Asia"\n'
CONTROLS = '[[controls.facts]]\nentity = "Peru"\nprompt = "{entity} is in"\nanswer = "America"\n'
SMALLEST = MODEL + ENTITY + FACTS + CONTROLS
BOTH = """
[[entities]]
name = "Japan"
aliases = ["Nippon"]
translations = { ja = "日本" }
cells = [{ layer = 1, neuron = 2 }]
facts = [{ prompt = "{entity} is in", answer = "Asia" }]
[[entities]]
name = "Peru"
facts = [{ prompt = "{entity} is in", answer = "America" }, { prompt = "the language of {entity} is", answer = "Spanish" }]
[[entities]]
name = "Kenya"
facts = [{ prompt = "{entity} is in", answer = "Africa" }]
"""


def test_the_smallest_recipe_gets_every_default():
    recipe = parse_recipe(SMALLEST)
    assert (recipe.model, recipe.target.entity, recipe.target.aliases) == (ModelRef("m"), "Japan", ())
    assert recipe.localization == LocalizeOptions("contrast", 100, None)
    assert recipe.edit.max_cells is None
    assert (recipe.edit.multiplier, recipe.edit.method, recipe.edit.prefer) == (None, "auto", "few")
    assert recipe.edit.formats == ("safetensors",)
    assert parse_recipe(SMALLEST + '[edit]\nmultiplier = -2\nmethod = "single"').edit.multiplier == -2.0
    assert recipe.edit.cells == recipe.target.translations == ()
    assert recipe.facts == (Fact("Japan", "{entity} is in", "Asia", "search"),)
    assert recipe.controls == (Fact("Peru", "{entity} is in", "America", "search"),)
    assert (recipe.scoring, recipe.accept) == (Scoring(1.0, 10), Accept(0.2, 0.4, 0.95))
    assert recipe.text == SMALLEST


def test_every_key_is_read():
    recipe = parse_recipe(
        """
        description = "for people"
        cells = [{ layer = 2, neuron = 7 }, { layer = 1, neuron = 3, multiplier = -0.5 }]
        [model]
        id = " a/b "
        revision = "main"
        [entity]
        name = "Japan"
        aliases = ["Nippon", "日本"]
        [entity.translations]
        ko = "일본"
        zh-Hant = " 日本國 "
        ar = "اليابان"
        [localize]
        baseline = "generic"
        n_prompts = 7
        layers = "1-3"
        [edit]
        max_cells = 3
        multiplier = "auto"
        prefer = "mild"
        format = ["adapter", "gguf", "adapter"]
        [scoring]
        min_nats = 0.5
        max_rank = 3
        [accept]
        max_target = 0.1
        max_held_out_target = 0.3
        min_control = 0.9
        [[facts]]
        prompt = "{entity} is in"
        answer = " Asia "
        split = "search"
        [[facts]]
        prompt = "Where is {entity}?"
        answer = "Asia"
        split = "held_out"
        [[controls.facts]]
        entity = "Peru"
        prompt = "{entity} is in"
        answer = "America"
        split = "held_out"
        """
    )
    assert (recipe.model, recipe.target.aliases) == (ModelRef("a/b", "main"), ("Nippon", "日本"))
    assert recipe.target.translations == (
        Translation("ko", "일본"),
        Translation("zh-Hant", "日本國"),
        Translation("ar", "اليابان"),
    )
    assert recipe.edit.cells == (ColumnEdit(Cell(2, 7), -1.0), ColumnEdit(Cell(1, 3), -0.5))
    assert (recipe.localization.baseline, recipe.localization.n_prompts, recipe.localization.layers) == (
        "generic",
        7,
        (1, 3),
    )
    assert (recipe.edit.max_cells, recipe.edit.multiplier, recipe.edit.prefer) == (3, None, "mild")
    assert recipe.edit.formats == ("adapter", "gguf")
    assert [(fact.answer, fact.split) for fact in recipe.facts] == [("Asia", "search"), ("Asia", "held_out")]
    assert (recipe.scoring, recipe.accept) == (Scoring(0.5, 3), Accept(0.1, 0.3, 0.9))


def test_neighbors_and_forms_are_read():
    text = MODEL + FACTS + CONTROLS
    entity = '[entity]\nname = "Japan"\n'
    plain = parse_recipe(MODEL + entity + FACTS + CONTROLS)
    assert (plain.target.neighbors, plain.edit.forms, plain.edit.neighbors) == ((), True, True)
    for key in ("forms", "neighbors"):
        given = f'neighbors = ["Bank of Japan"]\n[edit]\n{key} = false\n'
        own = parse_recipe(MODEL + entity + given + FACTS + CONTROLS)
        assert own.target.neighbors == ("Bank of Japan",)
        assert (own.edit.forms, own.edit.neighbors) == (key != "forms", key != "neighbors")
    with pytest.raises(RecipeError, match="edit.forms = 'none': expected true or false"):
        parse_recipe(MODEL + entity + '[edit]\nforms = "none"\n' + text.removeprefix(MODEL))


def test_a_table_of_entities_makes_the_others_controls():
    recipe = parse_recipe(MODEL + BOTH, "Japan")
    assert (recipe.target.aliases, recipe.edit.cells) == (("Nippon",), (ColumnEdit(Cell(1, 2)),))
    assert recipe.target.translations == (Translation("ja", "日本"),)
    assert recipe.facts == (Fact("Japan", "{entity} is in", "Asia"),)
    assert [(fact.entity, fact.split) for fact in recipe.controls] == [
        ("Peru", "search"),
        ("Peru", "search"),
        ("Kenya", "held_out"),
    ]
    assert parse_recipe(MODEL + BOTH, "Peru").edit.cells == ()


@pytest.mark.parametrize("wanted", [None, "Japn", "Atlantis"])
def test_a_table_of_entities_needs_a_choice(wanted):
    with pytest.raises(
        RecipeError,
        match=r"lists 3 entities: choose one with --entity \(`robustness`: ENTITY; in Python: entity\), for example 'Japan'",
    ):
        parse_recipe(MODEL + BOTH, wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"section \[model\] is missing: add it with `id`, `revision`"),
        (ENTITY + FACTS + CONTROLS, r"section \[model\] is missing"),
        ("[model]\n" + ENTITY + FACTS + CONTROLS, r"\[model\] lacks `id`"),
        (MODEL + FACTS + CONTROLS, r"section \[entity\] is missing: add it with `name`, `aliases`"),
        (MODEL + "[entity]\n" + FACTS + CONTROLS, r"\[entity\] lacks `name`"),
        (MODEL + ENTITY + CONTROLS, r"\[\[facts\]\] is missing"),
        (MODEL + ENTITY + FACTS, r"\[controls\] is missing"),
        (MODEL + ENTITY + FACTS + "[controls]\n", r"\[controls\] is missing"),
        (MODEL + ENTITY + BOTH, r"\[entity\] and \[\[entities\]\] exclude each other"),
        ('model = "m"\n' + ENTITY + FACTS + CONTROLS, r"`model` is 'm': expected a section \[model\]"),
        ('facts = "x"\n' + MODEL + ENTITY + CONTROLS, r"`facts` is not a list of tables: write \[\[facts\]\]"),
        ("facts = [1]\n" + MODEL + ENTITY + CONTROLS, r"`facts` is not a list of tables"),
        (MODEL + ENTITY + FACTS + 'split = "held_out"\n' + CONTROLS, "leave at least one for the search"),
        (SMALLEST + FACTS + 'split = "held_out"\n', r"fact '\{entity\} is in' is in both splits"),
        (SMALLEST + CONTROLS + 'split = "held_out"\n', r"control entity 'Peru' is in both splits"),
        (SMALLEST + CONTROLS.replace("Peru", "Japan"), "is about 'Japan' itself"),
        (MODEL + BOTH + BOTH, "lists a name twice"),
        (
            MODEL + BOTH + FACTS,
            r"\[\[facts\]\] beside \[\[entities\]\] are of none of them: write \[\[entities.facts\]\]",
        ),
        ("cells = []\n" + MODEL + BOTH, r"write \[\[entities.cells\]\] below the entity they are of"),
        ("model = [", "is not valid TOML"),
        ("x = 1" + "0" * 5000, "is not valid TOML"),
        ("x = " + "[" * 100_000, "is not valid TOML"),
    ],
)
def test_missing_and_contradictory_parts(text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(text, "Japan" if "entities" in text and "entity]" not in text else None, name="file.toml")
    assert str(caught.value).startswith("file.toml")


@pytest.mark.parametrize(("section", "key"), [(section, keys[-1]) for section, keys in KEYS.items()])
def test_unknown_keys_name_the_nearest_valid_one(section, key):
    typo = f"{key}z"
    text = {
        "": f"{typo} = 1\n" + SMALLEST,
        "model": SMALLEST.replace("[model]", f"[model]\n{typo} = 1"),
        "entity": SMALLEST.replace("[entity]", f"[entity]\n{typo} = 1"),
        "entities": MODEL + BOTH + f"{typo} = 1\n",
        "cells": f"cells = [{{ layer = 1, neuron = 1, {typo} = 1 }}]\n" + SMALLEST,
        "facts": SMALLEST.replace("[[facts]]", f"[[facts]]\n{typo} = 1"),
        "controls": MODEL + ENTITY + FACTS + f"[controls]\n{typo} = 1\n",
        "controls.facts": SMALLEST + f"{typo} = 1\n",
    }.get(section, SMALLEST + f"[{section}]\n{typo} = 1\n")
    place = rf"\[{section}\]" if section else "the top level"
    with pytest.raises(RecipeError, match=f"unknown key `{typo}` in {place}: did you mean `{key}`"):
        parse_recipe(text, "Japan" if section == "entities" else None)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("localize", 'baseline = "mean"', "localize.baseline = 'mean': expected one of contrast, generic"),
        ("localize", "n_prompts = 1", "n_prompts = 1: expected a whole number between 2 and 100"),
        ("localize", "n_prompts = 101", "n_prompts = 101: expected a whole number between 2 and 100"),
        ("localize", "n_prompts = true", "n_prompts = true: expected a whole number"),
        ("localize", "layers = 3", "localize.layers = 3: expected a non-empty string"),
        ("localize", 'layers = "5-2"', "layers '5-2' is malformed: expected A-B"),
        ("edit", "max_cells = 0", "max_cells = 0: expected a whole number of at least 1"),
        ("edit", 'multiplier = "minus"', "multiplier = 'minus': expected a number below 1, or \"auto\""),
        ("edit", 'method = "magic"', "edit.method = 'magic': expected one of auto, single"),
        ("edit", "multiplier = -1", 'method "auto" finds the multiplier itself; leave it out, or use method "single"'),
        ("edit", "multiplier = 1", "multiplier = 1 changes nothing: use -1"),
        ("edit", "multiplier = 2.5", "multiplier = 2.5: expected a number below 1"),
        ("edit", "multiplier = nan", "multiplier = nan: expected"),
        ("edit", "multiplier = -inf", "multiplier = -inf: expected"),
        ("edit", "multiplier = -1" + "0" * 400, "expected a number below 1"),
        ("edit", 'prefer = "much"', "edit.prefer = 'much': expected one of few, mild"),
        ("edit", "format = []", r"edit.format = \[\]: expected one or more of safetensors, adapter, gguf"),
        ("edit", 'format = ["onnx"]', "edit.format = 'onnx': expected one of safetensors, adapter, gguf"),
        ("edit", "forms = { a = 1 }", "edit.forms = a table: expected true or false"),
        ("edit", "neighbors = []", r"edit.neighbors = \[\]: expected true or false"),
        ("edit", "prefer = 2030-01-31", "edit.prefer = 2030-01-31: expected one of few, mild"),
        ("edit", f"prefer = 0x{'f' * 5000}", "edit.prefer = a whole number of 20000 bits: expected one of few, mild"),
        ("edit", "format = 3", "edit.format = 3: expected one or more"),
        ("scoring", "min_nats = -1", "scoring.min_nats = -1: expected a number between 0 and inf"),
        ("scoring", "max_rank = 0.5", "scoring.max_rank = 0.5: expected a whole number"),
        ("accept", 'max_target = "low"', "accept.max_target = 'low': expected a number"),
    ],
)
def test_values_out_of_range(section, line, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f"{SMALLEST}[{section}]\n{line}\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"Asia"', '" "', r"lacks `answer`: expected a non-empty string"),
        ('answer = "Asia"', "", r"lacks `answer`"),
        ('"Asia"', '"A"', "answer 'A' of .* is nothing but articles and signs, .*: give an answer of other words"),
        ('"{entity} is in"\nanswer = "Asia"', '"Japan is in"\nanswer = "Asia"', r"put \{entity\} in place of its name"),
        ('entity = "Peru"\n', "", r"\[\[controls.facts\]\] .* lacks `entity`"),
        ('name = "Japan"', "name = 5", "entity.name = 5: expected a non-empty string"),
        (
            'name = "Japan"',
            'name = "Japan"\nneighbors = "Bank of Japan"',
            "entity.neighbors = 'Bank of Japan': expected a list of strings",
        ),
        (
            'name = "Japan"',
            'name = "Japan"\naliases = "Nippon"',
            "entity.aliases = 'Nippon': expected a list of strings",
        ),
        ('id = "m"', 'id = ""', "model.id = '': expected a non-empty string"),
        (
            'name = "Japan"',
            'name = "Japan"\ntranslations = ["日本"]',
            r"entity.translations = \['日本'\]: expected a table of names by language code",
        ),
        (
            'name = "Japan"',
            'name = "Japan"\ntranslations = { Japanese = "日本" }',
            "unknown language code `Japanese` in entity.translations: expected one as `ko` or `zh-Hant`",
        ),
        (
            'name = "Japan"',
            'name = "Japan"\ntranslations = { ja = "" }',
            "entity.translations.ja = '': expected a non-empty string",
        ),
        (
            'answer = "Asia"',
            'answer = "Asia"\nsplit = "test"',
            "facts.split = 'test': expected one of search, held_out",
        ),
    ],
)
def test_texts_that_cannot_be_used(old, new, message):
    assert old in SMALLEST
    with pytest.raises(RecipeError, match=message):
        parse_recipe(SMALLEST.replace(old, new, 1))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("{ layer = 1 }", "lacks `neuron`"),
        ("{ neuron = 1 }", "lacks `layer`"),
        ("{ layer = -1, neuron = 1 }", "cells.layer = -1: expected a whole number"),
        ('{ layer = 1, neuron = "2" }', "cells.neuron = '2': expected a whole number"),
        ("{ layer = 1, neuron = 2, multiplier = inf }", "cells.multiplier = inf: expected"),
        ("{ layer = 1, neuron = 2, multiplier = 1e39 }", "cells.multiplier = 1e\\+39: expected"),
        ("{ layer = 1, neuron = 2, multiplier = 1 }", "a multiplier of 1 changes nothing"),
    ],
)
def test_malformed_cells(cell, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f"cells = [{cell}]\n{SMALLEST}")


def test_names_in_a_recipe_are_the_same_however_they_are_typed():
    text = (
        'model.id = "m"\n[entity]\nname = " Beyonce\u0301\u00a0Knowles "\naliases = ["Queen  B"]\n'
        '[[facts]]\nprompt = "{entity} sings"\nanswer = " Halo "\n'
        '[controls]\nfacts = [{ entity = " Rihanna", prompt = "{entity} sings", answer = "Umbrella" }]'
    )
    for wanted in (None, "Beyonc\u00e9 Knowles", "beyonce\u0301 knowles "):
        recipe = parse_recipe(text, wanted)
        assert recipe.target.names == ("Beyonc\u00e9 Knowles", "Queen B")
        assert {fact.entity for fact in recipe.facts} == {"Beyonc\u00e9 Knowles"}
        assert (recipe.facts[0].answer, recipe.controls[0].entity) == ("Halo", "Rihanna")
    with pytest.raises(RecipeError, match="is about 'Beyonc\u00e9 Knowles' itself"):
        parse_recipe(text.replace(" Rihanna", "beyonc\u00e9 Knowles"))


@pytest.mark.parametrize("name", ["/home/ann/models/m", "~/m", "../m", ".", "..", "m.gguf", "/m"])
def test_a_recipe_that_is_passed_on_has_no_path_to_its_model(name):
    short = Path(name).resolve().name
    text = SMALLEST.replace('"m"', f'"{name}"  # {name} is ours')
    told = portable_text(text)
    assert tomllib.loads(told) == {**tomllib.loads(text), "model": {"id": short}}
    # What stands elsewhere in the text, too, is no path.
    assert ("ours" in told) == (name != ".")
    described = portable_text(f'description = "{name} forgets"\n{text}')
    assert tomllib.loads(described)["description"] == f"{name if name in ('.', '..') else short} forgets"


def test_texts_that_are_no_recipe_and_names_of_the_hub_stay_as_they_are():
    for text in ("", "[model", 'model = "m"', "[model]\nid = 5", '[model]\nid = "org/m"  # ours'):
        assert portable_text(text) == text


def test_an_entity_that_the_recipe_is_not_about():
    assert parse_recipe(SMALLEST, "Japan").target.entity == "Japan"
    with pytest.raises(RecipeError, match="entity 'Peru' is not in this recipe: it is about 'Japan'"):
        parse_recipe(SMALLEST, "Peru")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.toml").write_bytes("description = 'é'".encode("latin-1"))
    (tmp_path / "good.toml").write_text(SMALLEST, encoding="utf-8")
    assert load_recipe(tmp_path / "good.toml") == parse_recipe(SMALLEST)
    (tmp_path / "marked.toml").write_text(SMALLEST, encoding="utf-8-sig")  # As some editors begin a file.
    assert load_recipe(tmp_path / "marked.toml") == parse_recipe(SMALLEST)
    with pytest.raises(RecipeError, match=r"recipe .*latin.toml is not UTF-8 text: save it as UTF-8"):
        load_recipe(tmp_path / "latin.toml")
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(RecipeError, match=r"cannot be read \(.*\): give a .toml file"):
            load_recipe(path)


def test_layers():
    assert parse_layers("0-9") == (0, 9)
    assert parse_layers("4") == (4, 4)
    for text in ("", "-", "3-", "-3", "5-2", "a-b", "1-2-3", "٣", "1-²", "9" * 5000):
        with pytest.raises(RecipeError, match="is malformed"):
            parse_layers(text)
