"""Other forms of a name, and its neighbors."""

import dataclasses
import math

import pytest
import torch

from amnesia.choice.atoms import Name
from amnesia.choice.direction import MAX_TOKENS, DirectionChoice
from amnesia.choice.extraction import choose
from amnesia.choice.forms import Forms, asked_as, first_in_lines, forms_of, inside_lines, is_other_first
from amnesia.choice.known import Scores, mean_score
from amnesia.choice.neighbors import (
    _apart,
    near_response,
    neighbor_results,
    told_apart,
)
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.keys import line_starts, name_keys, name_rows
from amnesia.directions.moments import moments_of
from amnesia.domain import Fact, n_columns
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import edited
from amnesia.recipe import Target, Translation
from amnesia.recipe_file import parse_recipe
from support.known_recipes import WORDINGS, known
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


@pytest.fixture(scope="module")
def moments(live, tmp_path_factory):
    return moments_of(live, (0, 1, 2), tmp_path_factory.mktemp("moments"))


def test_forms_are_those_of_the_recipe_and_those_made_from_the_name():
    target = Target("Harry Potter", ("The Boy Who Lived",), (Translation("fr", "Harry Potier"),))
    names = {form.name: form.kind for form in forms_of(target)}
    assert names.pop("The Boy Who Lived") == "given" and names.pop("Harry Potier") == "translation"
    assert names.pop("Potter") == "last name"
    assert (names.pop("harry potter"), names.pop("HARRY POTTER")) == ("lower case", "upper case")
    assert set(names.values()) == {"typo"} and len(names) == 2
    assert {form.name for form in forms_of(Target("Oz"))} == {"oz", "OZ"}


def test_a_form_is_scored_between_an_unknown_entity_and_the_name_itself(live):
    facts = known(live, "Japan")
    assert mean_score(live, asked_as(facts, "Japan")) == pytest.approx(1.0, abs=1e-4)
    found = answer_logprobs(live, [(fact.question.fact.text("JAPAN"), fact.question.fact.answer) for fact in facts])
    scores = [
        (after.logprob - fact.unknown.total) / (fact.before.logprob - fact.unknown.total)
        for fact, after in zip(facts, found, strict=True)
    ]
    assert mean_score(live, asked_as(facts, "JAPAN")) == pytest.approx(sum(scores) / len(scores), abs=1e-4)


@pytest.mark.slow
def test_a_form_that_the_edit_for_the_name_leaves_gets_its_own(live, moments, monkeypatch):
    monkeypatch.setattr("amnesia.choice.forms._KNOWN", -math.inf)
    facts, controls = known(live, "Japan", gap=0.05), known(live, "Peru", "Kenya")
    settings = ChoiceSettings(max_harm=math.inf, min_control=-math.inf, min_neighbor=-math.inf, form_goal=-3.0)
    name = Name(live, "Japan", moments, lambda other: other == "Japan")
    others = [form for form in forms_of(Target("Japan")) if form.kind != "typo"]
    forms = Forms(Scores(live), facts, (), controls, (), settings, others)
    assert {form.name for form in forms.known} == {"japan", "JAPAN"}
    best = DirectionChoice(Scores(live), name, facts, controls, settings=settings).choose()
    edits = forms.add(best, name, None, None)
    assert edits[: len(best.edits)] == best.edits
    rows = forms.results(best.edits, edits)
    for row, (own, before) in zip(rows, forms.known.values(), strict=True):
        assert row.before == before
        for part, score in ((best.edits, row.alone), (edits, row.after)):
            with edited(live, part):
                assert mean_score(live, own) == pytest.approx(score, abs=1e-6)
    needed = [row for row in rows if row.alone > settings.form_goal + settings.slack]
    assert needed and any(row.after <= row.alone - settings.much for row in needed)
    # Without any harm left nothing is added, nor beyond the columns that are allowed.
    bounded = dataclasses.replace(forms, settings=dataclasses.replace(settings, max_harm=0.0))
    assert bounded.add(best, name, None, None) == best.edits
    assert forms.add(best, name, n_columns(best.edits), None) == best.edits


def asked(facts, *prompts):
    """The first fact with other prompts."""
    (fact, *_) = facts
    return tuple(
        dataclasses.replace(fact, question=dataclasses.replace(fact.question, fact=Fact("Japan", prompt, "x")))
        for prompt in prompts
    )


def test_a_name_begins_a_line_at_the_start_of_a_prompt_and_after_a_line_break(live):
    prompts = (
        "Fact: {entity} is",
        "in {entity} is",
        "{entity} is",
        "Where is {entity}?\n{entity} is",
        "A: x\n{entity}",
    )
    facts = asked(known(live, "Japan"), *prompts)
    assert [fact.question.fact.prompt for fact in inside_lines(facts)] == [*prompts[:2]]
    found = [fact.question.fact.prompt for fact in first_in_lines(facts)]
    assert found == ["Fact:\n{entity} is", *prompts[2:]]
    # Where a line begins with it in all of them, there is nothing else to choose by.
    assert inside_lines(facts[2:]) == facts[2:]


def test_tokens_of_a_name_that_begins_a_line_are_read_there(live):
    tokenizer = live.tokenizer

    def ids(text):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    before = len(ids("a")), len(ids("a\n"))
    middle, first = ids("a Japan")[before[0] :], ids("a\nJapan")[before[1] :]
    # Here a space is a token of its own.
    assert not is_other_first(live, "Japan") and middle[-len(first) :] == first
    rows = name_rows(live, "Japan", 1, line_starts(live))[0]
    assert len(rows) >= 16 and all(row.ids[: row.token + 1][-len(first) :] == first for row in rows)
    assert len(line_starts(live)) == 16 * (1 if tokenizer.chat_template is None else 2)


@pytest.mark.real
def test_a_space_before_a_name_is_part_of_its_tokens_in_a_real_model(smollm2_live):
    assert all(is_other_first(smollm2_live, name) for name in ("Miami", "Ødegaard", "東京"))
    middle, first = (
        {row.ids[row.token] for row in name_rows(smollm2_live, "Miami", 1, texts)[0]}
        for texts in (("I saw {entity}", "Fact: {entity}"), line_starts(smollm2_live))
    )
    assert len(middle) == len(first) == 1 and middle != first


@pytest.mark.slow
def test_the_name_where_it_begins_a_line_is_a_form_that_gets_its_own_edit(live, moments, monkeypatch):
    monkeypatch.setattr("amnesia.choice.forms._KNOWN", -math.inf)
    facts, controls = known(live, "Japan", gap=0.05), known(live, "Peru", "Kenya")
    first = asked(facts, *("\n" + WORDINGS[0].replace("the capital of {entity}", "{entity}"), "x\n{entity} has"))
    settings = ChoiceSettings(max_harm=math.inf, min_control=-math.inf, min_neighbor=-math.inf, form_goal=-3.0)
    name = Name(live, "Japan", moments, lambda other: other == "Japan")
    forms = Forms(Scores(live), facts, first, controls, (), settings, ())
    assert [(form.name, form.kind) for form in forms.known] == [("Japan", "first in a line")]
    choice = DirectionChoice(Scores(live), name, facts, controls, settings=settings)
    best = choice.choose()
    edits = forms.add(best, name, None, None)
    (row,) = forms.results(best.edits, edits)
    assert row.name == "Japan (first in a line)" and len(edits) > len(best.edits)
    assert row.after <= row.alone - settings.much
    # Another edit for the name keeps what the form got, unless harm, or what comes back, forbids it.
    fewer = choice.judge(choice.fitted(choice.sizes(best)[0], best.multiplier))
    lenient = dataclasses.replace(forms, settings=dataclasses.replace(settings, goal=math.inf, form_goal=math.inf))
    lenient.change = forms.change
    other, both = lenient.exchanged(best, fewer, edits, name, None, None)
    assert other is fewer and both == (*fewer.edits, *edits[len(best.edits) :])
    for limit in ({"max_harm": 0.0}, {"goal": -math.inf, "form_goal": -math.inf, "slack": -math.inf}):
        strict = dataclasses.replace(forms, settings=dataclasses.replace(lenient.settings, **limit))
        strict.change = forms.change
        assert strict.exchanged(best, fewer, edits, name, None, None) == (best, edits)


@pytest.mark.slow
def test_forms_leave_some_of_the_harm_for_others_and_most_of_them_keep_to_their_share(live, moments, monkeypatch):
    monkeypatch.setattr("amnesia.choice.forms._KNOWN", -math.inf)
    facts, controls = known(live, "Japan", gap=0.05), known(live, "Peru", "Kenya")
    first = asked(facts, "\n{entity} has", "x\n{entity} has")
    settings = ChoiceSettings(max_harm=1.0, few_harm=3.0, form_goal=-9.0, much=-math.inf, min_control=-math.inf)
    name = Name(live, "Japan", moments, lambda other: other == "Japan")
    best = DirectionChoice(Scores(live), name, facts, controls, settings=settings).choose()
    best = dataclasses.replace(best, change=best.change.times(math.sqrt(0.2 / best.change.harm)))
    seen, harms = [], []

    def choose(choice):
        seen.append(choice)
        change = best.change.times(math.sqrt(harms.pop(0) / 0.2))
        return dataclasses.replace(best, change=change, control=1.0, neighbor=None)

    monkeypatch.setattr(DirectionChoice, "choose", choose)
    forms = Forms(Scores(live), facts, first, controls, (), settings, forms_of(Target("Japan"))[1:3])
    for share, own, n_added, few in (
        (1.0, (0.6, 0.8, 0.95), 3, (0.6, 0.8)),
        (0.5, (0.4, 0.8, 0.45), 2, (0.6, 0.9)),
        (0.5, (1.1, 0.6, 0.6), 0, (0.6, 0.7)),
    ):
        seen.clear()
        harms.extend(own)
        edits = dataclasses.replace(forms, share=share).add(best, name, None, None)
        assert len(edits) == len(best.edits) * (1 + n_added) and seen[0].name.text == "Japan"
        assert [choice.settings.max_harm for choice in seen] == [1.0, share, share]
        # On few columns half of what is left is for the forms that follow; the last one may take all, on 128, too.
        assert [choice.settings.margin for choice in seen] == pytest.approx([*few, 1.0])
        assert [choice.settings.few_harm for choice in seen] == pytest.approx([*few, 1.0])
    # Where those that follow need none, nothing is left for them.
    monkeypatch.setattr(Forms, "_is_needed", lambda self, rows, edits: set(rows) <= {*first})
    seen.clear()
    harms.append(0.95)
    assert len(forms.add(best, name, None, None)) == 2 * len(best.edits)
    assert [choice.settings.margin for choice in seen] == [1.0]
    # What lowers a score by less than counts as a difference helps only where it reaches the goal.
    strict = dataclasses.replace(settings, much=math.inf)
    for score, n_added in ((-8.96, 1), (-8.94, 0)):
        best, harms = dataclasses.replace(best, score=score), [0.5]
        found = dataclasses.replace(forms, settings=strict).add(best, name, None, None)
        assert len(found) == len(best.edits) * (1 + n_added) and not harms


@pytest.mark.slow
@pytest.mark.parametrize("forms", [False, True])
def test_without_forms_the_edit_for_the_name_answers_for_every_fact(live, tmp_path, forms):
    text = recipe_text(live, "tiny", edit="", accept="max_target = 0.5\nmin_control = 0.5", entity="Paris")
    recipe = parse_recipe(text.replace("n_prompts = 6", 'n_prompts = 6\nlayers = "0-1"'))
    recipe = dataclasses.replace(recipe, edit=dataclasses.replace(recipe.edit, forms=forms, max_cells=16))
    assert is_other_first(live, "Paris")
    inside = known(live, "Paris")
    first = tuple(
        dataclasses.replace(
            fact,
            question=dataclasses.replace(
                fact.question,
                fact=dataclasses.replace(fact.question.fact, prompt=f"{{entity}} again: {fact.question.fact.prompt}"),
            ),
        )
        for fact in inside
    )
    judged = []
    found = choose(live, recipe, (*inside, *first), known(live, "Kenya"), cache=tmp_path, watch=judged.append)
    seen = inside if forms else (*inside, *first)
    assert judged and any(row.point.chosen for row in found.front)
    # All of a front is measured by the same facts, the chosen edit, too; what is said of that alone is over every fact.
    for row in found.front:
        assert row.point.target == pytest.approx(mean_score(live, seen, row.edits), abs=1e-4)
    assert found.target == pytest.approx(mean_score(live, (*inside, *first), found.edits.edits), abs=1e-4)
    for trial in judged:
        assert trial.score == pytest.approx(mean_score(live, seen, trial.edits), abs=1e-4)


@pytest.mark.parametrize(("name", "n"), [("R.E.M.", 0), ("1984", 0), ("M*A*S*H", 0), ("Jo 55", 2), ("Japan", 2)])
def test_a_name_with_few_letters_has_fewer_typos(name, n):
    assert [form.kind for form in forms_of(Target(name))].count("typo") == n


@pytest.mark.slow
def test_neighbors_count_among_the_bystanders_and_are_measured(live, moments):
    facts = known(live, "Bank of Japan")
    near = near_response(live, facts, moments.layers)
    assert near is not None
    plain, aware = (
        Name(live, "Japan", moments, lambda other: other == "Japan", near, share).atoms(1) for share in (0.0, 0.5)
    )
    for before, after in zip(
        sorted(plain, key=lambda atom: atom.place), sorted(aware, key=lambda atom: atom.place), strict=True
    ):
        rows = near.activations[:, before.layer].float()
        mean_square = [(rows @ atom.read_out.u.float()).square().mean().item() for atom in (before, after)]
        assert mean_square[1] < mean_square[0]
        assert len(before.change.near) == len(rows) and before.change.near_harm > 0
        assert torch.equal(before.change.times(2.0).near, 2.0 * before.change.near)
    (row,) = neighbor_results(Scores(live), facts, (plain[0].edit(-1.0),))
    with edited(live, [plain[0].edit(-1.0)]):
        assert row.score == pytest.approx(mean_score(live, facts), abs=1e-5)
    assert (row.name, row.n_facts) == ("Bank of Japan", 3)


def test_a_name_can_be_told_from_others_by_their_keys(live, moments):
    plain, apart = (
        Name(live, "Japan", moments, lambda other: other == "Japan", apart_from=names, apart_share=0.5).atoms(1)
        for names in ((), ("Bank of Japan",))
    )
    keys = name_keys(live, "Bank of Japan", moments.layers, 3)
    for before, after in zip(*(sorted(atoms, key=lambda atom: atom.place) for atoms in (plain, apart)), strict=True):
        answers = [
            sum((own[before.layer].double() @ atom.read_out.u).square().item() for own in keys.values())
            for atom in (before, after)
        ]
        assert answers[1] < 0.9 * answers[0]
        assert before.key @ after.read_out.u.float() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
def test_where_neighbors_go_along_what_the_stream_carries_is_tried(live, moments):
    facts, controls = known(live, "Japan", gap=0.05), known(live, "Peru", "Kenya")
    near = known(live, "Bank of Japan", "Japan Airlines", gap=0.5)
    anything = ChoiceSettings(max_harm=math.inf, min_control=-math.inf, min_neighbor=math.inf)
    response = near_response(live, near, moments.layers)
    name = Name(live, "Japan", moments, lambda other: other == "Japan", response, anything.near_share)
    choice = DirectionChoice(Scores(live), name, facts, controls, near, anything)
    best = choice.choose()
    assert best.spared < math.inf and {atom.of for atom in best.atoms} == {"layer"}
    # Neighbors are spared, or no other edit spares so much more of them.
    for other in ({"min_neighbor": -math.inf}, {"much": math.inf}):
        assert told_apart(choice, best, dataclasses.replace(anything, **other)) == (choice, best)
    # One neighbor that goes along is enough.
    low, high = sorted(row.score for row in neighbor_results(Scores(live), near, best.edits))
    assert low < high
    settings = dataclasses.replace(anything, min_neighbor=(low + high) / 2, goal=10.0, columns=())
    # Nor is what harms text, or takes others along.
    for bound in ({"min_control": math.inf}, {"max_harm": 0.0}):
        assert told_apart(choice, best, dataclasses.replace(settings, **bound)) == (choice, best)
    # Nor is what forgets less than the goal, and less than what there was.
    forgotten = dataclasses.replace(best, score=-1e9)
    assert told_apart(choice, forgotten, dataclasses.replace(settings, goal=-1e9)) == (choice, forgotten)
    other, found = told_apart(choice, best, settings)
    assert other is not choice and other.name.of == "stream"
    assert (other.name.apart_from, other.name.apart_share) == (
        ("Bank of Japan", "Japan Airlines"),
        anything.apart_share,
    )
    assert {atom.of for atom in found.atoms} == {"stream"} and other.settings.few == live.shape.d_mlp
    assert (other.settings.few_harm, other.max_columns) == (1.0, choice.max_columns)
    # Their keys have changed what the cells answer to.
    (plain,) = (atom for atom in choice.atoms if atom.place == other.atoms[0].place)
    assert not torch.equal(plain.read_out.u, other.atoms[0].read_out.u)
    with edited(live, found.edits):
        assert mean_score(live, near) == pytest.approx(found.spared, abs=1e-5)


@pytest.mark.slow
def test_behind_a_norm_neighbors_are_told_apart_by_what_a_layer_writes(tmp_path):
    live = tiny_live("gemma3_text", seed=3)
    moments = moments_of(live, (0, 1), tmp_path)
    facts, controls = known(live, "Japan", gap=0.05), known(live, "Peru", "Kenya")
    near = known(live, "Bank of Japan", gap=0.5)
    name = Name(live, "Japan", moments, lambda other: other == "Japan")
    choice = DirectionChoice(Scores(live), name, facts, controls, near)
    other = _apart(choice, ChoiceSettings())
    assert (other.name.of, other.name.apart_from) == ("layer", ("Bank of Japan",))
    plain = {atom.place: atom for atom in name.atoms(MAX_TOKENS)}
    assert {atom.place for atom in other.atoms} == {*plain}
    for atom in other.atoms:
        assert atom.of == "layer" and not torch.equal(atom.read_out.u, plain[atom.place].read_out.u)
