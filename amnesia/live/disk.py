"""Layers that accelerate has left on the disk, from where each is read when it is run: their numbers, and gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from amnesia.live.split import whole_of
from amnesia.progress import tell_read


def is_on_disk(model: nn.Module) -> bool:
    """Whether any weight of a module is on the disk."""
    return any(parameter.is_meta for parameter in model.parameters())


def devices_of(model: nn.Module) -> set[str]:
    """The devices on which the weights of a model act; "meta" where that is not known."""
    found = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            hook = vars(module).get("_hf_hook")
            on_disk = parameter.is_meta and hook is not None
            found.add(str(torch.device(hook.execution_device) if on_disk else parameter.device))
    return found


def numbers_of(module: nn.Module, name: str = "weight") -> Tensor:
    """All numbers of a parameter or buffer as the module computes with them, without gradient, wherever they are.

    Of one that lies on the disk, or in several processes, this is a copy.
    """
    tensor: Tensor = getattr(module, name)
    if not tensor.is_meta:
        return whole_of(tensor)
    hook = vars(module)["_hf_hook"]
    return hook.weights_map[name].to(hook.execution_device, tensor.dtype)


def tell_reads(model: nn.Module, size_of: Callable[[str], int | None]) -> None:
    """Let every module of a model count what it reads from the disk, by the bytes that each weight has in its file.

    Those that lie in no file of their own have, where transformers has put them, the size that they have in memory.
    """
    for path, module in model.named_modules():
        own = [(name, weight) for name, weight in module.named_parameters(recurse=False) if weight.is_meta]
        n_bytes = sum(size_of(f"{path}.{name}") or weight.numel() * weight.element_size() for name, weight in own)
        if own:
            module.register_forward_hook(lambda *_, n_bytes=n_bytes: tell_read(n_bytes))


@contextlib.contextmanager
def run_twice(blocks: Iterable[nn.Module]) -> Generator[None]:
    """Let gradients pass through blocks that are on the disk, each of which is read once more on the way back.

    Otherwise all that were read would stay in memory until then.
    """
    found = [(block, vars(block).get("forward")) for block in blocks]

    def run(forward: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **settings)

    # A block that is left early would keep what it has read last.
    with set_checkpoint_early_stop(False):
        try:
            for block, _ in found:
                block.forward = partial(run, block.forward)
            yield
        finally:
            for block, own in found:
                del block.forward
                if own is not None:
                    block.forward = own
