"""Facts belong to the class: what a config.json says beside it, or a file holds beside it, changes nothing unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, edit_config, edit_tensors, save_tiny
from tiny import HEADS, load, logits_of, tiny_geometry, tiny_model

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.attention_tensors import split
from convert_attn.convert.archs.cache_form import form_of
from convert_attn.convert.archs.class_reading import class_biases, facts_of
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.heal.state.settings import Settings
from convert_attn.convert.weights.functional import Attention
from convert_attn.eval.measures.contenders import predicted_numbers

ROTARY = ("llama", "mistral", "qwen2", "gemma", "phi3")
# keys that some class reads and others do not, and sizes at which they would show
STRAY: dict[str, dict[str, Any]] = {
    "partial rotary": {"partial_rotary_factor": 0.5},
    "window": {"sliding_window": 5},
    "window of qwen2": {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 0},
    "layer types": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "chunks": {"attention_chunk_size": 4},
    "biases": {"attention_bias": True, "qkv_bias": True, "bias": True},
    "low-rank query": {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    "soft-capping": {"attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 2, "attention_multiplier": 3.0},
}


def _own_output(model: Any, layer: int, states: torch.Tensor) -> torch.Tensor:
    """What the class's attention makes of states, [B, T, D]: caught in a forward pass of the model."""
    arch, _ = tiny_geometry(model)
    path = arch.base + arch.block.format(layer=layer) + arch.output.rpartition(".")[0]
    module, seen = model.get_submodule(path), []

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        besides = [torch.zeros_like(args[1])] if arch.adds_stream else args[1:2]  # what it adds its output to
        return ((states, *besides, *args[2:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    handles = [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(lambda module, args, out: seen.append(out[0])),
    ]
    with torch.no_grad():
        model(input_ids=torch.zeros(states.shape[:2], dtype=torch.long), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("stray", STRAY)
def test_a_block_computes_what_its_class_computes(model_type: str, stray: str) -> None:
    model = tiny_model(model_type, **STRAY[stray])
    if model_type in ("qwen2", "qwen3") and stray == "layer types":  # read, and no window without its switch
        with pytest.raises(ConvertAttnError, match=r"Qwen[23]Model cannot be called"):
            tiny_geometry(model)
        return
    arch, sizes = tiny_geometry(model)
    states = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(3))
    state = model.state_dict()
    for layer in range(sizes.num_layers):
        stem = arch.base + arch.block.format(layer=layer)
        tensors = {name.removeprefix(stem): value for name, value in state.items() if name.startswith(stem)}
        ours = Attention(split(arch, sizes, tensors), states, sizes.block(layer).rule()).output()
        torch.testing.assert_close(ours, _own_output(model, layer, states), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"kv_heads": 2}, {"head_dim": 4}, {"kv_heads": 1}], ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_sizes_and_biases_are_those_of_the_parameters(name: str, options: dict[str, Any]) -> None:
    model = tiny_model(name, **options)
    arch, sizes = tiny_geometry(model)
    state = model.state_dict()
    output = state[f"{arch.base}{arch.block.format(layer=0)}{arch.output}.weight"]
    assert output.shape == (sizes.hidden_size, sizes.num_heads * sizes.head_dim)
    assert (sizes.num_heads, sizes.num_kv_heads) == (HEADS, options.get("kv_heads", HEADS))
    biases = class_biases(arch, facts_of(arch, model.config.to_dict(), "tiny"))
    assert biases == (frozenset("qkv") if name == "qwen2" else frozenset())


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "dynamic", "yarn"])
def test_frequencies_are_those_of_the_rotary_module(kind: str) -> None:
    more = {
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
        "yarn": {"original_max_position_embeddings": 16},
    }
    rope = {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0, **more.get(kind, {})}
    model = tiny_model("llama", rope_parameters=rope)
    sizes = tiny_geometry(model)[1]
    assert sizes.inv_freq == tuple(model.model.rotary_emb.inv_freq.double().tolist())
    assert sizes.rotary_scale == pytest.approx(model.model.rotary_emb.attention_scaling)
    assert (sizes.rotary_scale != 1) == (kind == "yarn")
    assert sizes.rope_type == kind


@pytest.mark.parametrize(("scaled", "by_layer"), [(True, False), (False, False), (True, True), (False, True)])
def test_scales_are_those_of_the_attention_modules(scaled: bool, by_layer: bool, tmp_path: Path) -> None:
    model = tiny_model("gpt2", scale_attn_weights=scaled, scale_attn_by_inverse_layer_idx=by_layer)
    sizes = tiny_geometry(model)[1]
    assert sizes.scales == tuple(block.attn.scaling for block in model.transformer.h)
    model.save_pretrained(tmp_path / "source")
    for to, options in (("mla", {"rank": 64}), ("gqa", {"groups": 8}), ("mqa", {"method": "first"})):
        convert(tmp_path / "source", to=to, output=tmp_path / to, **options)
        if to != "mqa":
            torch.testing.assert_close(logits_of(load(tmp_path / to)), logits_of(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("window", [5, 40, 64, 1000])
def test_windows_are_those_of_the_masks(name: str, window: int) -> None:
    raw = tiny_model(name, sliding_window=window).config.to_dict()
    sizes = geometry(architectures()[name], raw, "tiny")
    has = name in ("mistral", "phi3")
    assert sizes.windows == ((window if has else None),) * 2
    assert sizes.window == (window if has and window < 64 else None)
    assert typed_config(raw, "tiny").max_position_embeddings == 64


def test_attention_that_looks_ahead_is_refused(tmp_path: Path, command: Command) -> None:
    folder = edit_config(save_tiny(tmp_path / "source", "gemma"), use_bidirectional_attention=True)
    outcome = command("convert", folder, "--to", "gqa", "--groups", "2", "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "GemmaModel, with this config.json, lets tokens see others than those before them" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", ["q_proj.bias", "o_proj.bias", "q_norm.weight", "k_norm.weight", "q_a_proj.weight"])
@pytest.mark.parametrize("to", [("gqa", "--groups", "2"), ("mla", "--rank", "16", "--rope-dim", "8")])
def test_an_attention_tensor_without_a_place_is_refused_by_name(
    extra: str, to: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    name = f"model.layers.1.self_attn.{extra}"
    folder = save_tiny(tmp_path / "source", "llama")
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(64)}))
    outcome = command("convert", folder, "--to", *to, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert f"tensor '{name}' in shard 'model.safetensors' has no place in LlamaModel" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_bias_that_the_class_has_and_the_file_lacks_is_missing(tmp_path: Path, command: Command) -> None:
    folder = edit_config(save_tiny(tmp_path / "source", "llama"), attention_bias=True)
    outcome = command("convert", folder, "--to", "gqa", "--groups", "2", "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "tensor 'model.layers.0.self_attn.q_proj.bias' is missing" in outcome.err


def test_a_latent_cache_larger_than_the_source_warns(tmp_path: Path, command: Command) -> None:
    folder = save_tiny(tmp_path / "source", "llama", kv_heads=1)  # 2 x 8 numbers per token and layer
    sizes = ("--to", "mla", "--rank", "16", "--rope-dim", "8", "--output", tmp_path / "out")
    said = "this MLA's cache is larger than the source's: 192 bytes per token, 128 before"
    assert said in command("convert", folder, *sizes, "--dry-run").out
    assert said in json.loads(command("convert", folder, *sizes, "--dry-run", "--json").out)["warnings"][0]
    assert said in command("convert", folder, *sizes).out
    outcome = command("convert", folder, *sizes, "--json", "--overwrite")
    assert said in json.loads(outcome.out)["warnings"][0]
    smaller = ("--to", "mla", "--rank", "8", "--rope-dim", "8", "--output", tmp_path / "out", "--overwrite")
    assert "larger than the source" not in command("convert", folder, *smaller).out


def test_predicted_sizes_of_ranks_by_layer_are_the_real_ones() -> None:
    raw = {
        "model_type": "llama_mla",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "kv_lora_rank": 40,
        "kv_lora_ranks": [8, 40, 24],
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "rope_inv_freq": [[1.0, 0.1]] * 3,
    }
    assert predicted_numbers(raw, "tiny") == 8 + 40 + 24 + 3 * 4
    assert form_of(typed_config(raw, "tiny")).label(HEADS) == "MLA 24 + 4"


@pytest.mark.parametrize("entry", [4e-12, -8.6e-12, 0.0])
def test_a_kl_of_rounding_is_no_learning_rate(entry: float) -> None:
    with pytest.raises(UsageError, match="there is nothing to heal"):
        Settings(tokens=4096, batch_size=1).rate(64, 32, entry)
    assert Settings(tokens=4096, batch_size=1, lr=1e-4).rate(64, 32, entry) == 1e-4
    assert Settings(tokens=4096, batch_size=1, lm_weight=1.0).rate(64, 32, entry) > 0
    assert Settings(tokens=4096, batch_size=1).rate(64, 32, 1e-3) > 0
