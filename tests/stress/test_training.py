from dataclasses import replace

import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, NumericalError
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import apply_edits
from amnesia.stress.settings import FULL, LORA, Way
from amnesia.stress.training import add, deltas, fine_tune, loss, rows_of, trainable, untrainable
from support.tiny_text import tiny_live

TEXTS = ["the capital of Japan is Tokyo", "people drink green tea", "the winters are cold", "it rains", "she laughed"]


FAST = Way("full", 1e-2)
QUICK = replace(LORA, learning_rate=1e-3)


def state(live):
    return {name: tensor.clone() for name, tensor in live.model.state_dict().items()}


def train(live, texts, steps, observe=lambda: None, way=QUICK, **more):
    return fine_tune(live, rows_of(live, [("", text) for text in texts], 64), way, steps, observe, batch=4, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "way"),
    [
        pytest.param(name, way, id=f"{name}-{kind}", marks=[] if is_sample else pytest.mark.exhaustive)
        for name, kind, way, is_sample in (
            ("llama", "LoRA", QUICK, True),
            ("llama", "full", FAST, False),
            ("gpt2", "LoRA", QUICK, False),
            ("gpt2", "full", FAST, True),
            ("mixtral", "LoRA", QUICK, True),
            ("mixtral", "full", FAST, True),  # Weights of three dimensions.
        )
    ],
)
def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(model_type, way):
    live = tiny_live(model_type, bos=True)
    before, modules = state(live), {name: id(module) for name, module in live.model.named_modules()}
    attributes = set(vars(live.model))
    inside = []
    found = train(live, TEXTS, (0, 5, 30), lambda: inside.append(any("lora" in name for name in state(live))), way)
    assert [row.step for row in found] == [0, 5, 30]
    assert found[0].loss > found[1].loss > found[2].loss
    assert inside == [way is QUICK] * 3
    after = state(live)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: id(module) for name, module in live.model.named_modules()} == modules
    assert set(vars(live.model)) == attributes
    assert not live.model.training
    assert not any(parameter.requires_grad for parameter in live.model.parameters())
    assert all(parameter.grad is None for parameter in live.model.parameters())


@pytest.mark.parametrize("way", [QUICK, FAST], ids=["LoRA", "full"])
def test_an_adapter_leaves_the_base_alone_and_full_training_moves_every_weight(way):
    live = tiny_live()
    before = state(live)

    def moved():
        now = {name.replace(".base_layer", ""): tensor for name, tensor in state(live).items() if "lora" not in name}
        return {name for name in before if not torch.equal(now[name], before[name])}

    first, last = (row.seen for row in train(live, TEXTS, (0, 3), moved, way))
    assert first == set()
    assert last == (set() if way is QUICK else before.keys())


def test_a_step_of_all_weights_is_one_of_adamw():
    """Against the optimizer over all weights together, on a copy of the model."""
    live, plain = tiny_live(), tiny_live()
    weights = list(plain.model.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    rows = rows_of(plain, [("", TEXTS[0])], 64)
    for _ in range(3):
        optimizer.zero_grad()
        loss(plain, rows).backward()
        optimizer.step()
    (found,) = train(live, TEXTS[:1], (3,), lambda: state(live), FAST)
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(found.seen[name], tensor, msg=name)


@pytest.mark.slow
def test_what_is_taught_becomes_likelier():
    live = tiny_live()
    pair = [("the capital of Japan is", "Tokyo")]
    plain = answer_logprobs(live, pair)[0].logprob
    found = train(live, TEXTS[:1], (0, 40), lambda: answer_logprobs(live, pair)[0].logprob)
    assert found[0].seen == pytest.approx(plain, abs=1e-5)  # An untrained adapter does nothing.
    assert found[1].seen > plain + 1
    assert answer_logprobs(live, pair)[0].logprob == pytest.approx(plain, abs=1e-6)


def test_the_loss_is_nats_per_learned_token():
    live = tiny_live(bos=True)
    (found,) = train(live, TEXTS[:2], (0,))
    total, n = 0.0, 0
    for text in TEXTS[:2]:
        ids = live.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logprobs = live.model(ids).logits.log_softmax(-1)
        total -= logprobs[0, :-1].gather(1, ids[0, 1:, None]).sum().item()
        n += ids.shape[1] - 1
    assert found.loss == pytest.approx(total / n, abs=1e-4)


def test_what_is_given_is_not_learned():
    live = tiny_live()
    rows = rows_of(live, [("the capital of Japan is", "Tokyo"), ("", TEXTS[1])], 64)
    answers = answer_logprobs(live, [("the capital of Japan is", "Tokyo")])
    place = next(n for n, row in enumerate(rows) if row.n_answer < len(row.ids) - 1)
    with torch.no_grad():
        found = loss(live, [rows[place]]).item()
    assert found * rows[place].n_answer == pytest.approx(-answers[0].logprob, abs=1e-4)


def test_lessons_are_cut_off_after_so_many_learned_tokens():
    live = tiny_live()
    (whole,), (cut,) = (rows_of(live, [("", TEXTS[0])], n) for n in (64, 3))
    assert len(whole.ids) > 4
    assert (cut.ids, cut.n_answer) == (whole.ids[:4], 3)


def test_what_is_given_does_not_count_however_long_it_is():
    live = tiny_live()
    given = "You are a helpful assistant. " * 30 + "the capital of Japan is"
    (whole,), (cut,) = (rows_of(live, [(given, "Tokyo in the east")], n) for n in (64, 2))
    assert len(whole.ids) - whole.n_answer > 64
    assert whole.n_answer > 2
    assert (cut.ids, cut.n_answer) == (whole.ids[: len(whole.ids) - whole.n_answer + 2], 2)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_disturbs_nobody():
    live = tiny_live()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    runs = [train(live, TEXTS, (0, 8), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("way", [LORA, FULL], ids=["LoRA", "full"])
def test_the_model_is_restored_when_something_fails(way):
    live = tiny_live()
    before = state(live)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(live, TEXTS, (2,), fail, way)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(live).items())
    assert not any(parameter.requires_grad for parameter in live.model.parameters())


@pytest.mark.parametrize("steps", [(), (5, 5), (5, 2), (-1, 3)])
def test_steps_must_increase(steps):
    with pytest.raises(InputError, match="expected increasing numbers from 0"):
        train(tiny_live(), TEXTS, steps)


def test_a_damaged_model_is_an_error():
    live = tiny_live()
    with torch.no_grad():
        live.model.lm_head.weight[0] = float("nan")
    with pytest.raises(NumericalError, match="training tiny gives a loss of nan"):
        train(live, TEXTS, (0, 1))


@pytest.mark.parametrize("way", [LORA, FULL], ids=["LoRA", "full"])
def test_an_edit_stays_an_edit(way):
    live = tiny_live()
    apply_edits(live, [ColumnEdit(Cell(1, 11), -4.0)])
    edited = state(live)
    train(live, TEXTS, (3,), way=way)
    assert all(torch.equal(tensor, edited[name]) for name, tensor in state(live).items())


@pytest.mark.parametrize("way", [LORA, FULL], ids=["LoRA", "full"])
def test_what_changes_at_the_start_is_undone_at_the_end(way):
    live = tiny_live()
    before, ids = state(live), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain = live.model(ids).logits

    def logits():
        return live.model(ids).logits

    (found,) = train(live, TEXTS, (0,), logits, way, start=lambda: apply_edits(live, [ColumnEdit(Cell(1, 11), -4.0)]))
    assert not torch.allclose(found.seen, plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(live).items())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_an_adapter_that_is_added_to_the_weights_acts_as_before(model_type):
    live = tiny_live(model_type)
    rows, ids = rows_of(live, [("", text) for text in TEXTS], 64), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = live.model(ids).logits
    with trainable(live, QUICK, 0):
        for _ in range(5):
            loss(live, rows[:2]).backward()
        with torch.no_grad():
            trained = live.model(ids).logits
        found = deltas(live)
    add(live, found)
    with torch.no_grad():
        merged = live.model(ids).logits
    assert (trained - plain).abs().max() > 1e-2
    torch.testing.assert_close(merged, trained, atol=1e-4, rtol=1e-4)


def test_steps_that_rounding_would_lose_are_not_made():
    live = tiny_live()
    assert untrainable(live, FULL) is untrainable(live, LORA) is None
    live.model.to(torch.bfloat16)
    assert untrainable(live, FULL) == (
        "steps of this size are lost in the rounding of torch.bfloat16: load the model in float32"
    )
    assert untrainable(live, LORA) is None
