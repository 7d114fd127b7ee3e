"""Which cases of tests with dozens of them the fast tier leaves out, by one rule. Imports nothing that takes seconds."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from amnesia.architectures import LAYOUTS

MANY = ("kind", "tensor_type", "stage")
"""Parameters with many values, types of tensors and stages of a push, of which as many as this are tried:"""
N_OF_MANY = 5
OF_THEIR_OWN = ("gemma2", "qwen3_5_text")
"""Architectures that differ from those of the same row: by a norm after the MLP, and by layers that carry a state."""


def further(cases: Sequence[tuple[Hashable, Mapping[str, object]]]) -> Iterator[int]:
    """Indices of the cases, each a test and its parameters by name, that the fast tier leaves out.

    These are all architectures of a test but the first of each shape of their rows, and all values of `MANY` but some.
    """
    values: dict[tuple[Hashable, str], dict[str, None]] = {}  # In their order.
    for test, parameters in cases:
        for name, value in parameters.items():
            values.setdefault((test, name), {})[str(value)] = None
    kept = {at: _kept(at[1], [*found]) for at, found in values.items()}
    for index, (test, parameters) in enumerate(cases):
        if any(str(value) not in kept[test, name] for name, value in parameters.items()):
            yield index


def shape_of(model_type: str) -> str:
    """All that a row of the table of architectures says, save its name."""
    return repr(replace(LAYOUTS[model_type], model_type=model_type if model_type in OF_THEIR_OWN else ""))


def _kept(name: str, values: Sequence[str]) -> set[str]:
    """The values of one parameter of a test that the fast tier tries, too."""
    if name in MANY and len(values) > N_OF_MANY:
        places = (round(place * (len(values) - 1) / (N_OF_MANY - 1)) for place in range(N_OF_MANY))
        return {values[place] for place in places}
    first: dict[str, str] = {}
    for value in values:
        first.setdefault(shape_of(value) if value in LAYOUTS else value, value)
    return {*first.values()}
