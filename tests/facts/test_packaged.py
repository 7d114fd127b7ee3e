"""Data files of the package are read with an eye for typos."""

import re

import pytest

from amnesia.facts import ability, names, neutral, phrases, relations

# Where the path of a file stands, and what reads it.
READERS = {
    "names.toml": (names, "_NAMES_FILE", names._names),
    "others.toml": (names, "_OTHERS_FILE", names._others),
    "texts.toml": (names, "_TEXTS_FILE", names._texts),
    "neutral.toml": (neutral, "_FILE", neutral.neutral_text),
    "relations.toml": (relations, "_FILE", relations._data),
    "phrases.toml": (phrases, "_FILE", phrases._data),
    "ability.toml": (ability, "_FILE", ability.ability_questions),
}


def test_every_data_file_has_a_reader():
    folders = {getattr(module, constant).parent for module, constant, _ in READERS.values()}
    assert {path.name for folder in folders for path in folder.glob("*.toml")} == READERS.keys()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("names.toml", "spare =", "spair =", "names.toml lacks 'spare'"),
        ("names.toml", 'type = "person"', 'typ = "person"', "a kind of names.toml has the unknown key 'typ'"),
        ("names.toml", '"Egypt"', '"Japan"', "names.toml has 'Japan' twice"),
        ("names.toml", '"Laura"', '"Sarah"', "names.toml has 'Sarah' twice"),
        ("others.toml", 'type = "person"', 'kind = "person"', "a type of others.toml lacks 'type'"),
        ("others.toml", '"Pope Francis"', '"Harry Potter"', "others.toml has 'Harry Potter' twice"),
        ("texts.toml", "phrases =", "phrase =", "a template of texts.toml lacks 'phrases'"),
        ("texts.toml", '"the sport played by"', '"the mother of"', "texts.toml has 'the mother of' twice"),
        ("texts.toml", '"I always burn', '" I always burn', "texts.toml has ' I always burn the first pancake' twice"),
        ("texts.toml", "[passing]\nwordings", "[passing]\ntexts", "texts.toml: passing lacks 'wordings'"),
        ("neutral.toml", 'register = "news"', 'registers = "news"', "a text of neutral.toml lacks 'register'"),
        ("relations.toml", "cloze = [", "close = [", "relations.toml: author lacks 'cloze'"),
        ("relations.toml", "Which writer created {entity}?", "Which writer?", "author has a wording without {entity}"),
        (
            "phrases.toml",
            'answers = "sports"',
            'answers = "sport"',
            "phrases.toml: sport refers to the answers 'sport'",
        ),
        ("phrases.toml", "foreign.fr = ", "foreign.it = ", "phrases.toml: capital of lacks 'fr'"),
        ("phrases.toml", '"The capital of {answer} is"', '"The capital is"', "has a wording without one {answer}"),
        ("phrases.toml", 'de = "Afrika", ', "", "phrases.toml: Africa lacks 'de'"),
        ("ability.toml", 'field = "words"', 'name = "words"', "a field of ability.toml lacks 'field'"),
        ("ability.toml", '"cold", "tall"', '"tall", "tall"', "ability.toml has 'tall' twice"),
        ("ability.toml", '"cold", "tall"', '"tall"', "are not 4 options"),
        ("phrases.toml", "Asia = {", "africa = {", "phrases.toml: answers has 'africa' twice"),
    ],
)
def test_typos_are_found(tmp_path, monkeypatch, name, old, new, message):
    module, constant, reader = READERS[name]
    text = getattr(module, constant).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    monkeypatch.setattr(module, constant, tmp_path / name)
    reader.cache_clear()
    try:
        with pytest.raises(ValueError, match=re.escape(message)):
            reader()
    finally:
        reader.cache_clear()
