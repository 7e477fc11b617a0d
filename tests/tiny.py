"""Tiny random checkpoints of every known architecture, built from a config: no network, no fixed list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import convert_attn  # noqa: F401  registers our classes
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.attention_tensors import join, split
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import SharedHeads
from convert_attn.convert.archs.geometry import Geometry, geometry
from convert_attn.convert.targets import fitting
from convert_attn.convert.weights.attention import AttentionWeights

HEADS = 8
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}

# what of a family shows only where its config says so, at sizes at which it shows
OWN: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0, "sliding_window": 20},
    "qwen3": {"head_dim": 8},
    "cohere": {"use_qk_norm": True, "logit_scale": 1.0},
    "smollm3": {"no_rope_layers": [1, 0], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 5,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere2": {
        "head_dim": 8,
        "logit_scale": 1.0,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm": {"head_dim": 8, "attention_bias": True},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 20,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "starcoder2": {"sliding_window": 20},
    "gptj": {"rotary_dim": 4, "n_inner": 96},
    "gptj_gqa": {"rotary_dim": 4, "n_inner": 96},
    "codegen": {"rotary_dim": 4, "n_inner": 96},
    "codegen_gqa": {"rotary_dim": 4, "n_inner": 96},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 20},
    "gpt_neo_gqa": {"attention_types": [[["global", "local"], 1]], "window_size": 20},
    "opt": {"ffn_dim": 96},
    "opt_gqa": {"ffn_dim": 96},
}

# every architecture that some target can hold
_SIZES = Geometry(hidden_size=64, num_layers=2, num_heads=HEADS, num_kv_heads=HEADS, head_dim=8, context=64)
CONVERTIBLE = [name for name, arch in architectures().items() if fitting(arch, _SIZES, SharedHeads.of(HEADS // 2, 2))]


def tiny_model(model_type: str, kv_heads: int = HEADS, seed: int = 0, **options: Any) -> Any:
    """A random causal model, fp32, with norms and biases away from one and zero; 2 layers, 8 heads of 8."""
    arch = architectures()[model_type]
    values = (
        SIZES | OWN.get(model_type, {}) | ({arch.config_kv_heads: kv_heads} if arch.config_kv_heads else {}) | options
    )
    config = AutoConfig.for_model(model_type, **values)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "norm" in name:  # some have a weight for each head
                centre = 0.0 if name.endswith("bias") or (arch.norm and arch.norm.gain_offset) else 1.0
                parameter.normal_(centre, 0.2)
            else:
                parameter.normal_(0, 0.15)
    return model


def tiny_geometry(model: Any) -> tuple[Architecture, Geometry]:
    """The facts and sizes of a model in memory."""
    arch = architectures()[model.config.model_type]
    return arch, geometry(arch, model.config.to_dict(), "tiny")


def block_tensors(model: Any, layer: int) -> dict[str, torch.Tensor]:
    """A block's attention tensors by name below the block."""
    arch, _ = tiny_geometry(model)
    prefix = arch.base + arch.block.format(layer=layer)
    state = model.state_dict()
    return {name: state[prefix + name].clone() for name in sorted(arch.tensors) if prefix + name in state}


def get_attention(model: Any, layer: int) -> AttentionWeights:
    """A block's attention weights in float64."""
    arch, sizes = tiny_geometry(model)
    return split(arch, sizes, block_tensors(model, layer)).to(torch.float64)


def set_attention(model: Any, layer: int, weights: AttentionWeights) -> None:
    """Write attention weights (as many K/V heads as the model has) into a block."""
    arch, sizes = tiny_geometry(model)
    prefix = arch.base + arch.block.format(layer=layer)
    new = {prefix + name: tensor.float() for name, tensor in join(arch, sizes, weights).items()}
    _, unexpected = model.load_state_dict(new, strict=False)
    assert not unexpected


def logits_of(model: Any, length: int = 24, batch: int = 2) -> torch.Tensor:
    """Logits [batch, length, vocabulary] on fixed random tokens."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(1, SIZES["vocab_size"], (batch, length), generator=generator)
    with torch.no_grad():
        return model(input_ids=tokens).logits


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for what float32 rounds: 5e-6 of the largest logit, as another processor adds in another order."""
    torch.testing.assert_close(found, expected, atol=5e-6 * float(expected.abs().max()), rtol=1e-5)


def load(folder: Path, **options: Any) -> Any:
    """A checkpoint folder in fp32, without remote code: our classes are registered."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
