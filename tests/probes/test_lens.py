"""Ranks layer by layer, against the hidden states of plain transformers."""

import pytest
import torch

from amnesia.domain import Fact
from amnesia.errors import InputError
from amnesia.probes.lens import lens_ranks
from support.tiny import MODEL_TYPES, N_LAYERS
from support.tiny_text import tiny_live

FACTS = (
    Fact("Japan", "the capital of {entity} is", "garden"),
    Fact("Peru", "people in {entity} like their", "water"),
)


@torch.no_grad()
def plain_ranks(live, fact):
    prompt = fact.text()
    ids = live.tokenizer(prompt)["input_ids"]
    (token, *_) = live.tokenizer(f"{prompt} {fact.answer}")["input_ids"][len(ids) :]
    output = live.model(torch.tensor([ids]), output_hidden_states=True)
    end = len(live.tokenizer(prompt[: prompt.index(fact.entity) + len(fact.entity)])["input_ids"]) - 1
    norms = [m for n, m in live.model.named_modules() if n.split(".")[-1] in ("norm", "ln_f", "final_layer_norm")]
    softcap = getattr(live.model.config, "final_logit_softcapping", None)
    found = []
    for place in (end, len(ids) - 1):
        ranks = []
        for layer in range(1, N_LAYERS + 1):
            state = output.hidden_states[layer][0, place]
            # The last of these has gone through the norm.
            logits = live.model.get_output_embeddings()(state if layer == N_LAYERS else norms[-1](state[None])[0])
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            ranks.append(int((logits > logits[token]).sum()))
        found.append(tuple(ranks))
    return tuple(found)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_ranks_are_those_of_plain_hidden_states(model_type):
    live = tiny_live(model_type)
    found = lens_ranks(live, FACTS)
    for fact, ranks in zip(FACTS, found, strict=True):
        assert [len(own) for own in ranks] == [N_LAYERS, N_LAYERS]
        assert ranks == plain_ranks(live, fact)


def test_a_model_whose_head_is_given_something_else_is_refused():
    live = tiny_live()
    live.model.model.norm.weight.data.mul_(2.0)
    live.model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] + 1.0,))
    with pytest.raises(InputError, match="the layers of tiny cannot be read out"):
        lens_ranks(live, FACTS)
