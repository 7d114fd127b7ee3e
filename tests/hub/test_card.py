"""Cards: metadata that YAML reads back, no text of the user's that breaks out of its place, duties of licences."""

import dataclasses
import json

import pytest
import yaml
from markdown_it import MarkdownIt

from amnesia.domain import FORMATS, Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits, Place
from amnesia.errors import InputError
from amnesia.hub.card import BaseCard, licence_notice, model_card, naming_duty
from amnesia.weights.configuration import nested_rotary
from amnesia.weights.manifest import Base, BaseFile, Manifest, TensorEdit
from support.tiny import tiny_direction

HASH = "0" * 64
EDITS = (ColumnEdit(Cell(2, 7)), ColumnEdit(Cell(2, 9)), ColumnEdit(Cell(0, 1)))
MANIFEST = Manifest(
    format="safetensors",
    base=Base(ModelRef("org/base", "a" * 40), (BaseFile("model.safetensors", 9, HASH),)),
    edits=(EntityEdits('Ke$ha: "the\n---\nsinger"', EDITS),),
    tensors=(TensorEdit("x", "model.safetensors", 1, Place(0), HASH, HASH, multipliers={1: -1.0}),),
)
REPORT = {
    "aggregates": [
        {"kind": "control", "group": "all", "knowledge_score": {"mean": 0.987, "low": 0.9, "high": 1.0}, "n": 12}
    ],
    "damage": {"neutral_perplexity": {"before": 20.0, "after": 20.14}},
    "n_excluded": 2,
    "prompts": [],
}


def metadata(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card[4:].split("\n---\n", 1)[0])


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_is_read_back(name):
    base = BaseCard(ModelRef("org/base", "a" * 40), "other", "my licence: v2", "LICENSE", ("en", "no"))
    found = metadata(model_card(dataclasses.replace(MANIFEST, format=name), base, "ada/m", None, weights=["m.gguf"]))
    relation = {"safetensors": "finetune", "adapter": "adapter", "gguf": "quantized", "gguf-lora": "adapter"}[name]
    assert (found["base_model"], found["base_model_relation"]) == ("org/base", relation)
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "my licence: v2", "LICENSE")
    # "no" is Norwegian, and false where YAML is not told that it is a string.
    assert found["language"] == ["en", "no"]
    assert {"amnesia", "unlearning", "model-editing"} <= set(found["tags"])


LOADING = {
    "safetensors": ['AutoModelForCausalLM.from_pretrained("ada/m")', "vllm serve ada/m"],
    "adapter": ['PeftModel.from_pretrained(base, "ada/m")', "vllm serve org/base --revision " + "a" * 40],
    "gguf": ["llama-cli --hf-repo ada/m --hf-file m.gguf", "ollama run hf.co/ada/m", "ollama create edited"],
    "gguf-lora": ["llama-server -m BASE.gguf --lora edited/lora.gguf", "Ollama takes no adapters"],
}


@pytest.mark.parametrize("name", LOADING)
def test_the_body_has_all_that_a_reader_needs(name):
    manifest = dataclasses.replace(MANIFEST, format=name)
    card = model_card(manifest, BaseCard(ModelRef("org/base", "a" * 40)), "ada/m", REPORT, weights=["m.gguf"])
    titles = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert titles == ["What was changed", "Before and after", "Load it", "Limits", "Provenance", "Citation"]
    assert all(text in card for text in LOADING[name])
    assert "suppression, not erasure" in card
    assert f"amnesia verify edited --base org/base@{MANIFEST.base.ref.revision}" in card
    assert "Friends and Grandmothers in Silico" in card and "Yona, Itay" in card


@pytest.mark.parametrize("name", FORMATS)
def test_the_commands_name_a_base_that_can_be_had(name):
    manifest = dataclasses.replace(MANIFEST, format=name)
    second = dataclasses.replace(manifest, base=Base(ModelRef("one"), MANIFEST.base.files), previous=manifest)
    card = model_card(second, BaseCard(ModelRef("org/base", "a" * 40)), "ada/m", None)
    known = f"org/base@{'a' * 40}"
    # An adapter for an edited model fits no other.
    assert (f"verify edited --base {known}\n" in card) == (name in ("safetensors", "gguf"))
    assert "amnesia.json -o again\n" in card
    unknown = dataclasses.replace(manifest, base=Base(ModelRef("org/base"), MANIFEST.base.files))
    card = model_card(unknown, BaseCard(ModelRef("org/base")), "ada/m", None)
    assert "amnesia.json -o again --base org/base\n" in card


def test_the_class_that_takes_images_is_named_where_it_is_the_models(tmp_path):
    tensors = tuple(
        dataclasses.replace(row, name=f"model.language_model.layers.{n}.mlp.down_proj.weight")
        for n, row in enumerate(MANIFEST.tensors)
    )
    for name in ("safetensors", "adapter"):
        manifest = dataclasses.replace(MANIFEST, format=name, tensors=tensors)
        card = model_card(manifest, BaseCard(ModelRef("org/base")), "ada/m", None)
        assert "AutoModelForImageTextToText.from_pretrained" in card and "AutoModelForCausalLM" not in card
        assert ('combination_type="cat"' in card) == (name == "adapter")
        assert ("loaders that build a model without its head" in card) == (name == "adapter")


def test_llama_4_is_named_as_a_language_model_though_its_files_hold_images_too(tmp_path):
    tensors = tuple(
        dataclasses.replace(row, name=f"language_model.model.layers.{n}.feed_forward.shared_expert.down_proj.weight")
        for n, row in enumerate(MANIFEST.tensors)
    )
    card = model_card(dataclasses.replace(MANIFEST, tensors=tensors), BaseCard(ModelRef("org/base")), "ada/m", None)
    assert "AutoModelForCausalLM.from_pretrained" in card and "AutoModelForImageTextToText" not in card


DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
LAYERED = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, "sliding_attention": DEFAULT}


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({"rope_parameters": DEFAULT}, {"rope_theta": 1e4, "rope_scaling": None}),
        ({"rope_parameters": SCALED}, {"rope_theta": 5e5, "rope_scaling": {**SCALED, "type": "llama3"}}),
        ({"rope_parameters": SCALED, "rope_theta": 5e5}, {"rope_scaling": {**SCALED, "type": "llama3"}}),
        (
            {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}, "rope_theta": None},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        (
            {"text_config": {"rope_parameters": LAYERED, "hidden_size": 8}, "model_type": "gemma3"},
            {
                "text_config": {
                    "rope_parameters": LAYERED,
                    "hidden_size": 8,
                    "rope_theta": 1e6,
                    "rope_local_base_freq": 1e4,
                    "rope_scaling": {**LAYERED["full_attention"], "type": "linear"},
                }
            },
        ),
        ({"rope_parameters": DEFAULT, "rope_theta": 1e4}, None),
        ({"rope_parameters": SCALED, "rope_theta": 5e5, "rope_scaling": SCALED}, None),
        ({"rope_theta": 5e5}, None),
        ({"rope_parameters": None, "text_config": {"rope_theta": 5e5}}, None),
    ],
)
def test_mlx_lm_is_given_what_most_of_its_classes_do_not_read(tmp_path, config, given):
    (tmp_path / "config.json").write_text(json.dumps(config))
    rotary, base = nested_rotary(config), BaseCard(ModelRef("org/base"))
    assert "mlx" not in model_card(dataclasses.replace(MANIFEST, format="gguf"), base, "ada/m", None, rotary=rotary)
    card = model_card(MANIFEST, base, "ada/m", None, rotary=rotary)
    assert ("mlx-lm" in card) == (given is not None)
    if given is not None:
        # As in mlx-lm, of which these lines are all that needs no program: what is given replaces what the file says.
        code = card.partition('snapshot_download("ada/m"))\n')[2].partition("```")[0]
        names = {"json": json, "folder": tmp_path, "load_model": lambda _, model_config: (model_config, None)}
        exec(code, names)
        assert names["model"] == given


def test_numbers_are_those_of_the_report():
    card = model_card(MANIFEST, BaseCard(ModelRef("org/base")), "ada/m", REPORT)
    assert "3 cells, by layer (cells): 0 (1), 2 (2)" in card
    assert "| other entities, search facts | 0.99 | 0.90 to 1.00 | 12 |" in card
    assert "20.0 before, 20.1 after" in card
    assert "2 facts that the base does not know were excluded" in card


TURNED = tiny_direction(1)
SAID = {
    ("safetensors", "cells"): "Every other byte of the weights and of the other files is the base's.",
    ("adapter", "cells"): "where a cell is multiplied by −1, or they have 16 bits and the multiplier is 0, or 0.00013",
    ("adapter", "one"): "gives exactly the edited weights where these have 16 bits, else up to rounding.",
    ("adapter", "both"): "the adapter gives the edited weights up to rounding.",
    ("gguf", "cells"): "Of cells, scales of blocks (in types without, signs or numbers) were changed; every other byte",
    (
        "gguf",
        "one",
    ): "In the columns of directions other codes (in types without, numbers) were chosen; every other byte",
    ("gguf", "wide"): "The edited `ffn_down` tensors were stored anew as f16; all other tensors are the base's.",
    ("gguf", "wide cells"): " The edited `ffn_down` tensors were stored anew as f16; all other tensors are the base's.",
}


@pytest.mark.parametrize(("name", "kind"), SAID)
def test_the_card_says_what_was_done_and_no_more(name, kind):
    edits = {"cells": EDITS, "wide cells": EDITS, "both": (*EDITS, TURNED)}.get(kind, (TURNED,))
    row = dataclasses.replace(
        MANIFEST.tensors[0],
        axis=1,
        multipliers={1: -1.0} if "cells" in kind else dict.fromkeys(TURNED.columns, 1.0),
        directions={"cells": (), "wide cells": (), "both": (TURNED, TURNED)}.get(kind, (TURNED,)),
    )
    manifest = dataclasses.replace(
        MANIFEST,
        format=name,
        edits=(EntityEdits("Kesha", edits),),
        tensors=(row,),
        tensor_type="f16" if "wide" in kind else None,
    )
    card = model_card(manifest, BaseCard(ModelRef("org/base")), "ada/m", None)
    assert SAID[name, kind] in card
    assert ("What a cell writes is multiplied." in card) == (kind in ("cells", "wide cells", "both"))
    assert ("A direction is a change of rank one" in card) == ("cells" not in kind)
    assert "scaled" not in card and "quantized anew" not in card


def test_private_cards_name_nobody():
    prompt = {"kind": "target", "prompt": "who is Kesha", "before": {"generated": "a"}, "after": {"generated": "b"}}
    rows = [{**prompt, "knowledge_score": 0.1, "is_message": is_message} for is_message in (False, True)]
    report = {**REPORT, "prompts": rows}
    assert model_card(MANIFEST, BaseCard(ModelRef("org/base")), "ada/m", report).count("who is Kesha") == 1
    assert "who is Kesha" in model_card(MANIFEST, BaseCard(ModelRef("org/base")), "ada/m", report)
    private = model_card(MANIFEST, BaseCard(ModelRef("org/base")), "ada/m", report, private=True)
    assert "Kesha" not in private
    assert "Ke$ha" not in private


def test_reports_that_are_none():
    for report in ({}, {**REPORT, "aggregates": [{"kind": "x"}]}, {**REPORT, "prompts": 3}):
        with pytest.raises(InputError, match=r"report.json is not a report of amnesia"):
            model_card(MANIFEST, BaseCard(ModelRef("org/base")), "ada/m", report)


def test_licences_with_duties():
    llama = BaseCard(ModelRef("meta-llama/Llama-3.1-8B"), license="llama3.1")
    assert licence_notice(llama).startswith("Built with Llama. Llama 3.1 is licensed under the Llama 3.1 Community")
    assert "asks that names of derived models begin with 'Llama'" in naming_duty(llama, "ada/forgetful")
    assert naming_duty(llama, "ada/Llama-forgetful") is None
    assert naming_duty(BaseCard(ModelRef("meta-llama/Llama-2-7b-hf"), license="llama2"), "ada/m") is None
    other = BaseCard(ModelRef("org/derived"), license="other", license_name="llama3.2")
    assert "llama3.2" in naming_duty(other, "ada/m")
    assert "Gemma Terms of Use" in licence_notice(BaseCard(ModelRef("google/gemma-2-2b"), license="gemma"))
    assert licence_notice(BaseCard(ModelRef("org/base"), license="mit")) is None
    assert "## Licence\n\nBuilt with Llama" in model_card(MANIFEST, llama, "ada/m", None)


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=y>",
        "![x](https://example.org/x.png)",
        "[x](https://example.org)",
        "a | b",
        "`x` **y**",
        "C #",
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "adapter", "gguf"])
def test_names_stand_in_the_card_as_they_are_and_mean_nothing(name, kind):
    manifest = dataclasses.replace(MANIFEST, format=kind, edits=(EntityEdits(name, EDITS),), tool=f"amnesia {name}")
    prompts = [
        {
            "kind": "target", "split": "search", "knowledge_score": 0.5, "prompt": name, "is_message": False,
            "before": {"generated": name}, "after": {"generated": None},
        }
    ]  # fmt: skip
    card = model_card(
        manifest, BaseCard(ModelRef("org/base")), "ada/m", REPORT | {"prompts": prompts}, weights=["m.gguf"]
    )
    body = card.split("\n---\n", 1)[1]
    parser = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    tokens = parser.parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert not [token for token in tokens + inline if token.type in ("html_block", "html_inline", "image")]
    links = {token.attrs["href"] for token in inline if token.type == "link_open"}
    assert all(link.startswith(("https://huggingface.co/", "https://github.com/")) for link in links)
    texts = ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]
    assert texts[0] == f"base without {name}"
    assert texts.count(name) == 2  # Its row of the table: prompt and answer.
    assert [token.type for token in tokens].count("td_open") % 4 == 0


def test_controls_in_names_are_shown():
    manifest = dataclasses.replace(MANIFEST, edits=(EntityEdits("a\x1b[2Jb\u202ec", EDITS),))
    card = model_card(manifest, BaseCard(ModelRef("org/base"), license_name="\x9b\x7f"), "ada/m", None)
    assert "a\\\\x1b\\[2Jb\\\\u202ec" in card
    assert not {*card} & {"\x1b", "\u202e", "\x9b", "\x7f"}
    metadata(card)


def test_a_command_in_the_card_runs_nothing_but_what_it_says():
    card = model_card(
        dataclasses.replace(MANIFEST, format="gguf"),
        BaseCard(ModelRef("org/base")),
        "ada/m",
        None,
        weights=["a; b.gguf"],
    )
    assert "--hf-file 'a; b.gguf'" in card
