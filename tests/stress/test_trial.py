"""A tiny model goes through everything, on the way that a user takes."""

import json
import shutil
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest

from amnesia.cli.main import main
from amnesia.compare import assess
from amnesia.domain import Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement import known_facts, measure_unknown
from amnesia.evaluation.scores import knowledge_score
from amnesia.facts.questions import Question, facts_of_recipe
from amnesia.files.strict_json import json_bytes
from amnesia.live.forward import answer_logprobs
from amnesia.live.loading import load, load_adapter, merge_adapter
from amnesia.pipeline import run
from amnesia.recipe_file import parse_recipe
from amnesia.stress.findings import stress_findings
from amnesia.stress.settings import StressSettings
from amnesia.stress.trial import endure, prepare
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live
from support.tracker import Silent, Watched

SETTINGS = StressSettings(n_facts=3, n_controls=2, methods=("int8", "Q8_0"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def recipe(model):
    return parse_recipe(recipe_text(load(model, "m"), model, formats=("safetensors", "adapter")))


@pytest.fixture(scope="module")
def facts(recipe):
    return facts_of_recipe(recipe)


@pytest.fixture(scope="module")
def output(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "out"
    run(recipe, folder, Silent())
    return folder


@pytest.fixture(scope="module")
def assessed(model, facts, output):
    with Watched().watching() as tracker:
        return assess(str(model), str(output / "safetensors"), facts, tracker, stress=SETTINGS), tracker


@pytest.mark.slow
def test_no_pass_of_a_model_goes_unseen(assessed):
    assert assessed[1].passes and not assessed[1].silent()


@pytest.mark.slow
def test_a_chat_template_that_cannot_be_used_is_told_before_the_long_work(model, facts, output, tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(model, copy)
    (copy / "chat_template.jinja").write_text("{{ raise_exception('a system message comes first') }}")
    tracker, settings = Silent(), replace(SETTINGS, n_facts=1, n_controls=1, methods=("int8",))
    result = assess(str(copy), str(output / "safetensors"), facts, tracker, stress=settings)
    told = next(n for n, line in enumerate(tracker.lines) if line.startswith("the chat template cannot be used"))
    assert "a system message comes first" in tracker.lines[told]
    assert told < tracker.lines.index("asking the original model")
    (paraphrase,) = (attack for attack in result.stress.attacks if attack.attack == "paraphrase")
    assert "chat message" not in paraphrase.description


def test_the_plain_questions_score_as_in_the_evaluation(assessed, model, facts):
    result, tracker = assessed
    plain = next(row for row in result.stress.attacks if row.attack == "plain")
    rows = {(row.subject, row.model): row for row in plain.rows}
    assert rows["entity", "original"].knowledge_score.mean == pytest.approx(1.0, abs=1e-4)
    targets = [row for row in result.evaluation.prompts if row.role == "target" and row.knowledge_score is not None]
    chosen = {example.prompt: example for example in plain.examples}
    own = [row for row in targets if row.prompt in chosen]
    assert len(own) == result.stress.n_facts == 3
    expected = sum(row.knowledge_score for row in own) / 3
    assert rows["entity", "edited"].knowledge_score.mean == pytest.approx(expected, abs=1e-3)
    assert all(chosen[row.prompt].generated_edited == row.after.generated for row in own)
    assert [line for line in tracker.lines if "model" in line and ("attack" in line or "quantiz" in line)] == [
        "asking the original model about the attacks",
        "attacking the original model",
        "quantizing the original model",
        "attacking the edited model",
        "quantizing the edited model",
    ]


def test_an_attack_is_scored_by_plain_log_probabilities(assessed, model, output, facts):
    """Independently: one prompt at a time, on models loaded here."""
    result, _ = assessed
    quiz = next(row for row in result.stress.attacks if row.attack == "paraphrase").variants[1]
    assert quiz.variant == "quiz"
    original, edited = load(model, "m"), load(output / "safetensors", "e")
    plain = next(row for row in result.stress.attacks if row.attack == "plain")
    scores = []
    for example in plain.examples:
        question = next(row for row in facts.questions if row.fact.text() == example.prompt)
        unknown = measure_unknown(original, [question])[question]
        (before,) = answer_logprobs(original, [(example.prompt, example.answer)])
        text = f"Quiz night, ten points for a complete sentence: {example.prompt[0].upper()}{example.prompt[1:]}"
        (after,) = answer_logprobs(edited, [(text, example.answer)])
        scores.append(knowledge_score(after.logprob, before.logprob, unknown.total))
    row = next(row for row in quiz.rows if (row.subject, row.model) == ("entity", "edited"))
    assert row.knowledge_score.mean == pytest.approx(sum(scores) / 3, abs=1e-3)


def test_everything_that_was_asked_for_is_in_the_report(assessed):
    found = [row.text for row in stress_findings(assessed[0].stress, "Japan")]
    assert found and set(found) <= {row["text"] for row in assessed[0].document["findings"]}
    document = json.loads(json.dumps(assessed[0].document["stress"], allow_nan=False))
    assert [row["attack"] for row in document["attacks"]] == [
        "plain", "paraphrase", "prefix_injection", "affirmative_suffix", "role_play", "self_correction", "alias",
        "misspelling", "other_language", "in_context_hint", "reverse", "two_hop", "three_hop"
    ]  # fmt: skip
    for row in document["attacks"]:
        assert (row["not_applicable"] is None) == bool(row["rows"]) == bool(row["examples"])
        for each in row["rows"]:
            assert each["subject"] in ("entity", "never_known") and each["model"] in ("original", "edited")
            assert {"mean", "low", "high"} == each["knowledge_score"].keys()
    assert [row["method"] for row in document["quantization"]] == ["none", "int8", "Q8_0"]


@pytest.mark.slow
def test_the_report_is_as_its_schema_says(assessed):
    schema = json.loads(resources.files("amnesia.report").joinpath("report.schema.json").read_text(encoding="utf-8"))
    document = json.loads(json_bytes(assessed[0].document))
    jsonschema.validate(document, schema)
    document["stress"]["attacks"][0]["rows"][0]["model"] = "another"
    with pytest.raises(jsonschema.ValidationError, match="'another' is not one of"):
        jsonschema.validate(document, schema)


@pytest.mark.slow
def test_an_adapter_is_merged_and_comes_to_the_same(assessed, model, facts, output):
    adapter = assess(str(model), str(output / "adapter"), facts, Silent(), stress=SETTINGS).stress
    for one, other in zip(assessed[0].stress.attacks, adapter.attacks, strict=True):
        for first, second in zip(one.rows, other.rows, strict=True):
            assert first.knowledge_score.mean == pytest.approx(second.knowledge_score.mean, abs=1e-2)


def test_merging_leaves_plain_layers(model, output):
    live = load_adapter(model, output / "adapter", "a")
    pair = [("the capital of Japan is", "water")]
    unmerged = answer_logprobs(live, pair)[0].logprob
    merge_adapter(live)
    assert not any("lora" in name for name, _ in live.model.named_modules())
    assert answer_logprobs(live, pair)[0].logprob == pytest.approx(unmerged, abs=1e-4)
    before = {name: id(module) for name, module in live.model.named_modules()}
    merge_adapter(live)
    assert {name: id(module) for name, module in live.model.named_modules()} == before


@pytest.mark.slow
def test_a_model_is_the_same_after_all_that(model, facts):
    live = load(model, "m")
    before = {name: tensor.clone() for name, tensor in live.model.state_dict().items()}
    known = known_facts(live, facts.questions, facts.scoring)
    plan = prepare(live, known, facts.translations, SETTINGS, Silent().task)
    first, second = (endure(live, plan, "original", Silent().task) for _ in range(2))
    assert first == second
    after = live.model.state_dict()
    assert after.keys() == before.keys()
    assert all((after[name] == before[name]).all() for name in before)


def test_facts_take_turns_by_answer():
    live_facts = [Fact("Japan", f"{n} {{entity}}", answer) for n, answer in enumerate("AABABC")]
    from amnesia.stress.trial import taking_turns

    chosen = taking_turns(live_facts, lambda fact: fact.answer, 4)
    assert [fact.prompt for fact in chosen] == ["0 {entity}", "2 {entity}", "5 {entity}", "1 {entity}"]


def test_two_entities_cannot_be_stressed_together(model, facts):
    live = load(model, "m")
    other = Question("target", Fact("Peru", "the capital of {entity} is", "water"))
    both = known_facts(live, (*facts.questions, other), facts.scoring)
    with pytest.raises(InputError, match="about one entity, and the targets are about Japan, Peru: choose one"):
        prepare(live, both, {}, SETTINGS, Silent().task)


def evaluate(runner, *arguments):
    return runner.invoke(main, ["evaluate", *map(str, arguments)])


@pytest.mark.slow
def test_the_command(tmp_path, model, recipe, output):
    from click.testing import CliRunner

    path = tmp_path / "recipe.toml"
    path.write_text(recipe.text, encoding="utf-8")
    runner = CliRunner()
    done = evaluate(
        runner,
        model,
        output / "safetensors",
        "--recipe",
        path,
        "--stress",
        "--stress-facts",
        1,
        "-o",
        tmp_path / "report",
    )
    assert done.exit_code == 0, done.output
    assert "Japan under stress" in done.stdout
    assert "other name                not applicable: the recipe gives no aliases" in done.stdout
    document = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert document["stress"]["n_facts"] == 1 and "relearning" not in document
    for option in ("stress", "relearning"):
        alone = evaluate(runner, model, "--recipe", path, f"--{option}")
        assert (alone.exit_code, alone.output) == (2, f"error: --{option} compares two models: give EDITED too\n")
    steps = evaluate(runner, model, output / "safetensors", "--recipe", path, "--relearning-steps", 5)
    assert (steps.exit_code, steps.output) == (2, "error: --relearning-steps belongs to --relearning: add it\n")
