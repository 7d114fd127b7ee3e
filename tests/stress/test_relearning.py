import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, NumericalError
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import apply_edits
from amnesia.stress.relearning import relearn
from amnesia.stress.settings import StressSettings
from support.tiny_text import tiny_live

TEXTS = ["the capital of Japan is Tokyo", "people drink green tea", "the winters are cold", "it rains", "she laughed"]


def state(live):
    return {name: tensor.clone() for name, tensor in live.model.state_dict().items()}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["several", "one"])
def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(model_type, texts):
    live = tiny_live(model_type, bos=True)
    before, modules = state(live), {name: id(module) for name, module in live.model.named_modules()}
    attributes = set(vars(live.model))
    inside = []
    found = relearn(
        live,
        texts,
        StressSettings(steps=(0, 5, 30)),
        lambda: inside.append(any("lora" in name for name in state(live))),
    )
    assert [row.step for row in found] == [0, 5, 30]
    assert found[0].loss > found[1].loss > found[2].loss
    assert inside == [True] * 3
    after = state(live)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: id(module) for name, module in live.model.named_modules()} == modules
    assert set(vars(live.model)) == attributes
    assert not live.model.training
    assert not any(parameter.requires_grad for parameter in live.model.parameters())


def test_the_base_does_not_move_while_the_adapter_learns():
    live = tiny_live()
    before = state(live)

    def moved():
        now = {name.replace(".base_layer", ""): tensor for name, tensor in state(live).items() if "lora" not in name}
        return [name for name in before if not torch.equal(now[name], before[name])]

    assert [row.seen for row in relearn(live, TEXTS, StressSettings(steps=(0, 3)), moved)] == [[], []]


def test_what_is_taught_becomes_likelier():
    live = tiny_live()
    pair = [("the capital of Japan is", "Tokyo")]
    plain = answer_logprobs(live, pair)[0].logprob
    found = relearn(live, TEXTS[:1], StressSettings(steps=(0, 40)), lambda: answer_logprobs(live, pair)[0].logprob)
    assert found[0].seen == pytest.approx(plain, abs=1e-5)  # An untrained adapter does nothing.
    assert found[1].seen > plain + 1
    assert answer_logprobs(live, pair)[0].logprob == pytest.approx(plain, abs=1e-6)


def test_the_loss_is_nats_per_token():
    live = tiny_live(bos=True)
    (found,) = relearn(live, TEXTS[:2], StressSettings(steps=(0,)), lambda: None)
    total, n = 0.0, 0
    for text in TEXTS[:2]:
        ids = live.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logprobs = live.model(ids).logits.log_softmax(-1)
        total -= logprobs[0, :-1].gather(1, ids[0, 1:, None]).sum().item()
        n += ids.shape[1] - 1
    assert found.loss == pytest.approx(total / n, abs=1e-4)


def test_the_same_seed_gives_the_same_and_disturbs_nobody():
    live = tiny_live()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    runs = [relearn(live, TEXTS, StressSettings(steps=(0, 8)), lambda: None, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert runs[0] == runs[1] != runs[2]


def test_the_model_is_restored_when_something_fails():
    live = tiny_live()
    before = state(live)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relearn(live, TEXTS, StressSettings(steps=(2,)), fail)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(live).items())


@pytest.mark.parametrize("steps", [(), (5, 5), (5, 2), (-1, 3)])
def test_steps_must_increase(steps):
    with pytest.raises(InputError, match="expected increasing numbers from 0"):
        relearn(tiny_live(), TEXTS, StressSettings(steps=steps), lambda: None)


def test_a_damaged_model_is_an_error():
    live = tiny_live()
    with torch.no_grad():
        live.model.lm_head.weight[0] = float("nan")
    with pytest.raises(NumericalError, match="training tiny gives a loss of nan"):
        relearn(live, TEXTS, StressSettings(steps=(0, 1)), lambda: None)


def test_an_edit_stays_an_edit():
    live = tiny_live()
    apply_edits(live, [ColumnEdit(Cell(1, 11), -4.0)])
    edited = state(live)
    relearn(live, TEXTS, StressSettings(steps=(3,)), lambda: None)
    assert all(torch.equal(tensor, edited[name]) for name, tensor in state(live).items())
