"""Tiny models of every supported architecture, built from configurations and saved in several shards."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from amnesia.domain import ModelRef
from amnesia.edits import DirectionEdit, Edit, EditSpec, EntityEdits, by_projection, edit_at
from amnesia.vector import Vector
from amnesia.weights.gguf.edit import plan_gguf
from amnesia.weights.manifest import Manifest
from amnesia.weights.plan import Plan
from support.kept_folders import kept

N_LAYERS = 3
D_MODEL = 32
D_MLP = 48
VOCAB_SIZE = 96
N_POSITIONS = 256
# What takes long is tried with these: they differ in how they are built. `test_rows.py` tries every row of the table.
MODEL_TYPES = tuple(
    "llama mistral qwen2 qwen3 gemma2 gemma3_text olmo2 phi3 gpt2 gpt_neox".split()  # In the order of the table.
)
MOE_TYPES = ("mixtral", "olmoe", "qwen3_moe")
N_EXPERTS = 4

_USUAL_SIZES = {
    "num_hidden_layers": N_LAYERS,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": N_POSITIONS,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": N_EXPERTS, "num_experts_per_tok": 2}
_SHARED = _EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
_DEEPSEEK = {
    "n_routed_experts": N_EXPERTS,
    "num_local_experts": N_EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_d_ssm": 64,
}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_GEMMA4 = {
    # The last layer is twice as wide, because it has no keys and values of its own.
    "num_kv_shared_layers": 1,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "final_logit_softcapping": 30.0,
}
_LLAMA4 = {
    "num_local_experts": N_EXPERTS,
    "intermediate_size": 16,
    "intermediate_size_mlp": D_MLP,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 32,
}
_VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_VISION |= {"image_size": 28, "patch_size": 14}
_VISION_QWEN = {"hidden_size": 16, "depth": 1, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": D_MODEL}
_VISION_QWEN |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}

# Settings that the usual sizes leave out, by type.
_SETTINGS = {
    "gpt2": {"n_layer": N_LAYERS, "n_embd": D_MODEL, "n_inner": D_MLP, "n_head": 4, "n_positions": 64},
    "qwen3_5_text": _LINEAR,
    "gemma4_text": _GEMMA4,
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.5},
    "granitemoehybrid": _MAMBA
    | {"shared_intermediate_size": D_MLP, "num_local_experts": 0, "layer_types": ["mamba", "attention", "mamba"]},
    "lfm2": {"intermediate_size": 72, "block_multiple_of": 8, "layer_types": ["conv", "full_attention", "conv"]},
    "falcon_h1": _MAMBA | {"lm_head_multiplier": 0.5},
    "gpt_oss": {
        "num_local_experts": N_EXPERTS,
        "num_experts_per_tok": 2,
        "intermediate_size": 16,
        "sliding_window": 128,
    }
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "mixtral": _EXPERTS,
    "olmoe": _EXPERTS,
    "qwen2_moe": _SHARED,
    "qwen3_moe": _EXPERTS,
    "qwen3_vl_moe_text": _EXPERTS | {"moe_intermediate_size": 16},
    "qwen3_next": _SHARED | _LINEAR,
    "qwen3_5_moe_text": _SHARED | _LINEAR,
    "deepseek_v2": _DEEPSEEK | _LATENT,
    "deepseek_v3": _DEEPSEEK | _LATENT,
    "glm4_moe": _DEEPSEEK,
    "ernie4_5_moe": _DEEPSEEK | {"moe_num_experts": N_EXPERTS, "moe_k": 2, "moe_layer_start_index": 1},
    "llama4_text": _LLAMA4,
    "lfm2_moe": _EXPERTS
    | {"moe_intermediate_size": 16, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
}
# Types that take images, too: that of their language model, and the settings of what sees.
_MULTIMODAL = {
    "qwen3_5": ("qwen3_5_text", _VISION_QWEN),
    "qwen3_vl": ("qwen3_vl_text", _VISION_QWEN),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", _VISION_QWEN),
    "gemma3": ("gemma3_text", _VISION),
    "gemma4": ("gemma4_text", _VISION | {"position_embedding_size": 16}),
    "gemma4_unified": (
        "gemma4_unified_text",
        {"patch_size": 4, "mm_embed_dim": 16, "mm_posemb_size": 16, "output_proj_dims": 16},
    ),
    "mistral3": ("ministral3", _VISION | {"model_type": "pixtral"}),
    "qwen3_5_moe": ("qwen3_5_moe_text", _VISION_QWEN),
    "llama4": (
        "llama4_text",
        _VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
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

    `settings` are added to the configuration. Models that take images, too, are built whole.
    """
    config = tiny_config(model_type, tied=tied, vocab_size=vocab_size, **settings)
    auto = AutoModelForImageTextToText if model_type in _MULTIMODAL else AutoModelForCausalLM
    torch.manual_seed(seed)
    return randomized(auto.from_config(config)).to(dtype).eval()


def tiny_config(
    model_type: str, *, tied: bool = False, vocab_size: int = VOCAB_SIZE, **settings: object
) -> PretrainedConfig:
    """The configuration of a tiny model; `settings` are added to it, or to that of its language model."""
    text_type, vision = _MULTIMODAL.get(model_type, (model_type, None))
    usual = {} if text_type == "gpt2" else _USUAL_SIZES
    sizes = {**usual, **_SETTINGS.get(text_type, {}), **settings}
    if text_type in ("phi", "phi3", "gpt_neox"):
        sizes = {key: value for key, value in sizes.items() if key != "head_dim"}
    if text_type == "gemma4_text":
        sizes["vocab_size_per_layer_input"] = vocab_size
    sizes |= {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied}
    if vision is None:
        return AutoConfig.for_model(model_type, **sizes)
    parts = {"text_config": {"model_type": text_type, **sizes}, "vision_config": dict(vision)}
    return AutoConfig.for_model(model_type, tie_word_embeddings=tied, audio_config=None, **parts)


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """The model with random numbers in all that it has, norms and biases included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


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
    extras: Sequence[str] = ("README.md", "LICENSE", "chat_template.jinja", "additional_chat_templates/short.jinja"),
    seed: int = 0,
    fused: bool = False,
    **settings: object,
) -> Path:
    """Save a tiny model into `folder`, by default in several shards and with other files that must survive.

    `fused` saves the experts of a layer as one tensor, as they are in memory.
    """

    def write(folder: Path) -> None:
        model = tiny_model(model_type, tied=tied, dtype=dtype, seed=seed, **settings)
        model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=not fused)
        for name in extras:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of the base model\r\nwith {{odd}} bytes\n", encoding="utf-8")

    asked = (model_type, tied, dtype, max_shard_size, tuple(extras), seed, fused, sorted(settings.items()))
    return kept(f"tiny {asked}", write, folder)


def as_read(manifest: Manifest) -> Manifest:
    """A manifest, perhaps one that lies, with its tensors as they follow from its edits when it is read."""
    joined = by_projection(manifest.edits, allow_overlap=True)
    tensors = tuple(replace(row, **vars(edit_at(row.place, joined))) for row in manifest.tensors)
    return replace(manifest, tensors=tensors)


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
