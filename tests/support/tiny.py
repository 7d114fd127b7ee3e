"""Tiny models of every supported architecture, built from configurations and saved in several shards."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from amnesia.domain import ModelRef
from amnesia.edits import DirectionEdit, Edit, EditSpec, EntityEdits, Joined
from amnesia.vector import Vector
from amnesia.weights.gguf.edit import plan_gguf
from amnesia.weights.manifest import Manifest
from amnesia.weights.plan import Plan

N_LAYERS = 3
D_MODEL = 32
D_MLP = 48
VOCAB_SIZE = 96
# What takes long is tried with these: they differ in how they are built. `test_rows.py` tries every row of the table.
MODEL_TYPES = tuple(
    "llama mistral qwen2 qwen3 gemma2 gemma3_text olmo2 phi3 gpt2 gpt_neox".split()  # In the order of the table.
)
MOE_TYPES = ("mixtral", "olmoe", "qwen3_moe")
N_EXPERTS = 4

_SIZES = {
    "gpt2": {"n_layer": N_LAYERS, "n_embd": D_MODEL, "n_inner": D_MLP, "n_head": 4, "n_positions": 64},
}
_USUAL_SIZES = {
    "num_hidden_layers": N_LAYERS,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def tiny_model(
    model_type: str,
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    **settings: object,
) -> PreTrainedModel:
    """A randomly initialized model in evaluation mode; all weights and biases are far from zero.

    `settings` are added to the configuration.
    """
    sizes = {**_SIZES.get(model_type, _USUAL_SIZES), **settings}
    if model_type in MOE_TYPES:
        sizes = {"num_experts": N_EXPERTS, "num_experts_per_tok": 2, **sizes}
    if model_type in ("phi3", "gpt_neox"):
        sizes = {key: value for key, value in sizes.items() if key != "head_dim"}
    config = AutoConfig.for_model(
        model_type,
        vocab_size=vocab_size,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=tied,
        **sizes,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model.to(dtype).eval()


def tiny_direction(
    layer: int, columns: Sequence[int] = tuple(range(0, D_MLP, 3)), *, multiplier: float = -1.0, seed: int = 0
) -> DirectionEdit:
    """A direction with random vectors that fits a tiny model and changes each weight by about its own size."""
    generator = torch.Generator().manual_seed(seed)

    def vector(size: int) -> Vector:
        return Vector.of(torch.randn(size, generator=generator).numpy() * 0.3)

    n = len(columns)
    spread = Vector.of(torch.rand(n, generator=generator).numpy() + 0.1)
    return DirectionEdit(layer, 0, multiplier, tuple(columns), vector(n), vector(D_MODEL), vector(n), spread)


def save_tiny(
    folder: Path,
    model_type: str = "llama",
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "20KB",
    extras: Sequence[str] = ("README.md", "LICENSE", "chat_template.jinja", "assets/logo.txt"),
    seed: int = 0,
    fused: bool = False,
    **settings: object,
) -> Path:
    """Save a tiny model into `folder`, by default in several shards and with other files that must survive.

    `fused` saves the experts of a layer as one tensor, as they are in memory.
    """
    model = tiny_model(model_type, tied=tied, dtype=dtype, seed=seed, **settings)
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=not fused)
    for name in extras:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of the base model\r\nwith {{odd}} bytes\n", encoding="utf-8")
    return folder


def as_read(manifest: Manifest) -> Manifest:
    """A manifest, perhaps one that lies, with its tensors as they follow from its edits when it is read."""
    joined = Joined(manifest.edits)
    tensors = []
    for row in manifest.tensors:
        multipliers, directions = joined.at(row.place)
        indices, values = tuple(multipliers), tuple(multipliers.values())
        tensors.append(replace(row, indices=indices, multipliers=values, directions=directions))
    return replace(manifest, tensors=tuple(tensors))


def write_with(
    writer: Callable[..., Manifest],
    source: object,
    edits: Sequence[Edit],
    folder: Path,
    *,
    entity: str = "Paris",
    also: Sequence[EntityEdits] = (),
    base: ModelRef = ModelRef("a/b"),  # noqa: B008
    recipe_text: str | None = None,
    allow_overlap: bool = False,
    **options: object,
) -> Manifest:
    """What one of the three writers makes of `edits` for one entity and of those `also` for others."""
    spec = EditSpec((EntityEdits(entity, tuple(edits)), *also), base, recipe_text, allow_overlap)
    if isinstance(source, Path):
        plan = plan_gguf(source, spec, expected=options.pop("expected", None))
    else:
        plan = Plan.of(source, spec)
    return writer(plan, folder, **options)
