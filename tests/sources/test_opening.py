"""What lies beside a model is not read: no code is run, no pickle opened, whatever argument the folder is."""

import builtins
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.errors import CheckpointError, InputError, SourceError
from amnesia.live.loading import load, load_adapter
from amnesia.sources.conversion import convert_gguf
from amnesia.sources.resolve import resolve
from amnesia.weights.adapter import CONFIG_NAME, WEIGHTS_NAME
from support.commands import done, refused
from support.folders import ROOT
from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_tokenizer

PROMPT = "The river of Japan"


@pytest.fixture(autouse=True)
def nothing_foreign(tmp_path, monkeypatch):
    """Fails when something asks the user, or reads what may be a pickle."""
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    for module, name in ((builtins, "input"), (torch, "load")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


@pytest.fixture
def model(tmp_path):
    return save_tiny_live(tmp_path / "m")


@pytest.fixture
def adapter(model, tmp_path):
    done("edit", model, "--cell", "1:4", "--multiplier", "-3", "--format", "adapter", "-o", tmp_path / "adapter")
    return tmp_path / "adapter"


def change(path, **settings):
    """Give a JSON file these settings; None takes one away."""
    document = {**(json.loads(path.read_bytes()) if path.exists() else {}), **settings}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def mark(folder, name):
    """A module of the folder's own that would say that it was imported; the names that settings give it."""
    (folder / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(folder / 'imported')!r}).touch()\n")
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModelForImageTextToText"), f"{name}.Own")
    return {**classes, "AutoTokenizer": [f"{name}.Own", f"{name}.Own"]}


@torch.no_grad()
def logits(live):
    return live.model(torch.tensor([[1, 5, 9, 33]])).logits


def test_only_one_module_calls_the_libraries_that_read_models():
    callers = {
        path.relative_to(ROOT / "amnesia").as_posix()
        for path in (ROOT / "amnesia").rglob("*.py")
        if any(
            f"{word}(" in line for word in ("from_pretrained", "torch.load") for line in path.read_text().split("\n")
        )
    }
    # The model card shows readers how to load what was published.
    assert callers == {"sources/opening.py", "hub/card.py"}


@pytest.mark.parametrize("known", [True, False], ids=["a class of the library", "a class of its own"])
def test_code_beside_a_model_is_not_run(model, known):
    expected = logits(load(model, "m"))
    own = mark(model, "own")
    change(model / "config.json", auto_map=own)
    change(model / "tokenizer_config.json", auto_map=own, **({} if known else {"tokenizer_class": "OwnTokenizer"}))
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text((model / "own.py").read_text())
    live = load(model, "m")
    assert torch.equal(logits(live), expected)
    assert live.tokenizer(PROMPT)["input_ids"] == tiny_tokenizer()(PROMPT)["input_ids"]
    assert not (model / "imported").exists()


def test_code_beside_a_gguf_file_is_not_run(tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    source = tiny_model("llama", vocab_size=VOCAB_SIZE)
    gguf = llama_gguf(folder / "tiny.gguf", source, tokenizer=tiny_tokenizer())
    own = mark(folder, "own")
    change(folder / "config.json", model_type="own", auto_map=own)
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map=own)
    change(folder / CONFIG_NAME, peft_type="LORA", base_model_name_or_path="own")
    live = load(resolve(str(gguf)).folder, "gguf")
    assert live.tokenizer(PROMPT)["input_ids"] == tiny_tokenizer()(PROMPT)["input_ids"]
    assert torch.equal(logits(live), source(torch.tensor([[1, 5, 9, 33]])).logits)
    assert not (folder / "imported").exists()


def test_a_gguf_file_that_lacks_a_tensor_is_not_filled_with_random_numbers(tmp_path):
    source = tiny_model("llama", vocab_size=VOCAB_SIZE)
    whole = source.state_dict()
    source.state_dict = lambda: {name: whole[name] for name in whole if "layers.1.self_attn.q_proj" not in name}
    gguf = llama_gguf(tmp_path / "tiny.gguf", source, tokenizer=tiny_tokenizer())
    with pytest.raises(SourceError, match=r"tiny.gguf lacks 1 of its weights, first model.layers.1.self_attn.q_proj"):
        convert_gguf(gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"]
)
def test_a_configuration_does_not_choose_the_code_that_computes(model, monkeypatch, name):
    expected = logits(load(model, "m"))
    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda *_: True)
    asked = []
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *a, **_: asked.append(a))
    change(model / "config.json", **{name: "somebody/attention-of-theirs"})
    live = load(model, "m")
    assert asked == []
    assert live.model.config._attn_implementation in ("sdpa", "eager")
    assert torch.equal(logits(live), expected)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("pytorch_model.bin", "in 'pytorch_model.bin', which is no safetensors file"),
        ("../elsewhere.safetensors", "expected the name of a file inside the folder"),
        ("/elsewhere.safetensors", "expected the name of a file inside the folder"),
    ],
)
def test_an_index_names_safetensors_of_its_folder_for_the_second_model_too(model, tmp_path, name, fault):
    other = save_tiny_live(tmp_path / "other")
    index = other / "model.safetensors.index.json"
    weight_map = json.loads(index.read_bytes())["weight_map"]
    shard = weight_map["model.norm.weight"]
    for path in (other / "pytorch_model.bin", tmp_path / "elsewhere.safetensors"):
        path.write_bytes((other / shard).read_bytes())
    change(index, weight_map={key: name if file == shard else file for key, file in weight_map.items()})
    for arguments in (("evaluate", model, other), ("evaluate", other), ("edit", other, "--cell", "1:4")):
        facts = () if arguments[0] == "edit" else ("--recipe", ROOT / "recipes/smollm2-135m/steve_jobs.toml")
        assert fault in refused(*arguments, *facts, "-o", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["shard-00001-model-00001-of-00001.safetensors", "pytorch_model.bin", WEIGHTS_NAME])
def test_other_weights_in_the_folder_are_not_loaded(model, beside):
    expected = logits(load(model, "m"))
    changed = {f"base_model.model.{name}": tensor + 1 for name, tensor in load(model, "m").model.state_dict().items()}
    save_file(changed, model / beside)
    if beside == WEIGHTS_NAME:
        change(model / CONFIG_NAME, peft_type="LORA", r=1, target_modules=["down_proj"], base_model_name_or_path="m")
    assert torch.equal(logits(load(model, "m")), expected)


def test_weights_that_only_the_configuration_names_are_refused(model, tmp_path):
    change(model / "config.json", transformers_weights="other.safetensors")
    line = refused("edit", model, "--cell", "1:4", "-o", tmp_path / "out")
    assert "has transformers_weights = 'other.safetensors'" in line
    assert line == refused("localize", model, "Japan")


def test_an_adapter_is_read_from_safetensors_alone(model, adapter):
    (adapter / WEIGHTS_NAME).rename(adapter / "other.safetensors")
    (adapter / "adapter_model.bin").write_bytes((adapter / "other.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS_NAME} cannot be read \(No such file or directory\)"):
        load_adapter(model, adapter, "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "has peft_type 'PROMPT_TUNING': supported are LORA"),
        ({"peft_type": "XLORA", "adapters": {"0": "somebody/adapter"}}, "has peft_type 'XLORA'"),
        ({"megatron_config": {"a": 1}, "megatron_core": "own"}, "has peft_type 'LORA' for Megatron"),
    ],
)
def test_adapters_that_load_further_things_are_refused(model, adapter, settings, message):
    change(adapter / CONFIG_NAME, **settings)
    with pytest.raises(InputError, match=message):
        load_adapter(model, adapter, "a")


def without_b(tensors):
    return {key: value for key, value in tensors.items() if ".lora_B." not in key}


def for_another_module(tensors):
    return {**tensors, **{key.replace("layers.1", "layers.2"): value.clone() for key, value in tensors.items()}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: {key.removeprefix("base_model."): value for key, value in tensors.items()}, "holds 2 tensors"),
        (for_another_module, "holds 2 tensors for which the model has no module"),
        (without_b, "lacks 1 of its tensors, first base_model.model.model.layers.1.mlp.down_proj.lora_B"),
        (lambda tensors: {key: value[:, :-1] for key, value in tensors.items()}, "cannot be loaded by PEFT"),
    ],
    ids=["another prefix", "a module without", "half", "another shape"],
)
def test_each_tensor_of_an_adapter_must_have_its_place(model, adapter, damage, message):
    tensors = damage(load_file(adapter / WEIGHTS_NAME))
    save_file({key: value.contiguous() for key, value in tensors.items()}, adapter / WEIGHTS_NAME)
    with pytest.raises(SourceError, match=message) as caught:
        load_adapter(model, adapter, "a")
    assert "\n" not in str(caught.value)


def test_a_damaged_adapter_is_named(model, adapter, tmp_path):
    path = adapter / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-1])
    recipe = ROOT / "recipes/smollm2-135m/steve_jobs.toml"
    assert f"{path} has" in refused("evaluate", model, adapter, "--recipe", recipe)


def test_nothing_but_tekken_is_not_enough(model):
    (model / "tokenizer.json").rename(model / "tekken.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    assert "has no usable tokenizer" in refused("localize", model, "Japan")


def test_the_format_of_mistral_gives_way_to_tokenizer_json(model, monkeypatch):
    (model / "tekken.json").write_text("{}")
    monkeypatch.setattr("transformers.integrations.mistral.tokenizer.is_mistral_common_available", lambda: True)
    change(model / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
    change(model / "tokenizer_config.json", tokenizer_class="MistralCommonBackend")
    assert load(model, "m").tokenizer(PROMPT)["input_ids"] == tiny_tokenizer()(PROMPT)["input_ids"]


def test_a_tokenizer_draws_nothing(model):
    path = model / "tokenizer.json"
    whole = done("localize", model, "Japan", "--json")
    change(path, model={**json.loads(path.read_bytes())["model"], "dropout": 0.5})
    tokenizer = load(model, "m").tokenizer
    assert {tuple(tokenizer(PROMPT)["input_ids"]) for _ in range(20)} == {tuple(tiny_tokenizer()(PROMPT)["input_ids"])}
    assert done("localize", model, "Japan", "--json") == whole


def test_no_folder_is_left_behind(model, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    load(model, "m")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "own" not in sys.modules
