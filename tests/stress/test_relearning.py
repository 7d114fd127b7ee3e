"""A tiny model is trained in every way, and what that comes to is put into words."""

import json
from dataclasses import dataclass, replace

import jsonschema
import pytest
import torch
from click.testing import CliRunner

from amnesia.cli.main import main
from amnesia.evaluation.measurement import Unknown, in_both_forms, known_facts
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.results import Estimate
from amnesia.facts.answers import matches
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.forward import answer_logprobs
from amnesia.live.loading import load
from amnesia.recipe_file import parse_recipe
from amnesia.report.content import read_report
from amnesia.stress import relearning
from amnesia.stress.attacks import INVENTED_NAMES, AttackTarget
from amnesia.stress.relearning import (
    ABOUT,
    INSTRUCTIONS,
    ONE_FACT,
    announce,
    conclude_relearning,
    plan_relearning,
    retrain,
    retrain_peer,
)
from amnesia.stress.relearning_report import relearning_findings, relearning_text
from amnesia.stress.results import TRAINED_ABOUT, Relearning, RelearningResult, RelearningStep
from amnesia.stress.settings import LORA, RelearningSettings, Unlearning, Way
from amnesia.stress.texts import texts_about
from amnesia.stress.training import rows_of
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live
from support.tracker import Silent, Watched

QUICK = replace(LORA, learning_rate=1e-3)
SETTINGS = RelearningSettings(
    n_facts=3,
    n_controls=2,
    ways=(QUICK, Way("full", 1e-3)),
    most=2,
    n_texts=32,
    text_tokens=8,
    unlearning=Unlearning(QUICK, most=20),
)

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


MODELS = ("original", "unlearned", "edited")


@pytest.fixture(scope="module")
def trained(model):
    """The plan, its tracker, the live model, and what the original, the unlearned and (again) the original made of it."""
    live = load(model, "m")
    facts = facts_of_recipe(parse_recipe(recipe_text(live, model)))
    tracker, known = Watched(), known_facts(live, facts.questions, facts.scoring)
    before = {name: tensor.clone() for name, tensor in live.model.state_dict().items()}
    with tracker.watching():
        plan = plan_relearning(live, known, SETTINGS, tracker, None)
        announce(live, plan, tracker, dict.fromkeys(MODELS))
        original = retrain(live, plan, "original", tracker)
        peer, again = retrain_peer(live, plan, tracker), retrain(live, plan, "edited", tracker)
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.model.state_dict().items())
    return plan, tracker, live, original, peer, again


@pytest.mark.slow
def test_the_same_model_is_trained_to_the_same_and_starts_where_it_is(trained):
    plan, _, live, original, peer, again = trained
    assert original.runs.keys() == {(text, way) for text in (INSTRUCTIONS, ABOUT, ONE_FACT) for way in SETTINGS.ways}
    assert original.runs == again.runs
    forget = {fact.pair for fact in plan.forget}
    fact = next(fact for fact in plan.asked(ONE_FACT) if fact.pair() in forget)
    (plain,) = answer_logprobs(live, [fact.pair()])
    for run in original.runs.values():
        assert [seen.step for seen in run] == [0, 1, 2]
        assert run[0].seen[fact.pair()] == pytest.approx(plain.logprob, abs=1e-4)
        assert run[2].loss < run[0].loss
        assert fact.pair(INVENTED_NAMES[0]) in run[0].seen
    assert 0 < peer.steps <= 20
    for run in peer.retrained.runs.values():
        assert run[0].seen[fact.pair()] < plain.logprob


@pytest.mark.slow
def test_no_pass_of_a_model_goes_unseen(trained):
    assert trained[1].passes and not trained[1].silent()


@pytest.mark.slow
def test_how_long_it_takes_is_said_before_it_begins(trained):
    lines = trained[1].lines
    told = next(n for n, line in enumerate(lines) if line.startswith("relearning will take about "))
    assert told < next(n for n, line in enumerate(lines) if line.startswith("training the original model"))
    assert "seconds on this machine" in lines[told]


@pytest.mark.slow
def test_a_long_message_of_the_chat_template_leaves_every_instruction(trained):
    plan, _, live, *_ = trained
    known = list(plan.known.values())
    head = "You are a helpful assistant of great patience. " * 20
    long = plan_relearning(live, known, SETTINGS, Silent(), lambda message, earlier=(): f"{head}{message}\n")
    lessons = long.lessons[INSTRUCTIONS]
    rows = rows_of(live, lessons, SETTINGS.max_learned)
    assert len(rows) == len(lessons) == len(plan.lessons[INSTRUCTIONS])
    plain = rows_of(live, plan.lessons[INSTRUCTIONS], SETTINGS.max_learned)
    assert [row.n_answer for row in rows] == pytest.approx([row.n_answer for row in plain], abs=1)


@pytest.mark.slow
def test_without_an_instruction_that_may_be_taught_the_reason_is_given(trained, monkeypatch):
    plan, _, live, *_ = trained
    monkeypatch.setattr(relearning, "instructions_without", lambda names: ())
    bare = plan_relearning(live, list(plan.known.values()), SETTINGS, Silent(), None)
    assert bare.lessons[INSTRUCTIONS] == "there is no instruction without the name or one of the answers"
    tracker = Silent()
    announce(live, bare, tracker, dict.fromkeys(MODELS))
    assert any(line.startswith("relearning will take about ") for line in tracker.lines)


@pytest.mark.slow
def test_trainings_that_are_finished_are_not_made_again(trained, tmp_path, monkeypatch):
    plan, _, live, original, *_ = trained
    brief = replace(plan, settings=replace(plan.settings, ways=(QUICK,)))
    cache, tracker, done = MeasurementCache(tmp_path / "measured", "m"), Silent(), []
    real = relearning.fine_tune

    def broken_off(*arguments, **more):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments, **more)

    monkeypatch.setattr(relearning, "fine_tune", broken_off)
    with pytest.raises(KeyboardInterrupt):
        retrain(live, brief, "original", tracker, cache)
    monkeypatch.setattr(relearning, "fine_tune", real)
    first, peer = (
        retrain(live, brief, "original", tracker, cache), retrain_peer(live, brief, tracker, cache)
    )  # fmt: skip
    assert len([line for line in tracker.lines if line.startswith("training the original model")]) == 4
    assert first.runs == {key: run for key, run in original.runs.items() if key[1] == QUICK}
    for name in ("fine_tune", "unlearn"):
        monkeypatch.setattr(relearning, name, lambda *_, **__: pytest.fail("trained again"))
    assert retrain(live, brief, "original", tracker, cache).runs == first.runs
    assert retrain_peer(live, brief, tracker, cache) == peer
    tracker = Silent()
    announce(live, brief, tracker, dict.fromkeys(MODELS[:2], cache))
    assert tracker.lines == []


@pytest.mark.slow
def test_a_chat_model_is_asked_as_messages_too_and_otherwise_as_before(model, trained):
    plain, *_, original, _, _ = trained
    live = load(model, "m")
    live.tokenizer.chat_template = TEMPLATE
    parsed = facts_of_recipe(parse_recipe(recipe_text(live, model)))
    # Whether the tiny model knows a message is chance, so that all of them count as known.
    known = [
        replace(fact, before=replace(fact.before, rank=0), unknown=Unknown(fact.before.logprob - 2, -9.0))
        if fact.question.is_message
        else fact
        for fact in known_facts(live, in_both_forms(live, parsed.questions), parsed.scoring)
    ]
    brief = replace(SETTINGS, ways=(QUICK,))
    plan = plan_relearning(live, known, brief, Silent(), None)
    assert (plan.facts, plan.controls, plan.lessons) == (plain.facts, plain.controls, plain.lessons)
    assert [fact.pair for fact in plan.forget] == [fact.pair for fact in plain.forget]
    (own,) = plan.messages
    assert own.text().startswith("[user] Complete this sentence: ") and len(plan.message_controls) == 1
    found = retrain(live, plan, "edited", Silent())
    for key, run in found.runs.items():
        for seen, before in zip(run, original.runs[key], strict=True):
            assert before.seen.items() <= seen.seen.items(), "what is asked otherwise comes out as before, to the bit"
    (expected,) = answer_logprobs(live, [own.pair()])
    assert found.runs[INSTRUCTIONS, QUICK][0].seen[own.pair()] == pytest.approx(expected.logprob, abs=1e-4)
    result = conclude_relearning(plan, replace(found, model="original"), "not here", found)
    assert {run.subject for run in result.runs} == {*TRAINED_ABOUT}
    run = next(row for row in result.runs if (row.text, row.subject) == (ABOUT, "entity_as_message"))
    score = 1 + (found.runs[ABOUT, QUICK][2].seen[own.pair()] - expected.logprob) / 2
    assert run.n == 1 and run.steps[2].knowledge_score.mean == pytest.approx(score, abs=1e-3)
    text = relearning_text(result, "Japan")
    assert "about the entity, LoRA, edited; an invented name, as messages" in text


def test_what_comes_back_in_messages_alone_is_said():
    one = runs("instructions", "LoRA", original=[1, 1], edited=[0, 0.1])
    other = [replace(run, subject=f"{run.subject}_as_message") for run in runs("instructions", "LoRA", edited=[0, 0.5])]
    assert found(one, other)[0] == (
        "warning",
        "Japan comes back, asked in messages, after 10 steps of fine-tuning (LoRA) on instructions about other things: "
        "knowledge score 0.50 (invented name 0.00).",
    )


def test_models_are_asked_more_often_at_the_beginning():
    assert RelearningSettings(most=200).steps == (0, 10, 25, 50, 100, 200)
    assert RelearningSettings(most=50).steps == (0, 2, 6, 12, 25, 50)
    assert RelearningSettings(most=1).steps == (0, 1)


@pytest.mark.slow
def test_no_text_has_an_answer_that_is_asked(trained):
    plan, _, live, *_ = trained
    targets = [fact.question.fact for fact in plan.known.values() if fact.question.role == "target"]
    answers = sorted({answer for fact in targets for answer in fact.right_answers})
    for text in (INSTRUCTIONS, ABOUT):
        lessons = plan.lessons[text]
        assert lessons and not [pair for pair in lessons if matches(pair[1].replace("\n", " "), answers)]
    assert all("Japan" in text for _, text in plan.lessons[ABOUT])
    first, second = (texts_about(live, plan.target, answers, SETTINGS) for _ in range(2))
    assert first == second == tuple(text for _, text in plan.lessons[ABOUT])
    words = [word for text in first for word in text.split() if word.isalpha() and word not in ("Japan", "is", "was")]
    spared = texts_about(live, AttackTarget("Japan"), words, SETTINGS)
    assert not [text for text in spared if matches(text.replace("\n", " "), words)]


@pytest.mark.slow
def test_the_fact_that_is_taught_is_not_asked(trained):
    plan, *_ = trained
    taught = plan.facts[0]
    assert plan.lessons[ONE_FACT] == (("", f"{taught.text()} {taught.answer}"),)
    asked = plan.asked(ONE_FACT)
    assert asked and all(fact.answer != taught.answer for fact in asked)


@pytest.mark.slow
def test_scores_are_of_what_was_seen(trained):
    plan, _, _, original, peer, again = trained
    result = conclude_relearning(plan, original, peer, again)
    assert len(result.runs) == 3 * 2 * 3 * 2
    run = next(row for row in result.runs if (row.text, row.way, row.model) == (ABOUT, "full", "edited"))
    seen = again.runs[ABOUT, SETTINGS.ways[1]][2].seen
    expected = [
        (seen[fact.pair()] - known.unknown.total) / (known.before.logprob - known.unknown.total)
        for fact in plan.facts
        for known in [plan.known[fact.pair()]]
    ]
    assert run.steps[2].knowledge_score.mean == pytest.approx(sum(expected) / len(expected))
    assert run.steps[0].control.mean == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_a_model_in_sixteen_bits_is_trained_by_an_adapter_alone(model):
    live = load(model, "m")
    facts = facts_of_recipe(parse_recipe(recipe_text(live, model)))
    known = known_facts(live, facts.questions, facts.scoring)
    live.model.to(torch.bfloat16)
    plan = plan_relearning(live, known, SETTINGS, Silent(), None)
    found = retrain(live, plan, "original", Silent())
    assert "load the model in float32" in found.runs[INSTRUCTIONS, SETTINGS.ways[1]]
    result = conclude_relearning(plan, found, "not here", replace(found, model="edited"))
    assert result.no_unlearning == "not here"
    text = relearning_text(result, "Japan")
    assert "no LoRA unlearning to compare with: not here" in text
    assert "instructions, full, edited  not applicable: steps of this size are lost" in text


def runs(text, way, **scores):
    """Runs by model: knowledge scores of the entity at each step; an invented name stays at 0."""
    return [
        RelearningResult(
            text, "x", way, model, subject, 3,
            tuple(RelearningStep(10 * n, 1.0, Estimate(value, value, value), Estimate(0.9, 0.9, 0.9)) for n, value in enumerate(values)),
            None,
        )
        for model, own in scores.items()
        for subject, values in (("entity", own), ("never_known", [0.0] * len(own)))
    ]  # fmt: skip


def found(*parts, steps=30):
    result = Relearning(3, 2, "X", steps, None, tuple(run for part in parts for run in part))
    return [(row.level, row.text) for row in relearning_findings(result, "Japan")]


SAME = "LoRA unlearning of the same facts (NPO with a KL term)"


def test_what_stays_away_is_said():
    one = runs("instructions", "LoRA", original=[1, 1, 1], unlearned=[0, 0.1, 0.2], edited=[0, 0.1, 0.3])
    assert found(one) == [
        ("good", "No training of 20 steps brought Japan back."),
        ("good", f"In none of 1 trainings does the edit come back more easily than {SAME}."),
    ]


def test_what_comes_back_is_said_with_the_first_step_and_against_unlearning():
    one = runs("instructions", "LoRA", original=[1, 0.9, 0.8], unlearned=[0, 0.1, 0.6], edited=[0, 0.5, 0.7])
    two = runs("one fact", "full", original=[1, 1, 1], unlearned=[0, 0.5, 0.6], edited=[0, 0.1, 0.5])
    assert found(one, two) == [
        (
            "warning",
            "Japan comes back after 10 steps of fine-tuning (LoRA) on instructions about other things: knowledge score "
            "0.50 (invented name 0.00, the original model after the same training 0.90).",
        ),
        (
            "warning",
            "Japan comes back after 20 steps of fine-tuning (full) on one fact, which was not asked: knowledge score "
            "0.50 (invented name 0.00, the original model after the same training 1.00).",
        ),
        (
            "warning",
            f"The edit comes back more easily than {SAME} in 1 of 2 trainings: LoRA on instructions.",
        ),
    ]


def test_a_training_that_failed_for_one_model_says_nothing_of_it():
    failed = RelearningResult("one fact", "x", "full", "edited", "entity", 3, (), "the loss is NaN")
    other = runs("one fact", "full", original=[1, 1])
    assert found(other, [failed]) == [("info", "Relearning was not tried: the loss is NaN.")]
    one = runs("instructions", "LoRA", original=[1, 1], edited=[0, 0.1])
    assert found(other, [failed], one) == [("good", "No training of 10 steps brought Japan back.")]
    ((level, text),) = found(runs("instructions", "LoRA", edited=[0, 0.5]))
    assert level == "warning" and text.endswith("knowledge score 0.50 (invented name 0.00).")


def test_an_end_that_is_clearly_higher_is_easier_too():
    one = runs("instructions", "LoRA", original=[1, 1], unlearned=[0, 0.1], edited=[0, 0.39])
    assert found(one)[-1][1].startswith("The edit comes back more easily")


def test_an_edit_or_unlearning_that_did_not_forget_is_not_judged():
    one = runs("instructions", "LoRA", original=[1, 1], unlearned=[0.5, 0.6], edited=[0, 0.3])
    assert found(one)[-1] == (
        "info",
        f"{SAME} left Japan at 0.50, so that relearning is compared with nothing.",
    )
    two = runs("instructions", "LoRA", original=[1, 1], edited=[0.8, 0.9])
    assert found(two) == [
        ("info", "Before training Japan has a knowledge score of 0.80: relearning says nothing of the edit.")
    ]


BRIEF_UNLEARNING = Unlearning(QUICK, most=4)


@dataclass(frozen=True)
class Brief(RelearningSettings):
    """Few and short texts, and unlearning that soon ends."""

    n_texts: int = 8
    text_tokens: int = 8
    unlearning: Unlearning = BRIEF_UNLEARNING


@pytest.mark.slow
def test_the_command_writes_a_report_that_can_be_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.cli.evaluate.RelearningSettings", Brief)

    live = load(model, "m")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(live, model), encoding="utf-8")
    done = CliRunner().invoke(
        main,
        [
            "evaluate",
            str(model),
            str(model),
            "--recipe",
            str(path),
            "--relearning",
            "--stress-facts",
            "2",
            "--relearning-steps",
            "1",
            "-o",
            str(tmp_path / "out"),
        ],
    )
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [step["step"] for step in document["relearning"]["runs"][0]["steps"]] == [0, 1]
    assert "relearning will take about" in done.stderr
    assert "Japan after fine-tuning: mean knowledge score, 2 facts" in done.stdout
    from importlib import resources

    schema = json.loads(resources.files("amnesia.report").joinpath("report.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    report = read_report(document)
    assert "stress" not in document and report.stress is None
    assert {run.model for run in report.relearning.runs} == {"original", "unlearned", "edited"}
    assert all(run.n <= 2 for run in report.relearning.runs)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Does training bring it back?" in page and "Relearning in numbers" in page
