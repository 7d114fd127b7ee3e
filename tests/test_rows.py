"""Every row of the table of architectures, with a tiny model: files, memory, adapter and plain transformers agree."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from amnesia.architectures import LAYOUTS, MlpLayout
from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import CheckpointError, LayoutError
from amnesia.evaluation.damage import read
from amnesia.facts.names import entity_templates
from amnesia.live import batches
from amnesia.live.batches import takes_trees
from amnesia.live.forward import answer_logprobs, generate, readout
from amnesia.live.interventions import Asked, varied_logprobs
from amnesia.live.loading import load, load_source
from amnesia.live.model import apply_edits, edited, wrap
from amnesia.live.tokens import continuations, encode, place
from amnesia.live.watching import activations
from amnesia.localization.cells import localize
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.write import save
from amnesia.sources.parts import AbsentError
from amnesia.sources.source import ModelSource
from oracles.plain import carries_state
from support.folders import tree
from support.listed import README, with_names
from support.made_up import MadeUpMlp
from support.tiny import N_EXPERTS, randomized, tiny_model
from support.tiny_text import VOCAB_SIZE, tiny_tokenizer

PAIRS = [
    ("Fact: the capital of Japan is", "Tokyo"),
    ("Where is it?\n", "in the garden behind the house"),
    ("She waited for the water to boil and then", "she left the kitchen"),
]


# Models of a row that are built otherwise: Gemma 4 26B has experts beside the MLP of each layer.
GEMMA_EXPERTS = {"enable_moe_block": True, "num_experts": N_EXPERTS, "top_k_experts": 2, "moe_intermediate_size": 16}
VARIANTS = {
    "gemma4_text with experts": ("gemma4_text", GEMMA_EXPERTS),
    "gemma4 with experts": ("gemma4", GEMMA_EXPERTS),
}


@pytest.fixture(scope="module", params=[*LAYOUTS, *VARIANTS])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    name, settings = VARIANTS.get(request.param, (request.param, {}))
    tiny_model(name, vocab_size=VOCAB_SIZE, **settings).save_pretrained(folder, max_shard_size="200KB")
    tiny_tokenizer().save_pretrained(folder)
    return ModelSource(folder, ModelRef("a/b"))


@pytest.fixture(scope="module")
def live(source):
    return load(source.folder, "tiny")


@pytest.fixture(scope="module")
def original(source):
    """The model as its users load it, for tests that leave it as it is."""
    return plain(source.folder)


@pytest.fixture(scope="module")
def saved(source, live, tmp_path_factory):
    """The edits of some cells, the folder that they made, and the model in it."""
    edits = tuple(ColumnEdit(cell, -3.0) for cell in some_cells(live.shape))
    folder = tmp_path_factory.mktemp("edited") / "out"
    save("safetensors", source, [EntityEdits("Paris", edits)], folder)
    return edits, folder, plain(folder)


def model_type(source):
    return source.checkpoint.shape.layout.model_type


def plain_class(folder):
    """The Auto class by which users load the model."""
    row = LAYOUTS.get(AutoConfig.from_pretrained(folder).model_type)
    return AutoModelForImageTextToText if row is not None and row.takes_images else AutoModelForCausalLM


def plain(folder):
    """The model as its users load it."""
    return plain_class(folder).from_pretrained(folder).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits[0].float()


def seen_alone(live, layers, ids):
    """What the projection of each layer is given for one text, (tokens, neurons of the layer)."""
    seen = []

    def keep(_, args):
        seen.append(args[0].reshape(len(ids), -1))

    handles = [live.out_proj(layer).register_forward_pre_hook(keep) for layer in layers]
    logits(live.model, ids)
    for handle in handles:
        handle.remove()
    return seen


def some_cells(shape):
    """Two cells in each of two layers, the last neuron of each among them, and one of an expert."""
    layers = (shape.plain_layers or (0,))[:: max(1, len(shape.plain_layers) - 1)]
    cells = [Cell(n, neuron) for n in layers if shape.width(n) for neuron in (3, shape.width(n) - 1)]
    mixed = [n for n in range(shape.n_layers) if shape.experts_in(n)]
    return cells + [Cell(n, shape.experts_in(n)[1] - 1, 2) for n in mixed[-1:]]


def test_files_and_memory_have_the_same_layers(source, live):
    on_disk, shape = source.checkpoint.shape, live.shape
    assert shape.prefix == LAYOUTS[model_type(source)].prefix == shape.layout.prefix
    assert (on_disk.plain, on_disk.n_experts, on_disk.d_model) == (shape.plain, shape.n_experts, shape.d_model)
    for layer in range(shape.n_layers):
        assert on_disk.experts_in(layer) == shape.experts_in(layer)
        if shape.experts_in(layer):
            assert shape.experts_in(layer)[0] == N_EXPERTS
        if shape.width(layer):
            # Whatever the orientation is called, the module maps neurons to the residual stream.
            assert live.out_proj(layer)(torch.zeros(1, shape.width(layer))).shape == (1, shape.d_model)
            assert live.out_weight(layer).shape == (shape.d_model, shape.d_mlp)
    assert shape.n_experts or len(shape.plain_layers) == shape.n_layers


def test_one_projection_of_each_layer_ends_what_mixes_tokens(source, live):
    for layer in range(live.shape.n_layers):
        if model_type(source) == "falcon_h1":
            with pytest.raises(LayoutError, match=r"has 2 of self_attn.o_proj, .*: expected one"):
                live.mixer(layer)
        else:
            weight = live.mixer(layer).weight
            assert live.shape.d_model in weight.shape


@pytest.mark.slow
def test_the_edited_files_are_the_model_edited_in_memory(source, live, original, saved, tmp_path):
    edits, folder, changed = saved
    assert prove(folder, source).n_cells == len(edits)
    ids = live.tokenizer(PAIRS[1][0] + PAIRS[1][1])["input_ids"]
    before, after = logits(live.model, ids), logits(changed, ids)
    assert (after - before).abs().max() > 1e-3 * before.std()
    in_memory = wrap(deepcopy(original), None)
    apply_edits(in_memory, edits)
    torch.testing.assert_close(logits(in_memory.model, ids), after, atol=1e-4 * before.std().item(), rtol=1e-5)
    routed = [edit for edit in edits if edit.cell.expert is not None]
    if routed:
        with pytest.raises(LayoutError, match="mixture of experts"), edited(live, routed):
            pass
    else:
        with edited(live, edits):
            torch.testing.assert_close(logits(live.model, ids), after, atol=1e-4 * before.std().item(), rtol=1e-5)
    take_back(folder, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source.folder)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_the_merged_adapter_is_the_edited_model(source, live, original, saved, tmp_path):
    edits, _, changed_files = saved
    if live.shape.n_experts:
        with pytest.raises(CheckpointError, match="mixture of experts"):
            save("adapter", source, [EntityEdits("Paris", edits)], tmp_path / "adapter")
        return
    save("adapter", source, [EntityEdits("Paris", edits)], tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(deepcopy(original), tmp_path / "adapter")
    changed = [name for name, module in adapted.base_model.model.named_modules() if hasattr(module, "lora_A")]
    assert sorted(changed) == sorted({live.shape.out_proj_path(cell.layer) for cell in some_cells(live.shape)})
    # Its README names the class that takes text.
    assert (
        f"Load the base as `{plain_class(source.folder).__name__}`" in (tmp_path / "adapter" / "README.md").read_text()
    )
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    # vLLM finds modules by their full path alone, in the class that takes images where there is one.
    takes_images = plain_class(source.folder) is AutoModelForImageTextToText
    assert all(("model.language_model.layers." in key) == takes_images for key in keys)
    merged = adapted.merge_and_unload().state_dict()
    expected, before = changed_files.state_dict(), original.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert sum(not torch.equal(before[name], expected[name]) for name in expected) == 2


def test_log_probabilities_are_those_of_plain_transformers(live, original):
    rows = continuations(live.tokenizer, PAIRS)
    reading = read(live, rows)
    for index, (row, found) in enumerate(zip(rows, answer_logprobs(live, PAIRS), strict=True)):
        logprobs = logits(original, row.ids).log_softmax(-1)
        places = range(len(row.ids) - row.n_answer, len(row.ids))
        expected = sum(logprobs[spot - 1, row.ids[spot]].item() for spot in places)
        assert found.logprob == pytest.approx(expected, abs=1e-3)
        assert reading.logprobs[index] == pytest.approx(expected, abs=1e-3)
    assert not isinstance(readout(live).head, torch.nn.Identity), "a head alone is enough for every row so far"


@pytest.mark.slow
def test_activations_are_those_of_one_prompt_at_a_time(live, original):
    assert takes_trees(live, 16) == (not carries_state(original.config))
    layers = live.shape.plain_layers
    if not layers:
        with pytest.raises(LayoutError, match="cells cannot be searched"):
            localize(live, "Japan", n_prompts=2)
        return
    rows = place(live.tokenizer, [(t, name) for t in entity_templates()[:3] for name in ("Japan", "Michael Jordan")])
    for indices, batch in activations(live, rows, layers):
        for line, index in enumerate(indices):
            alone = seen_alone(live, layers, rows[index].ids)
            for number, expected in enumerate(values[rows[index].token] for values in alone):
                assert (batch[line, number, : len(expected)] - expected).abs().max() <= 1e-3 * expected.abs().max()
                assert not batch[line, number, len(expected) :].any()


@pytest.mark.slow
def test_a_beginning_that_is_computed_once_changes_nothing_of_what_is_written(live, original, monkeypatch):
    prompts = [f"the river was long and {prompt}" for prompt, _ in PAIRS]
    apart = generate(live, prompts, 3)
    monkeypatch.setattr(batches, "_MIN_SHARED", 1)
    inputs = batches.from_shared(live, [item.ids for item in encode(live.tokenizer, prompts)], 3)
    assert bool(inputs) == (not carries_state(original.config))
    assert generate(live, prompts, 3) == apart


@pytest.mark.slow
def test_the_first_layers_alone_give_the_activations_of_the_whole_bit_for_bit(source, live):
    layers = tuple(layer for layer in live.shape.plain_layers if layer < 2)
    if not layers:
        with pytest.raises(LayoutError, match="cells cannot be searched"):
            load_source(replace(source, n_layers=2))
        return
    part = load_source(replace(source, n_layers=2))
    assert part.shape == live.shape and part.name == str(source)
    assert sum(weight.numel() for weight in part.model.parameters()) == sum(
        weight.numel() for name, weight in live.model.named_parameters() if is_in_first_layers(live.shape, name, 2)
    )
    rows = place(live.tokenizer, [(t, name) for t in entity_templates()[:3] for name in ("Japan", "Michael Jordan")])
    for (indices, one), (others, other) in zip(
        activations(live, rows, layers), activations(part, rows, layers), strict=True
    ):
        assert indices == others and torch.equal(one, other)
    with pytest.raises(AbsentError):
        answer_logprobs(part, PAIRS)


def is_in_first_layers(shape, name, n):
    """Whether a parameter is in the language model, before layer n; what is behind its layers is named by hand."""
    rest = name.removeprefix(shape.prefix)
    layer = rest.removeprefix(f"{shape.layout.layers}.").partition(".")[0]
    behind = ("norm.", "ln_f.", "final_layer_norm.", "final_layernorm.", "embedding_norm.")
    return name.startswith(shape.prefix) and not rest.startswith(behind) and not (layer.isdigit() and int(layer) >= n)


@pytest.mark.slow
def test_varied_multipliers_are_single_edits(live):
    if not live.shape.plain_layers:
        return
    cells = [cell for cell in some_cells(live.shape) if cell.expert is None]
    asked = [Asked("the age of {entity} is", "Japan", "twelve"), Asked("{entity} lies", "Peru", "in the south")]
    found = varied_logprobs(live, asked, cells, (1.0, -3.0))
    for number, multiplier in enumerate((1.0, -3.0)):
        edits = [ColumnEdit(cell, multiplier) for cell in cells] if multiplier != 1.0 else []
        with edited(live, edits):
            for column, row in enumerate(continuations(live.tokenizer, [one.pair for one in asked])):
                logprobs = logits(live.model, row.ids).log_softmax(-1)
                places = range(len(row.ids) - row.n_answer, len(row.ids))
                expected = sum(logprobs[spot - 1, row.ids[spot]].item() for spot in places)
                assert found[number, column].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "stored"),
    [
        (
            "gemma4_text",
            GEMMA_EXPERTS,
            "model.layers.1.experts.down_proj[2]",
        ),
        (
            "granitemoehybrid",
            {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16},
            "model.layers.1.block_sparse_moe.output_linear.weight[2]",
        ),
    ],
)
def test_rows_that_may_have_experts(tmp_path, name, settings, stored):
    tiny_model(name, vocab_size=VOCAB_SIZE, **settings).save_pretrained(tmp_path / "base")
    source = ModelSource(tmp_path / "base", ModelRef("a/b"))
    assert source.checkpoint.shape.tensor(1, 2) == (stored, 1)
    edits = [ColumnEdit(cell, -3.0) for cell in (Cell(1, 5), Cell(1, 7, 2))]
    save("safetensors", source, [EntityEdits("Paris", tuple(edits))], tmp_path / "out")
    copy = wrap(plain(source.folder), None)
    ids = list(range(5, 40))
    before = logits(copy.model, ids)
    apply_edits(copy, edits)
    after = logits(plain(tmp_path / "out"), ids)
    torch.testing.assert_close(logits(copy.model, ids), after, atol=1e-4 * before.std().item(), rtol=1e-5)
    assert (after - before).abs().max() > 1e-3 * before.std()


class MadeUpConfig(LlamaConfig):
    model_type = "made_up"


class MadeUpForCausalLM(LlamaForCausalLM):
    config_class = MadeUpConfig

    def __init__(self, config):
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            config.intermediate_size = 40 + 8 * number
            layer.mlp = MadeUpMlp(config)


def test_one_row_adds_an_architecture(tmp_path, monkeypatch):
    AutoConfig.register("made_up", MadeUpConfig, exist_ok=True)
    AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM, exist_ok=True)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    # All that is random, so that answers differ.
    model = randomized(MadeUpForCausalLM(MadeUpConfig(vocab_size=VOCAB_SIZE, **sizes)).eval())
    with pytest.raises(LayoutError, match="architecture 'made_up' is not supported"):
        wrap(model, tiny_tokenizer())
    monkeypatch.setitem(LAYOUTS, "made_up", MlpLayout("made_up", ("mlp.back",)))
    live = wrap(model, tiny_tokenizer(), "made up")
    assert [live.shape.width(layer) for layer in range(3)] == [40, 48, 56]
    best = localize(live, "Japan", n_prompts=6, top=3).entities[0].cells
    save_model(model, tmp_path / "base")
    source = ModelSource(tmp_path / "base", ModelRef("a/b"))
    edits = (EntityEdits("Japan", tuple(ColumnEdit(row.cell) for row in best)),)
    for name in ("safetensors", "adapter"):
        save(name, source, edits, tmp_path / name)
        prove(tmp_path / name, source)
    changed, original = load_file(tmp_path / "safetensors" / "model.safetensors"), model.state_dict()
    for name, tensor in changed.items():
        expected = original[name].clone()
        for row in best:
            if name == f"model.layers.{row.cell.layer}.mlp.back.weight":
                expected[:, row.cell.neuron] *= -1
        assert torch.equal(tensor, expected), name
    before = answer_logprobs(live, PAIRS)
    with edited(live, edits[0].edits):
        expected = answer_logprobs(live, PAIRS)
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    after = answer_logprobs(wrap(merged, tiny_tokenizer()), PAIRS)
    assert [row.logprob for row in after] == pytest.approx([row.logprob for row in expected], abs=1e-4)
    assert before != after
    take_back(tmp_path / "safetensors", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "base")


def save_model(model, folder):
    """Weights and configuration; the classes of a test have no sizes of layers in their configuration."""
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    model.config.save_pretrained(folder)


def test_readme_names_every_architecture():
    text = README.read_text(encoding="utf-8")
    assert with_names(text) == text, "README.md names others: run `python tests/support/listed.py`"
