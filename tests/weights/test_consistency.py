"""Weights that a plain class would read wrongly are refused by their headers, by every command alike."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.errors import AmnesiaError, LayoutError
from amnesia.live.loading import load_source
from amnesia.sources.resolve import resolve
from amnesia.weights.checkpoint import open_source
from support.commands import done, refused
from support.tiny import MOE_TYPES, save_tiny
from support.tiny_text import save_tiny_live

DOWN = "model.layers.1.mlp.down_proj"
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def model(tmp_path):
    folder = save_tiny_live(tmp_path / "m")
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder


def change(folder, added, removed=()):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name not in removed} | added, path)


def numbers(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


WEIGHT = f"{DOWN}.weight"
PACKED = {
    "scales of 8 bit integers": {WEIGHT: numbers(32, 48, dtype=torch.int8), f"{DOWN}.weight_scale": numbers(32, 1)},
    "integers alone": {WEIGHT: numbers(32, 48, dtype=torch.int8)},
    "scales of FP8": {WEIGHT: numbers(32, 48).to(torch.float8_e4m3fn), f"{DOWN}.weight_scale_inv": numbers(1, 1)},
    "scales elsewhere than in the MLP": {f"{Q}.weight_scale": numbers(1)},
    "scales of activations": {f"{DOWN}.input_scale": numbers(1)},
    "scales with an underscore": {f"{DOWN}_scale": numbers(32)},
    "MLX": {
        WEIGHT: numbers(32, 6, dtype=torch.uint32),
        f"{DOWN}.scales": numbers(32, 1),
        f"{DOWN}.biases": numbers(32, 1),
    },
    "bitsandbytes of 8 bits": {WEIGHT: numbers(32, 48, dtype=torch.int8), f"{DOWN}.SCB": numbers(32)},
    "bitsandbytes of 4 bits": {
        WEIGHT: numbers(768, 1, dtype=torch.uint8),
        f"{WEIGHT}.absmax": numbers(24),
        f"{WEIGHT}.quant_state.bitsandbytes__nf4": numbers(2, dtype=torch.uint8),
    },
}
INSTEAD = {
    "GPTQ": ("qweight", "qzeros", "scales", "g_idx"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape"),
    "HQQ": ("W_q", "scale", "zero"),
    "AQLM": ("codes", "codebooks", "scales"),
}


@pytest.mark.parametrize(
    ("added", "removed"),
    [*((added, ()) for added in PACKED.values())]
    + [({f"{DOWN}.{name}": numbers(4, 4) for name in names}, (WEIGHT,)) for names in INSTEAD.values()]
    + [({f"{Q}.{name}": numbers(4, 4) for name in names}, (f"{Q}.weight",)) for names in INSTEAD.values()],
    ids=[*PACKED, *INSTEAD, *(f"{name}, elsewhere than in the MLP" for name in INSTEAD)],
)
def test_packed_weights_are_refused_as_quantized_by_every_command(model, tmp_path, added, removed):
    change(model, added, removed)
    lines = {
        refused(*arguments)
        for arguments in (
            ("localize", model, "Japan"),
            ("edit", model, "--cell", "0:4", "-o", tmp_path / "out"),
            ("edit", model, "--cell", "0:4", "--format", "adapter", "-o", tmp_path / "out"),
            ("edit", model, "--cell", "0:4", "--in-place"),
        )
    }
    assert len(lines) == 1
    assert "are quantized (" in lines.pop()


@pytest.mark.parametrize("factor", ["lora_A", "lora_A.weight", "lora_B.default.weight", "lora_embedding_A"])
def test_an_unmerged_lora_is_refused_as_such_by_every_command(model, tmp_path, factor):
    change(model, {f"{DOWN}.{factor}": numbers(4, 48)})
    for arguments in (
        ("localize", model, "Japan"),
        ("edit", model, "--cell", "0:4", "-o", tmp_path / "out"),
        ("edit", model, "--cell", "0:4", "--in-place"),
    ):
        line = refused(*arguments)
        assert f"have an unmerged LoRA beside them ({DOWN}.{factor})" in line and "merge_and_unload" in line
    tensors = load_file(model / "model.safetensors")
    change(model, {f"{DOWN}.base_layer.weight": tensors[WEIGHT]}, (WEIGHT,))
    assert "unmerged LoRA" in refused("edit", model, "--cell", "0:4", "-o", tmp_path / "out")


def test_what_may_stand_beside_weights(model):
    change(
        model,
        {
            f"{Q}.bias": numbers(32),
            "model.layers.1.self_attn.rotary_emb.inv_freq": numbers(4),
            "model.layers.1.mlp.gate.weight": numbers(4, 32),
            "model.layers.1.mlp.gate.e_score_correction_bias": numbers(4),
            "model.layers.1.mlp.experts.gate_up_proj": numbers(4, 8, 8),
            "model.layers.1.mlp.experts.gate_up_proj_bias": numbers(4, 8),
            "model.layers.1.router.proj.weight": numbers(4, 32),
            "model.layers.1.router.per_expert_scale": numbers(4),
            "model.layers.1.layer_scalar": numbers(1),
            "model.layers.1.linear_attn.A_log": numbers(4),
            "model.layers.1.linear_attn.dt_bias": numbers(4),
            "v_head.summary.weight": numbers(1, 32),
        },
    )
    assert open_source(model).shape.n_layers == 3


@pytest.mark.parametrize("model_type", MOE_TYPES)
@pytest.mark.parametrize("fused", [False, True])
def test_experts_are_plain_until_they_have_scales(tmp_path, model_type, fused):
    source = save_tiny(tmp_path / "source", model_type, fused=fused, max_shard_size="1GB")
    names = [name for name in load_file(source / "model.safetensors") if "experts" in name]
    open_source(source)
    change(source, {f"{names[0].removesuffix('.weight')}_scale_inv": numbers(1)})
    with pytest.raises(LayoutError, match="are quantized"):
        open_source(source)


@pytest.mark.parametrize("n_layers", [4, 10_000_000, 2**62])
def test_layers_without_tensors_are_refused_before_a_model_is_built(model, tmp_path, monkeypatch, n_layers):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", lambda *_, **__: pytest.fail("it was built"))
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"num_hidden_layers": n_layers}))
    line = refused("localize", model, "Japan")
    assert f"has no tensors of layer 3, but config.json says that there are {n_layers} layers" in line
    assert line == refused("edit", model, "--cell", "0:4", "-o", tmp_path / "out")


def test_names_with_another_prefix_are_refused_by_every_command(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, model / "model.safetensors")
    assert refused("localize", model, "Japan") == refused("edit", model, "--cell", "0:4", "-o", tmp_path / "out")


def test_a_tensor_that_the_index_leaves_out_is_found_as_by_other_programs(tmp_path):
    folder = save_tiny_live(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_bytes())
    del document["weight_map"][WEIGHT]
    index.write_text(json.dumps(document))
    done("edit", folder, "--cell", "1:4", "-o", tmp_path / "out")
    before, after = (load_source(resolve(str(path))).out_weight(1) for path in (folder, tmp_path / "out"))
    assert torch.equal(after[:, 4], -before[:, 4])


def test_metadata_may_be_null(model, tmp_path):
    path = model / "model.safetensors"
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    rows = json.loads(content[8 : 8 + n]) | {"__metadata__": None}
    header = json.dumps(rows).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + n :])
    assert WEIGHT in load_file(path)
    done("edit", model, "--cell", "1:4", "-o", tmp_path / "out")
    load_source(resolve(str(tmp_path / "out")))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_named(model, name):
    (model / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(AmnesiaError, match=f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        load_source(resolve(str(model)))
    assert f"{name} is a Git LFS pointer" in refused("edit", model, "--cell", "1:4", "-o", model.parent / "out")
