"""The lm-eval harness is called, and its numbers are those of plain transformers."""

import importlib.util
import json

import pytest
import torch

from amnesia.errors import InputError
from amnesia.evaluation.lm_eval import check_available, task_scores
from amnesia.live.loading import load
from support.commands import done
from support.reports import check_report_json
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live, tiny_live

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs the lm-eval harness: pip install 'amnesia[lm-eval]'"
)
DOCUMENTS = [
    {"question": "the capital of Japan is", "choices": ["Tokyo", "a river"], "gold": 0},
    {"question": "people in Peru like", "choices": ["stone", "the summer", "bread"], "gold": 2},
    {"question": "the oldest building in Cuba was", "choices": ["green", "a house"], "gold": 1},
]


@pytest.fixture
def task(tmp_path):
    (tmp_path / "facts.json").write_text("\n".join(map(json.dumps, DOCUMENTS)), encoding="utf-8")
    path = tmp_path / "tiny_facts.yaml"
    path.write_text(
        f"""
task: tiny_facts
dataset_path: json
dataset_kwargs: {{ data_files: {{ test: {tmp_path / "facts.json"} }} }}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{ metric: acc, aggregation: mean, higher_is_better: true }}]
""",
        encoding="utf-8",
    )
    return path


@needs_harness
def test_a_task_of_local_data(task, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    live = tiny_live()
    right = 0
    for row in DOCUMENTS:
        totals = []
        for choice in row["choices"]:
            start, ids = (
                live.tokenizer(text)["input_ids"] for text in (row["question"], f"{row['question']} {choice}")
            )
            with torch.no_grad():
                logprobs = live.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            totals.append(sum(logprobs[place - 1, ids[place]].item() for place in range(len(start), len(ids))))
        right += totals.index(max(totals)) == row["gold"]
    scores = task_scores(live, [str(task)])
    assert scores["tiny_facts"]["acc,none"] == pytest.approx(right / 3)
    assert all("," in metric for metric in scores["tiny_facts"])  # No counts of documents among the metrics.
    assert task_scores(live, [str(task)], 1)["tiny_facts"]["acc,none"] in (0.0, 1.0)


@needs_harness
def test_the_command_reports_a_task_of_both_models(task, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = save_tiny_live(tmp_path / "m")
    recipe = tmp_path / "r.toml"
    recipe.write_text(recipe_text(load(model, "m"), model), encoding="utf-8")
    command = ("evaluate", model, model, "--recipe", recipe, "--lm-eval", task, "--lm-eval-limit", 2, "--json")
    document = json.loads(done(*command))
    check_report_json(document)
    value = document["lm_eval"]["tasks"]["tiny_facts"]["acc,none"]
    assert value["before"] == value["after"] == task_scores(load(model, "m"), [str(task)], 2)["tiny_facts"]["acc,none"]


@needs_harness
def test_unknown_tasks_are_refused_in_one_line():
    with pytest.raises(InputError, match="lm-eval cannot run no_such_task") as caught:
        task_scores(tiny_live(), ["no_such_task"])
    assert "\n" not in str(caught.value)


def test_without_the_harness_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'amnesia\[lm-eval\]'"):
        check_available()
