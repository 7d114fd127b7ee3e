"""Batches, hooks, activations and log-probabilities against plain transformers, one prompt at a time."""

import math

import pytest
import torch
from accelerate import disk_offload
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia.domain import Cell, Loading
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, LayoutError, NumericalError
from amnesia.evaluation.damage import read
from amnesia.experiments.layers import layer_significance
from amnesia.facts.names import entity_templates
from amnesia.live import batches as module
from amnesia.live.batches import batches, batches_to_write, from_shared, passes, takes_trees
from amnesia.live.forward import _following, answer_logprobs, as_generated, continued, generate
from amnesia.live.loading import check_finite, load
from amnesia.live.model import apply_edits, edited, wrap
from amnesia.live.tokens import continuations, place
from amnesia.live.watching import activations
from amnesia.localization.cells import localize
from oracles import plain
from support.tiny import MODEL_TYPES, tiny_model
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_live, tiny_tokenizer

PAIRS = [
    ("Fact: the capital of Japan is", "Tokyo"),
    ("Where is it?\n", "in the garden behind the house"),
    ("the river", "was"),
    ("She waited for the water to boil and then", "she left the kitchen"),
]
EDITS = [ColumnEdit(Cell(0, 3), -1.0), ColumnEdit(Cell(2, 40), -8.0), ColumnEdit(Cell(2, 7), 0.5)]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def live(request):
    return tiny_live(request.param, bos=request.param in ("gemma2", "gemma3_text", "llama"))


def plain_logits(live, ids):
    return plain.run(live.model, ids)[0]


def test_batched_answers_equal_single_prompts(live):
    rows = continuations(live.tokenizer, PAIRS)
    for row, found in zip(rows, answer_logprobs(live, PAIRS), strict=True):
        logprobs = plain_logits(live, row.ids).log_softmax(-1)
        places = range(len(row.ids) - row.n_answer, len(row.ids))
        expected = [logprobs[place - 1, row.ids[place]].item() for place in places]
        assert found.logprob == pytest.approx(sum(expected), abs=1e-4)
        assert found.logprob_first == pytest.approx(expected[0], abs=1e-4)
        first = logprobs[places[0] - 1]
        assert found.rank == (first > first[row.ids[places[0]]]).sum().item()


@pytest.fixture(scope="module")
def expected():
    """What the tiny Llama writes after each prompt by its weights alone."""
    live, texts = tiny_live(), []
    for prompt, _ in PAIRS:
        ids, new = live.tokenizer(prompt)["input_ids"], []
        while len(new) < 12 and not {*new} & {*live.tokenizer.all_special_ids}:
            new.append(plain_logits(live, [*ids, *new])[-1].argmax().item())
        texts.append(live.tokenizer.decode(new, skip_special_tokens=True))
    return texts


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8, "no_repeat_ngram_size": 1},
        {"num_beams": 4, "length_penalty": -3.0},
        {"suppress_tokens": list(range(3, 300)), "begin_suppress_tokens": list(range(300, 500))},
        {"forced_bos_token_id": 7, "forced_eos_token_id": 9, "min_new_tokens": 20},
        {"do_sample": True, "temperature": 5.0, "top_k": 3, "num_return_sequences": 2},
        {"eos_token_id": list(range(3, 400)), "stop_strings": ["e"], "max_length": 3},
        {"sequence_bias": [[[5], 100.0]], "bad_words_ids": [[6]], "return_dict_in_generate": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_written_depends_on_the_weights_alone(settings, expected):
    live, prompts = tiny_live(), [prompt for prompt, _ in PAIRS]
    for name, value in settings.items():
        setattr(live.model.generation_config, name, value)
    assert generate(live, prompts) == expected
    assert [as_generated(live, row.ids[-14:]) for row in continued(live, prompts, 14)] == expected
    assert all(getattr(live.model.generation_config, name) == value for name, value in settings.items())


def test_nothing_is_read_behind_a_special_token():
    live = tiny_live()
    (before,) = generate(live, ["the river"])
    first = plain_logits(live, live.tokenizer("the river")["input_ids"])[-1].argmax().item()
    piece = live.tokenizer.convert_ids_to_tokens([first])[0]
    live.tokenizer.add_special_tokens({"extra_special_tokens": [piece]})
    assert before and generate(live, ["the river"]) == [""]
    (row,) = continued(live, ["the river"], 14)
    assert as_generated(live, row.ids[-14:]) == ""


def test_activations_equal_single_prompts(live):
    templates = ["the age of {entity}", "Fact: the oldest building in {entity} and more", "{entity}"]
    rows = place(live.tokenizer, [(template, "Michael Jordan") for template in templates])
    found = {
        index: batch[line] for indices, batch in activations(live, rows, [2, 0]) for line, index in enumerate(indices)
    }
    for index, row in enumerate(rows):
        expected = plain.run(live.model, row.ids)[1][[0, 2], row.token]
        torch.testing.assert_close(found[index], expected, atol=1e-5, rtol=1e-5)


def test_the_pass_ends_at_the_last_layer_asked_for_and_runs_no_head(live):
    called = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in [
            *((n, plain.projection(live.model, n)) for n in range(live.shape.n_layers)),
            ("head", live.model.get_output_embeddings()),
        ]
    ]
    rows = place(live.tokenizer, [("the age of {entity}", "Japan"), ("{entity}", "Paris")])
    for layers, expected in (([0], []), ([1], [0]), ([0, 2], [0, 1])):  # The last projection itself is not needed.
        called.clear()
        list(activations(live, rows, layers))
        assert called == expected
    for handle in handles:
        handle.remove()


def test_batches_are_sized_by_tokens():
    live = tiny_live()
    rows = [[5] * length for length in (3, 50, 7, 1, 20, 20, 9, 2, 64, 31)]
    seen = []
    for batch in batches(live, rows, 64):
        ids = batch.inputs["input_ids"]
        assert ids.numel() <= 64
        assert batch.padding.tolist() == [ids.shape[1] - len(rows[index]) for index in batch.indices]
        seen += batch.indices
    assert sorted(seen) == list(range(len(rows)))
    for one in passes(live, rows, 64):
        assert one.inputs["input_ids"].numel() <= 64


def test_shared_prefixes_equal_single_prompts(live):
    pairs = [(t, name) for t in entity_templates()[:4] for name in ("Japan", "Michael Jordan", "Paris", "the Nile")]
    rows = place(live.tokenizer, [*pairs, ("the age of {entity} and more", "Michael Jordan")])
    assert takes_trees(live, 64)
    assert len(list(passes(live, [row.ids for row in rows]))) == 1
    check_against_single_prompts(live, rows)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "mistral"])
def test_rows_beyond_a_sliding_window_are_run_as_they_are(model_type):
    live = tiny_live(model_type, bos=True)
    live.model.config.sliding_window = 6
    for layer in live.model.model.layers:
        layer.self_attn.sliding_window = 6
    rows = place(live.tokenizer, [(t, "Michael Jordan") for t in entity_templates()[:8]])
    assert max(len(row.ids) for row in rows) > 6
    assert not takes_trees(live, max(len(row.ids) for row in rows))
    check_against_single_prompts(live, rows)


def check_against_single_prompts(live, rows):
    """Activations of all layers, within 1e-4 of the largest of each prompt run alone by plain transformers."""
    done = set()
    for indices, batch in activations(live, rows, range(live.shape.n_layers)):
        for line, index in enumerate(indices):
            expected = plain.run(live.model, rows[index].ids)[1][:, rows[index].token]
            assert (batch[line] - expected).abs().max() <= 1e-4 * expected.abs().max()
            done.add(index)
    assert done == set(range(len(rows)))


def test_layers_spread_by_accelerate_give_the_same_activations(tmp_path):
    save_tiny_live(tmp_path)
    live, spread = load(tmp_path, "tiny"), load(tmp_path, "tiny", Loading(device="auto"))
    # Without a second device, disk stands in for one: weights are fetched for each layer as it runs.
    disk_offload(spread.model, tmp_path / "offload", execution_device="cpu")
    assert all(parameter.is_meta for parameter in spread.model.parameters())
    rows = place(live.tokenizer, [(t, "Japan") for t in entity_templates()[:8]])
    for (_, one), (_, other) in zip(activations(live, rows, [0, 2]), activations(spread, rows, [0, 2]), strict=True):
        assert torch.equal(one, other)
    with edited(live, EDITS):
        expected = answer_logprobs(live, PAIRS)
    with edited(spread, EDITS):
        assert answer_logprobs(spread, PAIRS) == expected


def test_hooks_act_like_edited_weights(live):
    before = answer_logprobs(live, PAIRS)
    with edited(live, EDITS):
        by_hook = [plain_logits(live, row.ids) for row in continuations(live.tokenizer, PAIRS)]
    assert answer_logprobs(live, PAIRS) == before, "the block must leave the model as it was"

    # The oracle multiplies the columns with plain torch on an independent copy of the model.
    copy = tiny_model(live.shape.layout.model_type, vocab_size=live.model.config.vocab_size)
    copy.load_state_dict(live.model.state_dict())
    for edit in EDITS:
        weight = copy.get_submodule(live.shape.out_proj_path(edit.cell.layer)).weight
        with torch.no_grad():
            if live.shape.layout.model_type == "gpt2":
                weight[edit.cell.neuron] *= edit.multiplier
            else:
                weight[:, edit.cell.neuron] *= edit.multiplier
    for row, logits in zip(continuations(live.tokenizer, PAIRS), by_hook, strict=True):
        with torch.no_grad():
            expected = copy(torch.tensor([row.ids])).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (by_hook[0] - plain_logits(live, continuations(live.tokenizer, PAIRS)[0].ids)).abs().max() > 1e-3


def test_apply_edits_changes_the_columns_and_nothing_else():
    live = tiny_live()
    before = {name: tensor.clone() for name, tensor in live.model.state_dict().items()}
    apply_edits(live, [ColumnEdit(Cell(1, 5))])
    for name, tensor in live.model.state_dict().items():
        expected = before[name]
        if name == "model.layers.1.mlp.down_proj.weight":
            expected[:, 5] = -expected[:, 5]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([ColumnEdit(Cell(3, 0))], "layer 3 is out of range: tiny has layers 0–2"),
        ([ColumnEdit(Cell(0, 48))], "neuron 48 is out of range: layer 0 of tiny has neurons 0–47"),
        ([ColumnEdit(Cell(0, 1)), ColumnEdit(Cell(0, 1), -2.0)], "cell 0:1 is listed twice"),
        ([ColumnEdit(Cell(0, 1), 1.0)], "changes nothing"),
        ([ColumnEdit(Cell(0, 1), float("nan"))], "multiplier nan of cell 0:1"),
    ],
)
def test_bad_edits_change_nothing(edits, message):
    live = tiny_live()
    before = live.model.model.layers[0].mlp.down_proj.weight.clone()
    with pytest.raises(InputError, match=message):
        apply_edits(live, [ColumnEdit(Cell(0, 0)), *edits])
    with pytest.raises(InputError, match=message), edited(live, edits):
        pass
    assert torch.equal(live.model.model.layers[0].mlp.down_proj.weight, before)


def test_what_follows_an_early_end_is_an_end_where_there_is_no_token_for_it():
    live = tiny_live()
    live.tokenizer.pad_token = None
    rows = [live.tokenizer(prompt)["input_ids"] for prompt, _ in PAIRS]
    first = [plain_logits(live, row)[-1].argmax().item() for row in rows]
    ends = [first[0]]
    assert {*first} - {*ends}, "some rows must go on"
    for batch, new in _following(live, rows, 4, ends):
        for index, ids in zip(batch.indices, new.tolist(), strict=True):
            assert ids[0] == first[index]
            if index == 0:
                assert ids == ends * len(ids)


@pytest.mark.parametrize("beginning", ["", "the river was long and "])
def test_generation_equals_plain_following_decoding(live, beginning, monkeypatch):
    monkeypatch.setattr(module, "_MIN_SHARED", 1)
    prompts = [beginning + prompt for prompt, _ in PAIRS]
    for prompt, text in zip(prompts, generate(live, prompts, max_new_tokens=5), strict=True):
        ids = live.tokenizer(prompt)["input_ids"]
        new = []
        while len(new) < 5 and not {*new} & {*live.tokenizer.all_special_ids}:
            new.append(plain_logits(live, [*ids, *new])[-1].argmax().item())
        assert text == live.tokenizer.decode(new, skip_special_tokens=True)


def test_what_prompts_share_at_their_beginning_is_computed_once():
    live = tiny_live()
    rows = [(*range(5, 45), 50, 51), (*range(5, 45), 60), tuple(range(5, 46)), *[tuple(range(7, 27))] * 4, (9,)]
    seen = []
    assert takes_trees(live, 42)  # Which is tried once.
    handle = live.model.base_model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    inputs = from_shared(live, rows, 3)
    handle.remove()
    # All but the last tokens: 40 and one more of the first three rows, 19 of four rows that are the same.
    assert seen == [40 + 1 + 19]
    assert inputs["cache"].get_seq_length() == 41
    assert inputs["input_ids"][:, 41].tolist() == [51, 60, 45, 26, 26, 26, 26, 9]
    assert inputs["attention_mask"].sum(1).tolist() == [*map(len, rows)]
    for number, layer in enumerate(inputs["cache"].layers):
        for line, row in enumerate(rows[:7]):
            alone = live.model(torch.tensor([row[:-1]]), use_cache=True).cache.layers[number]
            for kept, expected in ((layer.keys, alone.keys), (layer.values, alone.values)):
                torch.testing.assert_close(kept[line, :, 41 - len(row) + 1 :], expected[0], rtol=1e-4, atol=1e-5)
    assert from_shared(live, [rows[0], rows[3]], 3) == {}  # Nothing is shared.
    assert from_shared(live, rows[:1], 3) == {}
    assert from_shared(live, [(5,)] * 99, 3) == {}  # Nothing but last tokens.


def test_rows_that_are_written_on_make_larger_batches_as_far_as_what_they_need_has_room(monkeypatch):
    live = tiny_live()
    config = live.text_config
    each = 2 * live.shape.n_layers * config.num_key_value_heads * (live.shape.d_model // config.num_attention_heads) * 4
    most = live.max_tokens
    monkeypatch.setattr(module, "_KEPT_BYTES", each * 3000)

    def sizes(rows):
        return [tuple(one.inputs["input_ids"].shape) for one in batches_to_write(live, rows, 10)]

    assert most == 1024 and sizes([(5,) * 20] * 250) == [(100, 20), (100, 20), (50, 20)]  # Each of 30 in the end.
    assert sizes([(5,) * 20] * 9) == [(9, 20)] and sizes([]) == []
    # Short rows beside a long one need room for what is written, too; as many as make a batch anyway do.
    assert sizes([(5,) * 9] * 300 + [(5,) * 200]) == [(157, 9), (143, 9), (1, 200)]
    assert sizes([(5,)] * 2000 + [(5,) * 200]) == [(1024, 1), (976, 1), (1, 200)]
    monkeypatch.setattr(module, "_LOGIT_BYTES", 4 * VOCAB_SIZE * 70)  # Of 70 rows.
    assert sizes([(5,) * 20] * 150) == [(70, 20), (70, 20), (10, 20)]
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    assert sizes([(5,) * 20] * 110) == [(51, 20), (51, 20), (8, 20)]


def test_damaged_weights_are_found_by_name():
    live = tiny_live()
    with torch.no_grad():
        live.model.model.layers[1].self_attn.k_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"weight model.layers.1.self_attn.k_proj.weight of m holds NaN"):
        check_finite(live.model, "m")
    with pytest.raises(NumericalError, match="NaN or infinite log-probabilities"):
        answer_logprobs(live, PAIRS)


def test_a_sum_that_overflows_is_not_taken_for_a_damaged_weight():
    layer = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.fill_(torch.finfo(torch.float32).max)
    check_finite(layer, "m")
    with torch.no_grad():
        layer.weight[1, 1] = -math.inf
    with pytest.raises(NumericalError, match="weight weight of m holds NaN or infinity"):
        check_finite(layer, "m")


def test_what_overflows_in_float16_is_not_called_damaged(tmp_path):
    live = tiny_live("gemma3_text")
    with torch.no_grad():
        live.model.model.layers[1].mlp.down_proj.weight.mul_(2e4)
    assert all(math.isfinite(answer.logprob) for answer in answer_logprobs(live, PAIRS))
    live.model.bfloat16()
    assert all(math.isfinite(answer.logprob) for answer in answer_logprobs(live, PAIRS))
    live.model.half()
    check_finite(live.model, "m")
    remedy = r"tiny gives NaN or infinite .* because it overflows in float16: use bfloat16 or float32"
    with pytest.raises(NumericalError, match=remedy):
        answer_logprobs(live, PAIRS)
    with pytest.raises(NumericalError, match=remedy):
        read(live, continuations(live.tokenizer, PAIRS))
    with pytest.raises(NumericalError, match=remedy):
        localize(live, "Japan", n_prompts=2)
    with pytest.raises(NumericalError, match=remedy):
        layer_significance(live, ["Japan"], n_prompts=3)
    # Beyond float16 as a number, before anything is computed with it.
    save_tiny_live(tmp_path)
    path = next(path for path in tmp_path.glob("*.safetensors") if "model.norm.weight" in load_file(path))
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    load(tmp_path, "m")
    with pytest.raises(NumericalError, match=r"weight model.norm.weight of m overflows in float16: use bfloat16 or"):
        load(tmp_path, "m", Loading("float16"))


def test_unknown_architectures_and_slow_tokenizers_are_refused():
    config = AutoConfig.for_model("opt", num_hidden_layers=1, hidden_size=8, ffn_dim=8, num_attention_heads=2)
    with pytest.raises(LayoutError, match="architecture 'opt' is not supported: try `amnesia --layout auto"):
        wrap(AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    with pytest.raises(InputError, match="gives no character offsets"):
        wrap(tiny_model("llama"), object())


def test_a_wrapped_model_without_its_modules_is_refused():
    with pytest.raises(LayoutError, match=r"has no language-model head: .* load it with AutoModelForCausalLM"):
        wrap(tiny_model("llama").model, tiny_tokenizer())


@pytest.mark.parametrize("dtype", ["float99", "int8", "nn", "", torch.float32, None])
def test_a_type_to_compute_in_that_there_is_not(tmp_path, dtype):
    with pytest.raises(InputError, match=r"dtype .* cannot be used: choose another, for example float32"):
        load(tmp_path, "tiny", Loading(dtype))
