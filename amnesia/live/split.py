"""One model that processes which were started together hold together, each a part of every large matrix.

That is the tensor parallelism of transformers, but for one thing: what enters the output projection of an MLP is put
together in each process, so that whoever watches activations, changes them or takes gradients by them sees whole ones.
All processes run the same program on the same numbers. Only the first of them writes and speaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from amnesia.architectures import LAYOUTS, MlpLayout
from amnesia.errors import AmnesiaError, LayoutError, NumericalError
from amnesia.files.processes import is_first, n_started

if TYPE_CHECKING:
    from transformers.distributed import DistributedConfig

_T = TypeVar("_T")


def split_config(whole: PreTrainedModel, layout: MlpLayout, name: str) -> DistributedConfig:
    """How transformers splits a model among the processes; `whole` may be without numbers, `name` is for messages.

    Attention stays whole in each process where its heads cannot be shared out evenly. Raises LayoutError for a model
    whose MLPs transformers cannot split so that they are seen whole.
    """
    from transformers.distributed import DistributedConfig

    own = dict(whole.tp_plan or {})
    below = f"{layout.prefix}{layout.layers}.*."
    outs = [below + path for path in layout.out_proj if below + path in own]
    plan: dict[str, str] = {}
    in_mlps: set[str] = set()
    for out in outs:
        mlp = out.rpartition(".")[0] + "."
        beside = {rule for rule in own if rule.startswith(mlp) and rule != out}
        in_mlps |= {out, *beside}
        if own[out] == "rowwise" and all(own[rule] == "colwise" for rule in beside):
            plan |= {out: "rowwise_split_input", **dict.fromkeys(beside, "colwise_gather_output")}
        elif own[out] != "rowwise_split_input":
            outs = []
            break
    if not outs or layout.experts is not None or layout.model_type not in LAYOUTS:
        raise LayoutError(
            f"{name} cannot be split among {n_started()} processes: transformers has no plan for the MLPs of type "
            f"{layout.model_type} that keeps activations whole; start one process, with --device auto for several "
            "devices"
        )
    config = whole.config.get_text_config()
    heads = (config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if any(count % n_started() for count in heads):
        plan |= {rule: "replicate" for rule in own if rule.startswith(below) and rule not in in_mlps}
    return DistributedConfig(tp_size=n_started(), tp_plan=plan or "auto")


def whole_of(tensor: Tensor) -> Tensor:
    """All numbers, without gradient, of a tensor of which each process may hold a part."""
    if not distributed.is_available() or not distributed.is_initialized():
        return tensor.detach()
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor.detach()
    with torch.inference_mode(False), torch.no_grad():  # In inference mode torch 2.13 cannot detach a part.
        return tensor.full_tensor()


def is_split(model: PreTrainedModel) -> bool:
    """Whether processes hold a model together; processes that work side by side have a whole one each."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in model.parameters())


def part_of(tensor: Tensor) -> Tensor:
    """Those numbers of a tensor that this process holds."""
    if not distributed.is_available() or not distributed.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def by_first(work: Callable[[], _T]) -> _T:
    """What `work` returns in the first process, or the error that it raises, in all; done by no other process."""
    if not distributed.is_available() or not distributed.is_initialized():
        return work()
    found: list[Any] = [None]
    if is_first():
        try:
            found = [work()]
        except AmnesiaError as error:
            found = [error]
    distributed.broadcast_object_list(found)
    if isinstance(found[0], AmnesiaError):
        raise found[0]
    return found[0]


def check_same(value: object) -> None:
    """Raise NumericalError where the processes did not come to the same."""
    if repr(by_first(lambda: value)) != repr(value):
        raise NumericalError(
            "the processes came to different results from the same numbers: use devices of one kind, or one process"
        )


def end() -> None:
    """Part from the other processes."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
