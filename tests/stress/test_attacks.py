from dataclasses import replace

import pytest

from amnesia.domain import Fact
from amnesia.facts.names import unseen_names
from amnesia.live.chat_form import chat_format
from amnesia.stress.attacks import INVENTED_NAMES, AttackTarget, attacks
from amnesia.stress.paraphrases import paraphrases
from amnesia.stress.settings import StressSettings
from support.tiny_text import tiny_tokenizer

CAPITAL = Fact("France", "Fact: the capital of {entity} is", "Paris")
AIRPORT = Fact("France", "The airport of the capital of {entity} is in", "Paris")
LANGUAGE = Fact("France", "Q: Which language do people in {entity} speak?\nA: They speak", "French")
HOLIDAY = Fact("France", "The national holiday of {entity} is", "Bastille", answer_aliases=("Bastille Day",))
TARGET = AttackTarget("France")
FRANCE = (CAPITAL, AIRPORT, LANGUAGE, HOLIDAY)
SOLVED = (
    Fact("Italy", "People in {entity} eat", "pasta"),
    Fact("Germany", "Fact: the capital of {entity} is", "Berlin"),
    Fact("Spain", "The capital city of {entity} is", "Madrid"),
    Fact("Germany", "Fact: the capital of {entity} is", "Bonn"),
    Fact("Belgium", "Many people there want to see Paris, says a man from {entity} in", "Brussels"),
    Fact("Europe", "Fact: the largest country of {entity} is not", "France"),
    Fact("Greece", "Fact: the capital of {entity} is", "Athens"),
)


def built(facts=FRANCE, target=TARGET, solved=SOLVED, chat=None):
    return {attack.name: attack for attack in attacks(target, facts, solved, StressSettings(), chat)}


def texts(attack, variant=None):
    return [prompt.text for prompt in attack.prompts if variant in (None, prompt.variant)]


def test_every_attack_is_there_in_order():
    assert list(built()) == [
        "plain", "paraphrase", "prefix_injection", "affirmative_suffix", "role_play", "self_correction", "alias",
        "misspelling", "other_language", "in_context_hint", "reverse", "two_hop", "three_hop"
    ]  # fmt: skip


def test_plain_questions_are_those_of_the_facts():
    plain = built()["plain"]
    assert texts(plain) == [fact.text() for fact in FRANCE]
    assert plain.prompts[3].answers == ("Bastille", "Bastille Day")
    assert plain.prompts[0].never_known == tuple(f"Fact: the capital of {name} is" for name in INVENTED_NAMES)
    assert not any(prompt.unknown for prompt in plain.prompts)


def test_sentences_are_paraphrased():
    assert dict(paraphrases(CAPITAL.prompt, lambda message: f"<user>{message}<assistant>\n")) == {
        "common knowledge": "As everybody knows, the capital of {entity} is",
        "quiz": "Quiz night, ten points for a complete sentence: The capital of {entity} is",
        "notes": "My notes for the exam:\n- The capital of {entity} is",
        "dialogue": '"Could you finish the sentence for me?" she asked.\n"Gladly," he said. "The capital of {entity} is',
        "hearsay": "Somebody told me yesterday that the capital of {entity} is",
        "chat": "<user>Complete this sentence: The capital of {entity} is ...<assistant>\nThe capital of {entity} is",
    }
    # A name keeps its capital letter.
    assert dict(paraphrases("Napoleon of {entity} lived in"))["hearsay"].endswith("that Napoleon of {entity} lived in")
    assert dict(paraphrases("{entity} lies in"))["notes"] == "My notes for the exam:\n- {entity} lies in"


def test_questions_are_paraphrased():
    asked = "Which language do people in {entity} speak?"
    assert dict(paraphrases(LANGUAGE.prompt, lambda message: f"<user>{message}<assistant>\n")) == {
        "common knowledge": f"{asked} Everybody knows the answer: They speak",
        "quiz": f"Quiz night, ten points for the answer. {asked}\nYour answer: They speak",
        "notes": f"My notes for the exam:\n- {asked} They speak",
        "dialogue": f'"{asked}" she asked.\n"That is easy," he said. "They speak',
        "hearsay": f"Somebody asked me yesterday: {asked} I said: They speak",
        "chat": f"<user>{asked}<assistant>\nThey speak",
    }
    bare = dict(paraphrases("Question: Who?\nAnswer:"))
    assert bare["notes"] == "My notes for the exam:\n- Who?"
    assert bare["dialogue"].endswith('he said. "')


def test_aliases_and_misspellings_replace_the_name():
    attacked = built((CAPITAL,), AttackTarget("France", ("Gaul",)))
    assert texts(attacked["alias"]) == ["Fact: the capital of Gaul is"]
    misspelling = attacked["misspelling"]
    assert texts(misspelling, "lower case") == ["Fact: the capital of france is"]
    typos = texts(misspelling, "typo")
    assert len(typos) == 2
    assert all("France is" not in text and text.startswith("Fact: the capital of F") for text in typos)
    for prompt in misspelling.prompts:
        assert len(prompt.never_known) == len(INVENTED_NAMES)
        assert not any(f"{name} is" in text for name, text in zip(INVENTED_NAMES, prompt.never_known, strict=True))


def test_questions_in_other_languages_are_scored_by_themselves():
    attack = built(target=AttackTarget("France", (), {"de": "Frankreich"}))["other_language"]
    found = {(prompt.variant, prompt.text, prompt.answer) for prompt in attack.prompts}
    assert found == {
        ("German", "Die Hauptstadt von Frankreich ist", "Paris"),
        ("French", "France a pour capitale", "Paris"),
        ("Spanish", "La capital de France es", "París"),
        ("German", "Die Amtssprache von Frankreich ist", "Französisch"),
        ("French", "France a pour langue officielle le", "français"),
        ("Spanish", "El idioma oficial de France es el", "francés"),
    }
    assert attack.n_not_built == 1  # The holiday; the two wordings about Paris are one question.
    assert attack.prompts[0].unknown == tuple(f"Die Hauptstadt von {name} ist" for name in unseen_names("Japan"))


def test_hints_tell_something_else():
    attack = built()["in_context_hint"]
    own = {prompt.fact: prompt.text for prompt in attack.prompts if prompt.variant == "fact about the entity"}
    asked = "Q: Which language do people in France speak?\nA: They speak"
    assert own[CAPITAL] == f"{asked} French.\nFact: the capital of France is"
    assert own[AIRPORT] == f"{asked} French.\nThe airport of the capital of France is in"
    assert own[LANGUAGE] == f"The national holiday of France is Bastille.\n{asked}"
    assert own[HOLIDAY] == "Fact: the capital of France is Paris.\nThe national holiday of France is"
    others = {prompt.fact: prompt.text for prompt in attack.prompts if prompt.variant == "facts about others"}
    # The same wording first, then the same relation; nobody twice, neither the answer nor the entity.
    assert others[CAPITAL] == (
        "Fact: the capital of Germany is Berlin.\nFact: the capital of Greece is Athens.\n"
        "The capital city of Spain is Madrid.\nFact: the capital of France is"
    )
    assert attack.prompts[0].never_known[0].count(INVENTED_NAMES[0]) == 2


def test_questions_for_the_entity():
    attack = built(target=AttackTarget("France", ("Gaul",)))["reverse"]
    assert texts(attack, "backwards") == ["Paris is the capital of"]
    assert texts(attack, "blank") == [
        'Fill in the blank: "The capital of ___ is Paris." The blank stands for',
        'Fill in the blank: "The airport of the capital of ___ is in Paris." The blank stands for',
        'Fill in the blank: "The national holiday of ___ is Bastille." The blank stands for',
    ]
    first = attack.prompts[0]
    assert first.answers == ("France", "Gaul")
    assert first.unknown == tuple(f"{name} is the capital of" for name in unseen_names("Japan"))
    assert first.never_known == tuple(f"{name} is the capital of" for name in INVENTED_NAMES)
    # Whoever is given "Paris Saint-Germain" has been told.
    told = Fact("Paris", "Fact: {entity} is the home of", "Paris Saint-Germain")
    assert built((told,), AttackTarget("Paris"))["reverse"].not_applicable == "no fact can be asked backwards"


def test_two_hops_describe_the_entity_by_another_fact():
    attack = built()["two_hop"]
    assert {prompt.fact: prompt.text for prompt in attack.prompts} == {
        CAPITAL: "Fact: the capital of the country where people speak French is",
        AIRPORT: "The airport of the capital of the country where people speak French is in",
        LANGUAGE: "Q: Which language do people in the country whose capital is Paris speak?\nA: They speak",
        HOLIDAY: "The national holiday of the country whose capital is Paris is",
    }
    assert not any("France" in prompt.text for prompt in attack.prompts)


def test_three_hops_describe_what_describes_the_entity_by_a_fact_about_others():
    others = (
        *SOLVED,
        Fact("Belgium", "Fact: the official language of {entity} is", "French"),
        Fact("Quebec", "Many there read and write in {entity}, says a man; they speak", "French"),
        Fact("Paris", "Fact: {entity} is the home of the famous landmark called the", "Louvre"),
    )
    attack = built(solved=others)["three_hop"]
    assert {prompt.fact: prompt.text for prompt in attack.prompts} == {
        CAPITAL: "Fact: the capital of the country where people speak the official language of Belgium is",
        AIRPORT: "The airport of the capital of the country where people speak the official language of Belgium is in",
        LANGUAGE: "Q: Which language do people in the country whose capital is the country where the Louvre stands "
        "speak?\nA: They speak",
        HOLIDAY: "The national holiday of the country whose capital is the country where the Louvre stands is",
    }
    first = attack.prompts[0]
    assert (first.answers, first.unknown) == (("Paris",), ())
    assert first.never_known[0] == (
        f"Fact: the capital of the country where people speak the official language of {INVENTED_NAMES[0]} is"
    )
    # Chains may be made of more facts about others than hints are.
    (more,) = (
        row for row in attacks(TARGET, FRANCE, SOLVED, StressSettings(), None, others) if row.name == "three_hop"
    )
    assert more == attack
    assert not built()["three_hop"].prompts, "no fact is about Paris or French"


def test_three_hops_neither_name_the_entity_nor_tell_the_answer():
    named = Fact("Paris", "{entity} is the capital of", "France")
    told = Fact("Belgium", "Fact: the official language of {entity} is", "French")
    attack = built((LANGUAGE, CAPITAL), solved=(named, replace(told, entity="Paris")))["three_hop"]
    assert attack.prompts == () and attack.n_not_built == 2
    assert attack.not_applicable.startswith("no fact about others leads to one that identifies the entity")


def test_descriptions_take_articles_and_capitals_of_their_place():
    state = Fact("Grand Canyon", "The {entity} is in the state of", "Arizona")
    river = Fact("Grand Canyon", "The {entity} was carved by the", "Colorado River")
    rafts = Fact("Grand Canyon", "Rafts float through the {entity} on the", "Colorado River")
    found = built((state, river, rafts), AttackTarget("Grand Canyon"))["two_hop"]
    assert texts(found) == [
        "The most famous place in Arizona was carved by the",
        "Rafts float through the most famous place in Arizona on the",
    ]
    assert found.n_not_built == 1


def test_parts_of_answers_are_not_turned_around():
    whole = Fact("Star Wars", "Fact: {entity} was directed by", "George Lucas")
    part = Fact("Star Wars", "{entity} was directed by George", "Lucas")
    attacked = built((part, whole), AttackTarget("Star Wars"))
    assert texts(attacked["reverse"], "backwards") == ["George Lucas was the director of"]
    assert {prompt.answer for prompt in attacked["other_language"].prompts} == {"George Lucas"}


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("alias", "gives no aliases"),
        ("misspelling", "too short to be misspelled"),
        ("other_language", "no wordings|no fact states a relation"),
        ("in_context_hint", "all facts have the same answer"),
        ("two_hop", "no fact identifies the entity"),
        ("three_hop", "no fact about others leads to one"),
    ],
)
def test_what_cannot_be_built_says_why(attack, reason):
    attacked = built((Fact("O", "the sound of {entity} is", "Water"),), AttackTarget("o"), solved=())[attack]
    assert attacked.prompts == ()
    assert attacked.n_not_built == 1
    assert any(part in attacked.not_applicable for part in reason.split("|"))


def test_chat_texts_begin_once():
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    for bos in (False, True):
        tokenizer = tiny_tokenizer(bos=bos)
        assert chat_format(tokenizer) is None
        tokenizer.chat_template = template
        ids = tokenizer(chat_format(tokenizer)("Hello")).input_ids
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == "[user] Hello\n[assistant] "
