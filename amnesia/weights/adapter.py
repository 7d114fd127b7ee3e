"""The edit as a PEFT LoRA adapter, written without PEFT and without a model in memory.

Multiplying column j of W by m adds (m − 1)·W[:, j] to it, a matrix of rank one. For each cell of a layer, row i of A is
one-hot at the cell's neuron, and column i of B is (m − 1) times the column as it is stored. For m = −1 that is −2 times
the column, which is exact in every floating point type, so merging gives exactly the edited weights; so it is where
m − 1 is any power of two that is not below 1. Other multipliers round. Then B is the edited column less the stored one,
in float32, which holds such differences of numbers of 16 bits, so that merging gives exactly the edited weights, too,
unless m is nearer to 0 than 0.00013; weights of float32 and float64 are met up to rounding.

A direction is such a matrix already: its row of A is u on its columns and zero elsewhere, its column of B is (m − 1)·v.
Rounded to 16 bits these would give other weights than the edit does, so where there are directions all factors are
float32 (float64 for weights of float64), in which PEFT computes the sum before it rounds to the type of the weights.

All layers get the same rank, padded with zeros, and `lora_alpha` equals it, because readers of adapters (llama.cpp,
older vLLM) misread ranks that differ between layers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from amnesia.architectures import LAYOUTS, MULTIMODAL
from amnesia.domain import ModelRef, check_place
from amnesia.edits import DirectionEdit, Place, names_of
from amnesia.errors import CheckpointError, InputError, OutputError, os_errors_as
from amnesia.files.cache import is_hidden_name
from amnesia.files.companions import ADAPTER_NAMES, README_NAME
from amnesia.files.disk import check_empty
from amnesia.files.strict_json import json_bytes
from amnesia.plain_text import for_markdown, for_terminal
from amnesia.weights.manifest import Base, BaseFile, Manifest, TensorEdit
from amnesia.weights.plan import Plan, TensorPlan, Weights, direction_factor, edited_vectors
from amnesia.weights.residue import added_to
from amnesia.weights.safetensors import NewTensor, new_file
from amnesia.weights.scaling import converted, number_type, sum_dtype

# Ranks that PEFT, vLLM and llama.cpp all load.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
CONFIG_NAME, WEIGHTS_NAME = ADAPTER_NAMES
KEY_PREFIX = "base_model.model."
# A path with the number of a layer in it, and no other number.
_NAME = r"[A-Za-z_]\w*"
_IN_LAYER = re.compile(
    rf"(?P<prefix>(?:{_NAME}\.)*)(?P<layers>{_NAME})\.(?P<layer>\d{{1,9}})\.(?P<below>{_NAME}(?:\.{_NAME})*)"
)
# The types that an adapter can have.
DTYPES = ("F64", "F32", "F16", "BF16")


def adapter_rank(most: int) -> int:
    """The smallest rank with room for the layer with the most cells and directions; raises InputError beyond 512."""
    for rank in RANKS:
        if most <= rank:
            return rank
    raise InputError(
        f"a layer has {most} cells to edit (or directions): an adapter holds at most {RANKS[-1]} per layer; "
        "edit fewer cells, or write the format safetensors"
    )


def write_adapter(plan: Plan[Weights], folder: Path) -> Manifest:
    """Write a LoRA adapter into the empty `folder`, everything but the manifest, and return the manifest.

    Only the edited tensors are read.

    Raises InputError for more than 512 cells and directions in a layer, CheckpointError for mixtures of experts, for
    types that PEFT cannot merge (8 bits) and for files that changed since the plan was made, OutputError when `folder`
    is not empty, and NumericalError when a factor would overflow.
    """
    source, spec, plans = plan.source, plan.spec, plan.tensors
    rank = adapter_rank(max(plan.rank for plan in plans))
    check_mergeable(source, plans)
    check_empty(folder)
    source.check_unchanged()

    tensors: list[TensorEdit] = []

    with os_errors_as(OutputError, f"{folder} cannot be written", "free space or choose another disk"):
        with (folder / WEIGHTS_NAME).open("xb") as file:
            file.writelines(weights_blocks(source, plans, rank, tensors.append))
        source.check_unchanged()
        modules = target_modules(source, plans)
        (folder / CONFIG_NAME).write_bytes(
            config_bytes(modules, plans[0].axis, rank, _found_by_peft(source, spec.base))
        )
        readme = _readme(names_of(spec.groups), spec.base.name, modules, source.shape.layout.auto_class)
        (folder / README_NAME).write_text(readme, encoding="utf-8")
    return Manifest(
        format="adapter",
        base=Base(spec.base, base_files(source, plans)),
        edits=spec.groups,
        tensors=tuple(tensors),
        added=(README_NAME, CONFIG_NAME, WEIGHTS_NAME),
        recipe=spec.recipe_text,
        previous=source.manifest,
    )


def _found_by_peft(source: Weights, base: ModelRef) -> ModelRef:
    """The base as PEFT finds it, from whatever folder: on the Hub by its name and commit, else by its place here.

    Raises InputError for a place that is not UTF-8.
    """
    if base.revision is not None:
        return base
    place = Path(source.name).resolve()
    # A model that is made for a moment, to be edited once more, has no place.
    if not any(map(is_hidden_name, place.parts)):
        check_place(str(place))
    return base if any(map(is_hidden_name, place.parts)) else ModelRef(str(place))


def is_base(name: object, base: ModelRef) -> bool:
    """Whether the settings of an adapter may call its base so: as the manifest does, or by the place of a folder."""
    return name == base.name or (base.revision is None and isinstance(name, str) and Path(name).is_absolute())


def check_mergeable(source: Weights, plans: Sequence[TensorPlan]) -> None:
    """Raises CheckpointError when PEFT could not merge an adapter for these tensors exactly."""
    if source.shape.n_experts:
        # Experts have a module each in transformers 4 and one parameter for all in transformers 5, for which PEFT
        # rewrites adapters while it loads them: even one for layers without experts then wraps the experts too.
        raise CheckpointError(
            f"{source.name} is a mixture of experts: PEFT changes adapters of these while it loads them, so that "
            "none is exact; write the format safetensors"
        )
    for plan in plans:
        if plan.tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {plan.tensor.name} is stored as {plan.tensor.dtype}: PEFT cannot merge adapters of 8 bits; "
                "write the format safetensors"
            )


def base_files(source: Weights, plans: Sequence[TensorPlan]) -> tuple[BaseFile, ...]:
    """The touched shards with the hashes of their headers; an adapter must not read whole shards."""
    rows = []
    for name in sorted({plan.file for plan in plans}):
        header = source.weights.headers[name]
        rows.append(BaseFile(name, header.file_size, hashlib.sha256(header.content).hexdigest(), "header"))
    return tuple(rows)


def read_rows(dtype: str, neurons: Sequence[int], directions: Sequence[DirectionEdit], rank: int, d_mlp: int) -> bytes:
    """The factor A (rank, d_mlp): row i is 1 at `neurons[i]`, then comes u of each direction; the rest is zero."""
    factor = np.zeros((rank, d_mlp), number_type(dtype))
    factor[np.arange(len(neurons)), list(neurons)] = 1
    for row, edit in zip(factor[len(neurons) :], directions, strict=False):
        row[list(edit.columns)] = edit.read.array
    return factor.tobytes()


def written_columns(source: Weights, plan: TensorPlan, dtype: str, rank: int) -> tuple[bytes, str]:
    """The factor B (d_model, rank): what the edit adds to the column of each cell, (m − 1)·v of each direction, zeros.

    Where a direction changes a cell's column, too, it is (m − 1) times the column, which is rounded with the sum.

    Also returns the sha256 of the original columns. Raises NumericalError that names the tensor on overflow.
    """
    columns = source.read_columns(plan)
    before = hashlib.sha256(b"".join(columns.values())).hexdigest()
    wide = {index: converted(columns[index], plan.tensor.dtype, dtype) for index in plan.scaled}
    changes = {index: multiplier - 1.0 for index, multiplier in plan.scaled.items()}
    number = number_type(dtype)
    factor = np.zeros((plan.tensor.shape[1 - plan.axis], rank), number)
    deltas = edited_vectors(wide, replace(plan.tensor, dtype=dtype), changes)
    if dtype != plan.tensor.dtype:
        alone = {index: columns[index] for index in plan.scaled.keys() - {*added_to(plan.directions)}}
        for index, after in edited_vectors(alone, plan.tensor, plan.scaled).items():
            new, old = (np.frombuffer(raw, number) for raw in (converted(after, plan.tensor.dtype, dtype), wide[index]))
            deltas[index] = (new - old).tobytes()
    for place, delta in enumerate(deltas.values()):
        factor[:, place] = np.frombuffer(delta, number)
    for place, edit in enumerate(plan.directions, start=len(wide)):
        factor[:, place] = direction_factor(edit, plan.tensor)
    return factor.tobytes(), before


def _is_exact(multiplier: float) -> bool:
    """Whether (m − 1)·w is a number of w's own type, whatever that is and however small w: for powers of two from 1."""
    mantissa, exponent = math.frexp(multiplier - 1.0)
    return abs(mantissa) == 0.5 and exponent > 0 and 1.0 + (multiplier - 1.0) == multiplier


def weights_blocks(
    source: Weights, plans: Sequence[TensorPlan], rank: int, record: Callable[[TensorEdit], None]
) -> Iterator[bytes]:
    """The bytes of `adapter_model.safetensors`, one layer in memory at a time; `record` gets each layer's entry."""
    wide = any(plan.directions or not all(map(_is_exact, plan.scaled.values())) for plan in plans)

    def factors(plan: TensorPlan) -> tuple[NewTensor, NewTensor]:
        path = KEY_PREFIX + module_path(source, plan)
        dtype = sum_dtype(plan.tensor.dtype) if wide else plan.tensor.dtype
        d_model, d_mlp = plan.tensor.shape[1 - plan.axis], plan.tensor.shape[plan.axis]

        def a() -> Iterator[bytes]:
            yield read_rows(dtype, tuple(plan.scaled), plan.directions, rank, d_mlp)

        def b() -> Iterator[bytes]:
            factor, before = written_columns(source, plan, dtype, rank)
            record(
                TensorEdit(
                    name=plan.tensor.name,
                    file=plan.file,
                    axis=plan.axis,
                    place=Place(plan.layer),
                    multipliers=plan.multipliers,
                    before=before,
                    after=hashlib.sha256(factor).hexdigest(),
                    scope="columns",
                    directions=plan.directions,
                )
            )
            yield factor

        return (
            NewTensor(f"{path}.lora_A.weight", dtype, (rank, d_mlp), a()),
            NewTensor(f"{path}.lora_B.weight", dtype, (d_model, rank), b()),
        )

    return new_file(tensor for plan in plans for tensor in factors(plan))


def target_modules(source: Weights, plans: Sequence[TensorPlan]) -> list[str]:
    """Full paths of the edited modules, sorted."""
    return sorted(module_path(source, plan) for plan in plans)


def module_path(source: Weights, plan: TensorPlan) -> str:
    """Path of an edited module in the model that transformers builds, which files may name otherwise."""
    return source.shape.out_proj_path(plan.layer, source.shape.layout.prefix)


def below_prefix(path: str) -> str:
    """A module's path without what stands before the list of layers, which files and memory may call otherwise."""
    match = _IN_LAYER.fullmatch(path)
    return path if match is None else path.removeprefix(match["prefix"])


def config_bytes(modules: Sequence[str], axis: int, rank: int, base: ModelRef) -> bytes:
    """`adapter_config.json`: only settings that every version of PEFT knows, so that none of them warns.

    `axis` is the axis of the stored weights that is indexed by neurons.
    """
    config: Mapping[str, object] = {
        "base_model_name_or_path": base.name,
        "bias": "none",
        # GPT-2's Conv1D stores its weight as (in, out), and PEFT must transpose the delta there.
        "fan_in_fan_out": axis == 0,
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "revision": base.revision,
        "task_type": "CAUSAL_LM",
        **selection(modules),
    }
    return json_bytes(config)


def selection(modules: Sequence[str]) -> dict[str, object]:
    """The settings by which PEFT finds the modules of these full paths, and no other.

    The path below the layer and the numbers of the layers, which name the same modules where transformers put the
    adapter on a model that is built without its head (`AutoModel.from_pretrained`, `load_adapter`). PEFT itself does
    not: by its task_type, `PeftModel` wants a model that generates. In a model that takes images other parts may have
    such layers, too: there, the full paths.
    """
    found = [_IN_LAYER.fullmatch(path) for path in modules]
    places = {(match["prefix"], match["layers"], match["below"]) for match in found if match is not None}
    if None in found or len(places) != 1 or next(iter(places))[0] == MULTIMODAL:
        return {"target_modules": list(modules)}
    ((_, layers, below),) = places
    numbers = sorted(int(match["layer"]) for match in found if match is not None)
    return {"target_modules": [below], "layers_to_transform": numbers, "layers_pattern": layers}


def auto_class_name(names: Sequence[str]) -> str:
    """The Auto class of transformers for a model with tensors or modules of these names, as `opening` builds it.

    Llama 4, whose layers are called otherwise, is loaded as a language model though its files hold images, too:
    `Llama4ForConditionalGeneration` of transformers 5.24 takes no text alone.
    """
    rows = [row for row in LAYOUTS.values() if row.takes_images]
    paths = [*(row.out_proj for row in rows), *(row.experts.fused for row in rows if row.experts)]
    parts = {path.split(".")[0] for group in paths for path in group}
    found = (_IN_LAYER.fullmatch(name.removesuffix(".weight")) for name in names)
    whole = any(
        match and re.search(r"\b(language|text)_model\.", match["prefix"]) and match["below"].split(".")[0] in parts
        for match in found
    )
    return "AutoModelForImageTextToText" if whole else "AutoModelForCausalLM"


def traps(modules: Sequence[str], auto_class: str) -> str:
    """What goes wrong with an adapter of these modules, of a model of this class: silently, or by a strange error.

    Each was tried, with PEFT 0.21.2, bitsandbytes 0.50.2 and transformers 5.24 (sentence-transformers 6.2 loads by
    `AutoModel`).
    """
    if auto_class == "AutoModelForCausalLM" and "layers_pattern" in selection(modules):
        return _TRAPS
    return f"{_TRAPS}\n{_FULL_PATHS}"


_FULL_PATHS = """\
- Its modules are listed by full paths: loaders that build a model without its head (`AutoModel`, sentence-transformers)
  raise, as these paths are others there."""
_TRAPS = """\
- Adapters add up by `add_weighted_adapter(..., combination_type="cat")`; `linear`, `ties` and others give another edit.
- On a base in 4 bits (bitsandbytes, on a CPU) merge before the first text goes through it, or not at all: later,
  merging destroys the model without an error."""


def _readme(entity: str, base: str, modules: Sequence[str], auto_class: str) -> str:
    name, subject = for_markdown(base), for_markdown(entity)
    return f"""---
library_name: peft
base_model: {for_terminal(json.dumps(base, ensure_ascii=False))}
tags:
- lora
---

# {name} without {subject}

A LoRA adapter that suppresses what {name} knows about {subject}. Merged into the base with
`merge_and_unload()` it changes columns of the MLP output projection, as listed in `amnesia.json`.
Load the base as `{auto_class}`. To undo the edit, unload the adapter.

{traps(modules, auto_class)}
"""
