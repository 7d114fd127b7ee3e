from dataclasses import replace

import pytest
import torch

from amnesia.choice.known import select_known
from amnesia.domain import Answer, Cell, Fact
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError
from amnesia.evaluation.comparison import compare
from amnesia.evaluation.damage import impression, impression_after
from amnesia.evaluation.examination import conclude, examine, examine_after, texts_in
from amnesia.evaluation.findings import findings
from amnesia.evaluation.measurement import KnownFact, Unknown, written
from amnesia.evaluation.results import AnswerSummary, Damage, Estimate, LanguageScore
from amnesia.facts.questions import Question, questions_of
from amnesia.live.forward import generate
from amnesia.live.model import edited
from amnesia.recipe import Accept, Scoring
from amnesia.recipe_file import parse_recipe
from support.tiny_recipe import recipe_text, unknown_fact
from support.tiny_text import tiny_live

TARGET = Question("target", Fact("Japan", "the capital of {entity} is", "Tokyo"))
HELD_OUT = Question("target", Fact("Japan", "people in {entity} speak", "Japanese", "held_out"))
CONTROL = Question("control", Fact("Italy", "the capital of {entity} is", "Rome"))
DAMAGE = Damage(20.0, 21.0, (), None)
KINDS = [(role, split) for role in ("target", "control") for split in ("search", "held_out")]


def known(question, answer, unknown, scoring=None):
    """A question with the original's answer, and the log-probability for an unknown entity, of which half is first."""
    return KnownFact(question, answer, Unknown(unknown, unknown / 2), scoring or Scoring())


def answer(total, rank=0):
    return Answer(total, total / 2, rank)


def test_scores_and_aggregates_by_hand():
    evaluation = compare(
        [
            known(TARGET, written(answer(-1.0), TARGET.fact, "Tokyo"), -5.0),
            known(HELD_OUT, written(answer(-2.0), HELD_OUT.fact, "Japanese"), -6.0),
            known(CONTROL, written(answer(-2.0), CONTROL.fact, "Rome"), -4.0),
        ],
        [
            written(answer(-5.0), TARGET.fact, "Paris"),
            written(answer(-4.0), HELD_OUT.fact, "English"),
            written(answer(-1.9), CONTROL.fact, "Rome"),
        ],
        DAMAGE,
    )
    assert [row.knowledge_score for row in evaluation.prompts] == pytest.approx([0.0, 0.5, 1.05])
    assert [row.knowledge_score_first for row in evaluation.prompts] == pytest.approx([0.0, 0.5, 1.05])
    assert evaluation.mean("target") == 0.0
    assert evaluation.mean("target", "held_out") == 0.5
    assert evaluation.mean("control", "held_out") is None
    with pytest.raises(InputError, match="there is no role 'targets': choose one of target, control"):
        evaluation.mean("targets")
    with pytest.raises(InputError, match="there is no split 'heldout': choose one of search, held_out"):
        evaluation.mean("target", "heldout")
    assert evaluation.accepted(Accept(max_target=0.0, max_held_out_target=0.5, min_control=1.0))
    assert not evaluation.accepted(Accept(max_target=0.2, max_held_out_target=0.4, min_control=0.95))
    assert not evaluation.accepted(Accept(max_target=0.2, max_held_out_target=0.5, min_control=1.1))
    assert (evaluation.prompts[0].before.generated, evaluation.prompts[0].after.generated) == ("Tokyo", "Paris")


def test_a_bound_on_perplexity_counts_the_languages_in_which_the_original_is_fluent():
    languages = (
        LanguageScore("en", 90, 500, 20.0, 21.0, 1.0, 1.02, True),
        LanguageScore("de", 90, 500, 80.0, 120.0, 2.0, 2.2, False),
    )
    facts = [known(TARGET, answer(-1.0), -5.0), known(CONTROL, answer(-2.0), -4.0)]
    evaluation = compare(facts, [answer(-5.0), answer(-2.0)], replace(DAMAGE, languages=languages))
    assert evaluation.accepted(Accept(max_perplexity=1.05)) and not evaluation.accepted(Accept(max_perplexity=1.04))
    fluent = tuple(replace(row, fluent=True) for row in languages)
    evaluation = compare(facts, [answer(-5.0), answer(-2.0)], replace(DAMAGE, languages=fluent))
    assert evaluation.accepted(Accept(max_perplexity=1.5)) and not evaluation.accepted(Accept(max_perplexity=1.4))


def test_bounds_hold_where_only_held_out_targets_are_known():
    facts = [known(TARGET, answer(-5.0), -5.0), known(HELD_OUT, answer(-1.0), -5.0), known(CONTROL, answer(-2.0), -4.0)]
    evaluation = compare(facts, [answer(-5.0), answer(-6.0), answer(-2.0)], DAMAGE)
    assert evaluation.mean("target") is None and evaluation.mean("target", "held_out") == -0.25
    assert evaluation.accepted(Accept()) and not evaluation.accepted(Accept(min_control=1.1))
    others = replace(evaluation, aggregates=tuple(row for row in evaluation.aggregates if row.role == "control"))
    assert not others.accepted(Accept())


def test_a_fact_without_a_gain_is_not_known_whatever_the_bound():
    scoring = Scoring(min_nats=0.0)
    facts = [known(row, answer(-1.0), total, scoring) for row, total in ((TARGET, -1.0), (HELD_OUT, -1.5))]
    none, some = compare(facts, [answer(-1.0), answer(-1.5)], DAMAGE).prompts
    assert none.excluded == "not known: the answer is 0.00 nats above an unknown entity, needed are more than 0"
    assert (none.knowledge_score, some.knowledge_score) == (None, 0.0)


def test_messages_are_reported_apart():
    message, spared = replace(TARGET, is_message=True), replace(CONTROL, is_message=True)
    facts = [known(row, answer(-1.0), -5.0) for row in (TARGET, message, CONTROL, spared)]
    evaluation = compare(facts, [answer(-5.0), answer(-3.0), answer(-1.0), answer(-3.0)], DAMAGE)
    means = {(row.role, row.group): row.knowledge_score.mean for row in evaluation.aggregates}
    assert means == {
        ("target", "all"): 0.0,
        ("target", "form:message"): 0.5,
        ("control", "all"): 1.0,
        ("control", "form:message"): 0.5,
    }
    assert [row.is_message for row in evaluation.prompts] == [False, True, False, True]
    said = {row.level: row.text for row in findings(evaluation, "Japan") if "messages" in row.text}
    assert said == {
        "warning": "Japan is less forgotten when the model is asked in messages: 0.50 as messages, 0.00 as text.",
        "damage": "Facts about others are damaged when the model is asked in messages: 0.50 as messages, 1.00 as text.",
    }


def test_facts_that_were_never_known_are_counted_and_not_scored():
    scoring = Scoring(min_nats=1.0, max_rank=10)
    evaluation = compare(
        [
            known(TARGET, answer(-1.0), -5.0, scoring),
            known(TARGET, answer(-1.0), -1.5, scoring),
            known(HELD_OUT, answer(-2.0, rank=50), -6.0, scoring),
            known(CONTROL, answer(-2.0), -4.0, scoring),
        ],
        [answer(-3.0), answer(-9.0), answer(-9.0), answer(-2.0)],
        DAMAGE,
    )
    target, control = evaluation.aggregates
    assert (target.role, target.split, target.n, target.n_excluded) == ("target", "search", 1, 1)
    assert target.knowledge_score.mean == 0.5
    assert (control.role, control.n, control.n_excluded) == ("control", 1, 0)
    assert evaluation.prompts[1].excluded == "not known: the answer is 0.50 nats above an unknown entity, needed are 1"
    assert evaluation.prompts[2].excluded == "not known: the answer has rank 50, allowed is 10"
    assert evaluation.prompts[1].knowledge_score is None
    assert evaluation.mean("target", "held_out") is None


def test_no_known_target_is_an_error():
    facts = [known(TARGET, answer(-5.0), -5.0), known(CONTROL, answer(-2.0), -4.0)]
    with pytest.raises(InputError, match="knows none of the 1 target facts about 'Japan'"):
        compare(facts, [fact.before for fact in facts], DAMAGE)


def test_every_aggregate_by_hand():
    """Four controls in two neighborhoods, of which one was never known."""
    facts = [
        Question("control", Fact(name, "the capital of {entity} is", answer), (), "capital", label, near)
        for name, answer, label, near in (
            ("Italy", "Rome", "quarter 4", "same_relation"),
            ("Spain", "Madrid", "quarter 4", "same_relation"),
            ("Cuba", "Havana", "quarter 1", "related"),
            ("Peru", "Lima", "quarter 1", "related"),
        )
    ]
    before = (
        (Answer(-1.0, -0.5, 0), "Tokyo", -5.0),
        (Answer(-1, -1, 0), " Rome, of course", -5.0),
        (Answer(-2, -1, 2), "the madrid", -6.0),
        (Answer(-1, -1, 4), "Havana.", -5.0),
        (Answer(-9, -9, 900), "Lima", -9.0),
    )
    after = (
        (Answer(-5.0, -2.5, 0), "Paris"),
        (Answer(-1, -1, 0), "Rome"),
        (Answer(-4, -3, 8), "..."),
        (Answer(-3, -2, 10), "I don't know"),
        (Answer(-9, -9, 9), "Lima"),
    )
    asked = [TARGET, *facts]
    evaluation = compare(
        [
            known(question, written(each, question.fact, text), unknown)
            for question, (each, text, unknown) in zip(asked, before, strict=True)
        ],
        [written(each, question.fact, text) for question, (each, text) in zip(asked, after, strict=True)],
        DAMAGE,
        {"the capital of Italy is": 0.25},
    )
    by_group = {row.group: row for row in evaluation.aggregates if row.role == "control"}
    assert list(by_group) == [
        "all", "neighborhood:related", "neighborhood:same_relation", "popularity:quarter 1", "popularity:quarter 4",
        "relation:capital",
    ]  # fmt: skip
    whole = by_group["all"]
    assert (whole.n, whole.n_excluded) == (3, 1)
    # Scores 1, (−4 + 6) / (−2 + 6) = 0.5 and (−3 + 5) / (−1 + 5) = 0.5.
    assert whole.knowledge_score.mean == pytest.approx(2 / 3)
    # First tokens, of which an unknown name is worth half as much: 1, (−3 + 3) / (−1 + 3) = 0, (−2 + 2.5) / 1.5 = 1/3.
    assert whole.knowledge_score_first.mean == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert whole.before == AnswerSummary(Estimate(1, 1, 1), 2, 0, 0)
    assert whole.exact_match_change.mean == pytest.approx(-2 / 3)
    assert (whole.after.exact_match.mean, whole.after.rank) == (pytest.approx(1 / 3), 8)
    assert (whole.after.n_empty, whole.after.n_refused) == (1, 1)
    related = by_group["neighborhood:related"]
    assert (related.n, related.n_excluded, related.knowledge_score) == (1, 1, Estimate(0.5, 0.5, 0.5))
    assert [row.kl for row in evaluation.prompts] == [None, 0.25, None, None, None]
    assert [row.after.reply for row in evaluation.prompts] == ["answer", "answer", "empty", "refusal", "answer"]


def test_without_an_edited_model_everything_is_as_it_is():
    evaluation = compare([known(TARGET, answer(-1.0), -5.0), known(CONTROL, answer(-2.0), -4.0)], None, DAMAGE)
    assert evaluation.alone
    assert all(row.before == row.after for row in evaluation.prompts)
    assert {row.knowledge_score for row in evaluation.aggregates} == {Estimate(1.0, 1.0, 1.0)}


def test_what_a_reading_shows_of_a_model_is_what_it_writes():
    live = tiny_live()
    prompts = ["the capital of Peru is", "people in Kenya like", "winter", "the river was", "Tokyo is a city"]
    before = impression(live, prompts)
    own = texts_in(live, before)
    assert own == dict(zip(prompts, generate(live, prompts), strict=True))
    with edited(live, [ColumnEdit(Cell(0, 3), 0.5)]):
        after = impression_after(live, before)
        seen, written = texts_in(live, after), dict(zip(prompts, generate(live, prompts), strict=True))
    assert seen == {prompt: text for prompt, text in written.items() if text == own[prompt]}
    assert 0 < len(seen) < len(prompts)


def test_of_equally_likely_tokens_a_model_writes_the_first():
    live, other, prompt = tiny_live(), tiny_live(), "the capital of Peru is"
    before = impression(live, [prompt])
    token = before.continued.rows[0].ids[-before.continued.rows[0].n_answer]
    head = other.model.get_output_embeddings().weight
    with torch.no_grad():
        head[token - 1] = head[token]
    after = impression_after(other, before)
    assert after.continued.n_likeliest == (0,)
    assert texts_in(other, after) == {} and generate(other, [prompt]) != generate(live, [prompt])


def test_in_16_bits_what_a_reading_shows_is_written_all_the_same():
    live, prompts = tiny_live(), ["the capital of Peru is", "winter"]
    live.model.to(torch.bfloat16)
    before = impression(live, prompts)
    after = impression_after(live, before)
    assert texts_in(live, before) == dict(zip(prompts, generate(live, prompts), strict=True))
    assert after.continued.n_likeliest == (0, 0) and texts_in(live, after) == {}


@pytest.mark.slow
def test_a_model_writes_only_where_the_original_knows_the_fact():
    live = tiny_live()
    recipe = parse_recipe(recipe_text(live, "tiny", extra=unknown_fact(live)))
    before = examine(live, questions_of(recipe), recipe.scoring)
    after = examine_after(live, before)
    assert {bool(fact.excluded) for fact in before.facts} == {True, False}
    for fact, answer in zip(before.facts, after.answers, strict=True):
        assert (fact.before.generated is None) == (fact.before.reply is None) == bool(fact.excluded)
        assert answer == fact.before
    scores = [row.knowledge_score for row in conclude(before, after).prompts]
    assert scores == [None if fact.excluded else 1.0 for fact in before.facts]


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>{% endif %}\n{% endif %}"
)


@pytest.mark.slow
def test_a_chat_model_is_asked_in_messages_without_thinking():
    live = tiny_live()
    recipe = parse_recipe(recipe_text(live, "m"))
    plain = examine(live, questions_of(recipe), recipe.scoring)
    live.tokenizer.chat_template = TEMPLATE
    asked = examine(live, questions_of(recipe), recipe.scoring)
    n = len(plain.facts)
    assert [fact.question for fact in asked.facts[:n]] == [fact.question for fact in plain.facts]
    assert asked.impression.prompts == plain.impression.prompts
    messages = asked.facts[n:]
    assert all(fact.question.is_message for fact in messages)
    counts = [sum((f.question.role, f.question.split) == kind for f in messages) for kind in KINDS]
    whole = [sum((f.question.role, f.question.split) == kind for f in plain.facts) for kind in KINDS]
    assert counts == [(number + 1) // 2 for number in whole] and all(counts)
    assert messages[0].prompt == (
        "<s>[user] Complete this sentence: The capital of Japan is ...\n[assistant]<think>\n\n</think>The capital of Japan is"
    )
    evaluation = conclude(asked, examine_after(live, asked))
    assert [row.n + row.n_excluded for row in evaluation.aggregates if row.group == "form:message"] == counts
    # The choice is shown what the search may see, in both forms.
    for facts, role in zip(select_known(asked.facts), ("target", "control"), strict=True):
        kinds = {(fact.question.role, fact.question.split, fact.question.is_message) for fact in facts}
        assert kinds == {(role, "search", False), (role, "search", True)}
