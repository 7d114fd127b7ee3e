"""Plain transformers, one prompt at a time: what batched computations are compared with. Knows nothing of the package.

The output projections are named here once more, by hand, so that a wrong table in the package is found.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FIVE = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")


def projection(model, layer: int):
    """The output projection of the MLP of a layer."""
    if model.config.model_type == "gpt2":
        return model.transformer.h[layer].mlp.c_proj
    if model.config.model_type == "gpt_neox":
        return model.gpt_neox.layers[layer].mlp.dense_4h_to_h
    block = model.get_decoder().layers[layer]
    if model.config.model_type == "lfm2":
        return block.feed_forward.w2
    if model.config.model_type == "falcon_h1":
        return block.feed_forward.down_proj
    if model.config.model_type == "granitemoehybrid":
        return block.shared_mlp.output_linear
    if model.config.model_type == "starcoder2":
        return block.mlp.c_proj
    if model.config.model_type == "phi":
        return block.mlp.fc2
    return block.mlp.down_proj


def carries_state(config) -> bool:
    """Whether a layer has linear attention, a state space or a convolution, by what a configuration says."""
    text = config.get_text_config()
    kinds = {*(getattr(text, "layer_types", None) or ())}
    beside = any(key.startswith("mamba_") for key in text.to_dict())  # Falcon-H1 has both in every layer.
    return beside or any("attention" not in kind or "linear" in kind for kind in kinds)


@torch.no_grad()
def run(
    model, ids: Sequence[int], change: Callable[[int, Tensor], None] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 logits (tokens, vocabulary), activations (n_layers, tokens, d_mlp), MLP outputs (n_layers, tokens, d_model).

    `change(layer, activations)` may change the activations of a layer in place before they are used.
    """
    inputs, outputs, handles = {}, {}, []
    n_layers = model.config.get_text_config().num_hidden_layers
    for layer in range(n_layers):

        def before(_, args, layer=layer):
            values = args[0].clone()
            if change:
                change(layer, values[0])
            inputs[layer] = values[0].float()
            return (values,)

        def after(_, __, output, layer=layer):
            outputs[layer] = output[0].float()

        module = projection(model, layer)
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        logits = model(torch.tensor([list(ids)])).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    return logits, *(torch.stack([seen[layer] for layer in range(n_layers)]) for seen in (inputs, outputs))


def answer_logprob(logits: Tensor, ids: Sequence[int], n_answer: int) -> float:
    """Log-probability (nats) of the last `n_answer` of the tokens `ids`, from their logits (tokens, vocabulary)."""
    logprobs = logits.log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(len(ids) - n_answer, len(ids)))
