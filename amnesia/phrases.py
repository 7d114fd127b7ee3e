"""How common relations are asked backwards, described in passing, and worded in other languages.

Pure data with the rules for choosing from it; knows nothing of models. Every wording was written for this package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amnesia.domain import Fact
from amnesia.relations import relation_of

LANGUAGES: Mapping[str, str] = {"de": "German", "fr": "French", "es": "Spanish"}


def _rows(text: str) -> dict[str, dict[str, str]]:
    lines = ([cell.strip() for cell in line.split("|")] for line in text.strip().splitlines())
    return {first: {code: cell for code, cell in zip(LANGUAGES, rest, strict=True) if cell} for first, *rest in lines}


# Answers that are not proper names or have other forms elsewhere: English | German | French | Spanish.
_CONTINENTS = """
Africa | Afrika | Afrique | África
Asia | Asien | Asie | Asia
Europe | Europa | Europe | Europa
South America | Südamerika | Amérique du Sud | América del Sur
North America | Nordamerika | Amérique du Nord | América del Norte
"""
_LANGUAGES = """
Arabic | Arabisch | arabe | árabe
Chinese | Chinesisch | chinois | chino
Dutch | Niederländisch | néerlandais | neerlandés
English | Englisch | anglais | inglés
French | Französisch | français | francés
German | Deutsch | allemand | alemán
Greek | Griechisch | grec | griego
Hindi | Hindi | hindi | hindi
Italian | Italienisch | italien | italiano
Japanese | Japanisch | japonais | japonés
Korean | Koreanisch | coréen | coreano
Polish | Polnisch | polonais | polaco
Portuguese | Portugiesisch | portugais | portugués
Russian | Russisch | russe | ruso
Spanish | Spanisch | espagnol | español
Swedish | Schwedisch | suédois | sueco
Turkish | Türkisch | turc | turco
"""
_SPORTS = """
baseball | Baseball | baseball | béisbol
basketball | Basketball | basket-ball | baloncesto
boxing | Boxen | boxe | boxeo
chess | Schach | échecs | ajedrez
cricket | Cricket | cricket | críquet
cycling | Radsport | cyclisme | ciclismo
football | Fußball | football | fútbol
golf | Golf | golf | golf
ice hockey | Eishockey | hockey sur glace | hockey sobre hielo
rugby | Rugby | rugby | rugby
soccer | Fußball | football | fútbol
swimming | Schwimmen | natation | natación
tennis | Tennis | tennis | tenis
"""
_OTHERS = """
Eiffel Tower | Eiffelturm | tour Eiffel | Torre Eiffel
Great Wall | Chinesische Mauer | Grande Muraille | Gran Muralla
Statue of Liberty | Freiheitsstatue | statue de la Liberté | Estatua de la Libertad
Colosseum | Kolosseum | Colisée | Coliseo
Euro | Euro | euro | euro
dollar | Dollar | dollar | dólar
peso | Peso | peso | peso
pound | Pfund | livre | libra
ruble | Rubel | rouble | rublo
rupee | Rupie | roupie | rupia
yen | Yen | yen | yen
Brazil | Brasilien | Brésil | Brasil
China | China | Chine | China
Egypt | Ägypten | Égypte | Egipto
England | England | Angleterre | Inglaterra
France | Frankreich | France | Francia
Germany | Deutschland | Allemagne | Alemania
Greece | Griechenland | Grèce | Grecia
Italy | Italien | Italie | Italia
Japan | Japan | Japon | Japón
Mexico | Mexiko | Mexique | México
Russia | Russland | Russie | Rusia
Spain | Spanien | Espagne | España
Turkey | Türkei | Turquie | Turquía
United States | Vereinigte Staaten | États-Unis | Estados Unidos
Athens | Athen | Athènes | Atenas
Beijing | Peking | Pékin | Pekín
Berlin | Berlin | Berlin | Berlín
Brussels | Brüssel | Bruxelles | Bruselas
Cairo | Kairo | Le Caire | El Cairo
Copenhagen | Kopenhagen | Copenhague | Copenhague
Lisbon | Lissabon | Lisbonne | Lisboa
London | London | Londres | Londres
Moscow | Moskau | Moscou | Moscú
Paris | Paris | Paris | París
Prague | Prag | Prague | Praga
Rome | Rom | Rome | Roma
Tokyo | Tokio | Tokyo | Tokio
Vienna | Wien | Vienne | Viena
Warsaw | Warschau | Varsovie | Varsovia
"""
_ANSWERS: Mapping[str, Mapping[str, str]] = {
    english.casefold(): forms
    for table in (_CONTINENTS, _LANGUAGES, _SPORTS, _OTHERS)
    for english, forms in _rows(table).items()
}


@dataclass(frozen=True)
class Relation:
    """One relation between an entity and an answer, by the wordings that it has; `name` is that of `relations`.

    `reverse` contains `{answer}` and ends where the entity's name begins; `described` names the entity by the answer
    alone. Either is None where the answer does not lead back to one entity. `foreign` has a wording with `{entity}` by
    language code, ending where the answer begins. `pattern` is searched in the prompt, without regard to case;
    `answers`, where it is not empty, must contain the answer.
    """

    name: str
    pattern: str
    reverse: str | None = None
    described: str | None = None
    foreign: Mapping[str, str] = field(default_factory=dict)
    answers: frozenset[str] = frozenset()

    def states(self, prompt: str, answer: str) -> bool:
        """Whether a prompt with its answer states this relation."""
        return self.allows(answer) and re.search(self.pattern, prompt, re.IGNORECASE) is not None

    def allows(self, answer: str) -> bool:
        """Whether the relation can have this answer."""
        return not self.answers or answer.casefold() in self.answers


def _relation(
    name: str,
    pattern: str,
    reverse: str | None = None,
    described: str | None = None,
    foreign: Sequence[str] = (),
    answers: str = "",
) -> Relation:
    listed = frozenset(english.casefold() for english in _rows(answers)) if answers else frozenset()
    return Relation(name, pattern, reverse, described, dict(zip(LANGUAGES, foreign, strict=False)), listed)


# The first relation that a fact states is taken. Wordings need no article for the entity's name or for the answer.
RELATIONS: tuple[Relation, ...] = (
    _relation(
        "capital of",
        r"\{entity\} (is )?the (capital of\b|seat of government of$)",
        "The capital of {answer} is",
        "the capital of {answer}",
        ("{entity} ist die Hauptstadt von", "{entity} est la capitale de", "{entity} es la capital de"),
    ),
    _relation(
        "capital",
        r"\bcapital\b|\bhas its seat in\b",
        "{answer} is the capital of",
        "the country whose capital is {answer}",
        ("Die Hauptstadt von {entity} ist", "{entity} a pour capitale", "La capital de {entity} es"),
    ),
    _relation(
        "official language",
        r"\blanguage\b|\bspeak\b|\bread and write in$|\bare (printed|written) in$",
        None,
        "the country where people speak {answer}",
        (
            "Die Amtssprache von {entity} ist",
            "{entity} a pour langue officielle le",
            "El idioma oficial de {entity} es el",
        ),
        _LANGUAGES,
    ),
    _relation(
        "currency",
        r"\bcurrency\b|\bmoney\b|\bdollars into$|\bcentral bank\b",
        None,
        None,
        (
            "Die Währung von {entity} heißt",
            "{entity} a pour monnaie",
            "La moneda de {entity} se llama",
        ),
    ),
    _relation(
        "continent",
        r"\bcontinent\b",
        None,
        None,
        (
            "Der Kontinent, auf dem {entity} liegt, heißt",
            "{entity} se trouve sur le continent nommé",
            "El continente de {entity} se llama",
        ),
        _CONTINENTS,
    ),
    _relation(
        "mountain",
        r"\bhighest mountain\b",
        "{answer} is the highest mountain in",
        "the country whose highest mountain is {answer}",
        (
            "Der höchste Berg von {entity} heißt",
            "{entity} a pour plus haute montagne le",
            "La montaña más alta de {entity} se llama",
        ),
    ),
    _relation(
        "landmark",
        r"\bfamous (monument|landmark|building)\b",
        "The {answer} is the most famous landmark in",
        "the country where the {answer} stands",
        (
            "Das berühmteste Bauwerk in {entity} heißt",
            "{entity} a un monument très célèbre, appelé",
            "El monumento más famoso de {entity} se llama",
        ),
    ),
    _relation(
        "sport",
        r"\{entity\}",
        "The most famous {answer} player of all time is",
        "the most famous {answer} player of all time",
        ("Die Sportart von {entity} ist", "Le sport de {entity} est le", "El deporte de {entity} es el"),
        _SPORTS,
    ),
    _relation(
        "team",
        r"\bteam\b|\bplay(s|ed) for the$|\bjersey\b.*\bbelongs to the$",
        "The most famous player of the {answer} was",
        "the most famous player of the {answer}",
        (
            "Die Mannschaft von {entity} heißt",
            "L'équipe de {entity} s'appelle",
            "El equipo de {entity} se llama",
        ),
    ),
    _relation(
        "league",
        r"\bleague\b",
        foreign=("Die Liga von {entity} heißt", "La ligue de {entity} s'appelle", "La liga de {entity} se llama"),
    ),
    _relation(
        "shoes",
        r"\bshoes?\b",
        "The most famous athlete who wore the shoes of {answer} is",
        "the most famous athlete who wore the shoes of {answer}",
        (
            "Die Schuhe von {entity} sind von der Firma",
            "Les chaussures de {entity} sont de la marque",
            "Los zapatos de {entity} son de la marca",
        ),
    ),
    _relation(
        "founded",
        r"\bfounder of$|\bfounded$|\bchief executive of$|\bcompany\b",
        "{answer} was founded by",
        "the founder of {answer}",
        (
            "{entity} gründete die Firma",
            "{entity} a fondé l'entreprise",
            "{entity} fundó la empresa",
        ),
    ),
    _relation(
        "invention",
        r"\binvent(ed|or|ion)\b",
        "The {answer} was invented by",
        "the inventor of the {answer}",
        (
            "Die berühmteste Erfindung von {entity} heißt",
            "L'invention la plus célèbre de {entity} s'appelle",
            "El invento más famoso de {entity} se llama",
        ),
    ),
    _relation(
        "theory",
        r"\btheory of$",
        "The theory of {answer} was developed by",
        "the scientist who developed the theory of {answer}",
    ),
    _relation(
        "author",
        r"\bwritten by$|\bauthor\b|\bwriter\b",
        "{answer} is the author of",
        "the most famous book of {answer}",
        ("{entity} wurde geschrieben von", "{entity} a été écrit par", "{entity} fue escrito por"),
    ),
    _relation(
        "director",
        r"\bdirect(ed|or)\b",
        "{answer} was the director of",
        "the most famous film of {answer}",
        ("{entity} ist ein Film von", "{entity} est un film de", "{entity} es una película de"),
    ),
    _relation(
        "creator",
        r"\bcreated by$|\bcreator of\b|\bmasterpiece by$",
        "{answer} is the creator of",
        "the most famous creation of {answer}",
        ("{entity} wurde geschaffen von", "{entity} a été créé par", "{entity} fue creado por"),
    ),
    _relation(
        "composer",
        r"\bcompos(ed|er)\b",
        "{answer} is the composer of",
        "the most famous work of the composer {answer}",
        ("{entity} wurde komponiert von", "{entity} a été composé par", "{entity} fue compuesto por"),
    ),
    _relation(
        "main character",
        r"\bmain character\b|\bhero of\b",
        "{answer} is the main character of",
        "the story whose main character is {answer}",
        (
            "Die Hauptfigur von {entity} heißt",
            "Le personnage principal de {entity} s'appelle",
            "El personaje principal de {entity} se llama",
        ),
    ),
    _relation(
        "school",
        r"\bschool\b|\bstudent at$",
        "The most famous student of {answer} is",
        "the most famous student of {answer}",
        (
            "Die Schule von {entity} heißt",
            "L'école de {entity} s'appelle",
            "La escuela de {entity} se llama",
        ),
    ),
    _relation(
        "conquest", r"\bconquered$|\bconquest of$", "{answer} was conquered by", "the man who conquered {answer}"
    ),
    _relation(
        "state",
        r"\bin (the|which) state\b|\bto the state of$",
        "The most famous place in {answer} is the",
        "the most famous place in {answer}",
        (
            "{entity} liegt im Bundesstaat",
            "{entity} se trouve dans l'État de",
            "{entity} está en el estado de",
        ),
    ),
    _relation(
        "country",
        r"\bcountry of$|\bin (what|which) country\b",
        None,
        None,
        (
            "Das Land, in dem {entity} liegt, heißt",
            "{entity} est une ville de ce pays :",
            "{entity} está en el país de",
        ),
    ),
    _relation(
        "father",
        r"\bfather\b|\bchild of a man\b",
        "{answer} is the father of",
        "the most famous child of {answer}",
        ("Der Vater von {entity} heißt", "Le père de {entity} s'appelle", "El padre de {entity} se llama"),
    ),
    _relation(
        "mother",
        r"\bmother\b|\bchild of a woman\b",
        "{answer} is the mother of",
        "the most famous child of {answer}",
        ("Die Mutter von {entity} heißt", "La mère de {entity} s'appelle", "La madre de {entity} se llama"),
    ),
    _relation(
        "place of birth",
        r"\bborn\b|\bbirthplace\b",
        "{answer} is the birthplace of",
        None,
        ("{entity} wurde geboren in", "{entity} est né à", "{entity} nació en"),
    ),
)


def relation_stated(fact: Fact) -> Relation | None:
    """The relation that a fact states, or None for one that is not in the table; no relation here leads to numbers."""
    if any(map(str.isdigit, fact.answer)):
        return None
    stated = (relation for relation in RELATIONS if relation.states(fact.prompt, fact.answer))
    name = relation_of(fact.prompt)
    if name is not None:
        # A known wording is of its own relation, whatever words it has; what its answer tells may be another one.
        named = [relation for relation in RELATIONS if relation.name == name]
        listed = (relation for relation in stated if relation.answers)
        return next((relation for relation in named if relation.allows(fact.answer)), next(listed, None))
    return next(stated, None)


def translated(answer: str, language: str) -> str | None:
    """An answer in another language, or None where its form there is not known.

    Proper names that the table does not list keep their form; words in lower case do not.
    """
    forms = _ANSWERS.get(answer.casefold())
    if forms is not None:
        return forms.get(language)
    return answer if answer != answer.lower() or not any(map(str.isalpha, answer)) else None
