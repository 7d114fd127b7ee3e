"""Which tensors of a model its first layers need: what activations are read with, without head, vision or the rest."""

from __future__ import annotations

from collections.abc import Collection

from amnesia.architectures import FINAL_NORMS, PREFIXES, Configured


def part_names(of: Configured, names: Collection[str]) -> frozenset[str]:
    """Those of the tensor names in a model's files that its first `of.n_layers` layers need.

    That is all that lies beside the layers in the language model, but for the norm behind the last one, and the layers
    themselves. Empty where the files have none of the prefixes that a model may have.
    """
    layout = of.layout
    prefix = next(
        (
            prefix
            for prefix in dict.fromkeys((layout.prefix, *PREFIXES))
            if any(name.startswith(layout.below(prefix, 0)) for name in names)
        ),
        None,
    )
    return frozenset() if prefix is None else frozenset(name for name in names if _is_needed(of, prefix, name))


def _is_needed(of: Configured, prefix: str, name: str) -> bool:
    if not name.startswith(prefix):
        return False
    first, _, rest = name.removeprefix(prefix).partition(".")
    if first == of.layout.layers:
        number = rest.partition(".")[0]
        return number.isdecimal() and int(number) < of.n_layers
    return first not in FINAL_NORMS
