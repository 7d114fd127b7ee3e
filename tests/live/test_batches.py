"""When texts may share a forward pass, and when the head alone gives the logits: both are tried on the model itself."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia.architectures import LAYOUTS, MlpLayout
from amnesia.errors import InputError
from amnesia.evaluation.damage import read
from amnesia.facts.names import entity_templates
from amnesia.live import batches
from amnesia.live.batches import one_pass, passes, takes_trees
from amnesia.live.forward import answer_logprobs, generate, readout
from amnesia.live.model import freeze, hooks, wrap
from amnesia.live.tokens import Continuation, place
from amnesia.live.watching import activations
from oracles.plain import carries_state
from support.tiny import tiny_config
from support.tiny_text import VOCAB_SIZE, tiny_live, tiny_tokenizer

RECURRENT = [name for name in LAYOUTS if carries_state(tiny_config(name))]


@pytest.mark.parametrize("model_type", RECURRENT)
def test_the_trial_alone_finds_models_that_ignore_a_mask(model_type):
    live = tiny_live(model_type)
    assert live.is_recurrent and not takes_trees(replace(live, is_recurrent=False), 8)


@pytest.mark.parametrize("model_type", RECURRENT)
def test_recurrent_layers_alone_are_enough(model_type, monkeypatch):
    live = tiny_live(model_type)
    monkeypatch.setattr(batches, "_tree_agrees", lambda live: True)
    assert not takes_trees(live, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma4_text", "gpt2", "cohere2"])
def test_the_trial_lets_through_what_obeys_a_mask(model_type, dtype):
    live = tiny_live(model_type)
    live.model.to(dtype)
    assert takes_trees(live, 8)


def test_each_model_is_tried_once(monkeypatch):
    live, other, calls = tiny_live(), tiny_live("qwen2"), []
    monkeypatch.setattr(batches, "_tree_agrees", lambda live: calls.append(live) or True)
    for one in (live, live, other, live):
        assert takes_trees(one, 8)
    assert calls == [live, other]


def test_the_last_layer_that_is_watched_computes_what_is_asked_about_alone():
    live, seen = tiny_live(), {0: [], 1: []}
    rows = place(live.tokenizer, [("the capital of {entity} is", name) for name in ("Japan", "Peru")])
    for layer, sizes in seen.items():
        module = live.model.get_submodule(f"{live.shape.layer_path(layer)}.mlp.gate_proj")
        module.register_forward_hook(lambda _, args, output, sizes=sizes: sizes.append(output[..., 0].numel()))
    (both,) = activations(live, rows, (0, 1))
    assert seen[0][-1] > len(rows) == seen[1][-1]
    for number, layer in enumerate((0, 1)):
        ((order, alone),) = activations(live, rows, (layer,))
        assert order == both[0] and torch.allclose(alone[:, 0], both[1][:, number], rtol=1e-5, atol=1e-6)


def test_alibi_measures_distance_in_places():
    """Bloom adds a bias by the distance of places, which in a tree is not that of tokens."""
    with pytest.MonkeyPatch.context() as patch:
        row = MlpLayout("bloom", ("mlp.dense_4h_to_h",), "transformer.", "h", n_layers_key="n_layer")
        patch.setitem(LAYOUTS, "bloom", row)
        config = AutoConfig.for_model("bloom", n_layer=2, hidden_size=32, n_head=4, vocab_size=VOCAB_SIZE)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        live = wrap(freeze(model), tiny_tokenizer(), "tiny")
        assert live.shape.d_mlp == 128
        assert not takes_trees(live, 8)
        rows = place(live.tokenizer, [(t, name) for t in entity_templates()[:2] for name in ("Japan", "Peru")])
        found = {n: batch[line] for indices, batch in activations(live, rows, [1]) for line, n in enumerate(indices)}
        for index, row in enumerate(rows):
            seen = []
            handle = live.out_proj(1).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
            model(torch.tensor([row.ids]))
            handle.remove()
            torch.testing.assert_close(found[index][0], seen[0][row.token], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "settings", "window"),
    [
        ("gemma3", {"sliding_window": 12}, 12),  # In the text configuration of a model that takes images, too.
        ("llama4_text", {}, 32),  # In chunks.
        ("qwen2_moe", {"use_sliding_window": False}, 10**6),
    ],
)
def test_rows_are_no_longer_than_the_window_of_the_language_model(model_type, settings, window):
    live = tiny_live(model_type, **settings)
    assert takes_trees(live, window)
    assert takes_trees(live, window + 1) == (window == 10**6)


@pytest.mark.parametrize("model_type", ["gemma2", "llama"])
def test_masks_are_of_floats(model_type):
    live = tiny_live(model_type)
    assert live.text_config._attn_implementation == ("eager" if model_type == "gemma2" else "sdpa")
    for dtype in (torch.float32, torch.bfloat16):
        live.model.to(dtype)
        (one,) = passes(live, [[5, 6, 7], [5, 6, 8]])
        assert one.inputs["attention_mask"].dtype == dtype
        assert one.inputs["attention_mask"].min() == torch.finfo(dtype).min


@pytest.mark.parametrize("model_type", ["llama", "falcon_h1"])
def test_rows_that_are_given_at_once_are_one_pass(model_type):
    live = tiny_live(model_type)
    # Together they have more tokens than any tree of `passes`.
    rows = [[5, 6, 7], [5, 6, 9], *(list(range(start, start + 40)) for start in range(50, 350, 50))]
    one = one_pass(live, rows)
    assert sorted(one.indices) == list(range(8))
    assert one.inputs["input_ids"].numel() == (4 + 6 * 40 if takes_trees(live, 40) else 8 * 40)
    logits = live.model(**one.inputs, use_cache=False).logits
    for index, line, slots in zip(one.indices, one.lines, one.slots, strict=True):
        alone = live.model(torch.tensor([rows[index]])).logits[0]
        torch.testing.assert_close(logits[line, list(slots)], alone, atol=1e-4, rtol=1e-4)


def test_all_layers_see_whole_prompts_in_generation():
    """Gemma 4 could spare layers without keys of their own most of a prompt: what is set there would not be noticed."""
    live = tiny_live("gemma4_text")
    n_tokens, seen = len(live.tokenizer("the river was")["input_ids"]), []
    with hooks(live, {2: lambda values: seen.append(values.shape[1])}):
        generate(live, ["the river was"], max_new_tokens=3)
    assert seen[0] == n_tokens and set(seen[1:]) <= {1}
    assert not live.text_config.output_hidden_states


ROWS = [Continuation((5, 9, 30, 31), 2), Continuation(tuple(range(40, 60)), 19)]


@pytest.mark.parametrize(
    ("model_type", "settings", "scale"),
    [
        ("cohere", {"logit_scale": 0.0625}, 0.0625),
        ("granite", {"logits_scaling": 8.0}, 0.125),
        ("falcon_h1", {"lm_head_multiplier": 0.5}, 0.5),
        ("llama", {}, 1.0),
    ],
)
def test_the_head_is_scaled_as_the_model_scales_it(model_type, settings, scale):
    live = tiny_live(model_type, **settings)
    head = readout(live)
    assert (head.scale, head.head) == (scale, live.model.get_output_embeddings())
    check_reading(live)


def test_a_model_that_does_more_after_its_head_is_read_as_a_whole():
    live = tiny_live("qwen3")

    def sharper(_module, _args, output):
        output.logits = output.logits * 3.0
        return output

    live.model.register_forward_hook(sharper)
    assert isinstance(readout(live).head, torch.nn.Identity)
    check_reading(live)


def check_reading(live):
    """Log-probabilities against the whole model, one text at a time."""
    for row, found in zip(ROWS, read(live, ROWS).logprobs, strict=True):
        with torch.no_grad():
            logprobs = live.model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        places = range(len(row.ids) - row.n_answer, len(row.ids))
        expected = sum(logprobs[spot - 1, row.ids[spot]].item() for spot in places)
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_text_longer_than_the_context_is_refused_by_its_beginning(model_type):
    live = tiny_live(model_type)
    longest = "Japan " * (live.n_positions + 1)
    for ask in (
        lambda: generate(live, ["Japan is", longest]),
        lambda: answer_logprobs(live, [("Japan is", "big"), ("Japan is", longest)]),
        lambda: list(activations(live, place(live.tokenizer, [(longest + "{entity} is", "Peru")]), [0])),
    ):
        with pytest.raises(
            InputError, match=rf"(text|prompt) 'Japan .* tokens, tiny takes {live.n_positions}: shorten it"
        ):
            ask()


def test_an_answer_ends_where_the_context_does_whatever_is_asked_beside_it(caplog):
    live = tiny_live()
    room = 3
    long = live.tokenizer.decode(live.tokenizer("Japan" * live.n_positions).input_ids[: live.n_positions - room])
    assert len(live.tokenizer(long).input_ids) == live.n_positions - room
    short = "Japan is"
    together = generate(live, [short, long])
    assert together == [*generate(live, [short]), *generate(live, [long])]
    assert together[1] == generate(live, [long], max_new_tokens=room)[0] and len(together[0]) > 0
    full = live.tokenizer.decode(live.tokenizer("Japan" * live.n_positions).input_ids[: live.n_positions])
    with pytest.raises(InputError, match="leaves no room for an answer"):
        generate(live, [full])
    assert "maximum length" not in caplog.text
