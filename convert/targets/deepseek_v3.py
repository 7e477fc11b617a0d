"""Llama-like models with a latent cache as a dense DeepSeek-V3: a class that transformers and other engines ship.

DeepSeek-V3 puts an RMSNorm on the latent. One more latent channel that is a large constant C (zero weight, bias C)
makes it the identity: with norm weight C / sqrt(r + 1), the normalised latent is the latent up to |c|^2 / (2 C^2). The
softmax scale is fixed at (d + R)^-1/2, so its ratio to d^-1/2 goes into the query.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convert_attn.convert.form import Form, LatentCache
from convert_attn.convert.geometry import Geometry
from convert_attn.convert.latent import LatentWeights
from convert_attn.convert.targets.base import Blueprint, Config, Converted, Shapes, Target
from convert_attn.convert.targets.latent import latent_form, latent_shapes, latent_tensors
from convert_attn.convert.targets.llama_mla import block_config, renamed_classes

_ATTENTION = "self_attn."
_CONSTANT = 16384.0  # a power of two, exact in every dtype, and far above any latent of a normalised input


def _with_constant(blueprint: Blueprint) -> Blueprint:
    """The class's latent is one channel larger; kv_a and o have biases (`attention_bias`), q has none."""
    form = latent_form(blueprint)
    biases = (blueprint.biases | {"k", "o"}) - {"q"}
    return replace(blueprint, form=LatentCache(form.rank + 1, form.rope_dim), biases=biases)


def _shapes(blueprint: Blueprint) -> Shapes:
    larger = _with_constant(blueprint)
    norm: Shapes = {f"{_ATTENTION}kv_a_layernorm.weight": (latent_form(larger).rank,)}
    return latent_shapes(larger, _ATTENTION) | norm


def _tensors(blueprint: Blueprint, converted: Converted, layer: int) -> dict[str, Tensor]:
    if not isinstance(converted, LatentWeights):
        raise TypeError("a class with a latent cannot hold K/V heads")
    w, form, d = converted, latent_form(blueprint), blueprint.sizes.head_dim
    scale = ((d + form.rope_dim) / d) ** 0.5
    padded = replace(
        w,
        q_nope=w.q_nope * scale,
        q_rope=w.q_rope * scale,
        down=torch.cat([w.down, w.down.new_zeros(1, w.down.shape[1])]),
        up_k=torch.cat([w.up_k, torch.zeros_like(w.up_k[..., :1])], -1),
        up_v=torch.cat([w.up_v, torch.zeros_like(w.up_v[..., :1])], -1),
        k_rope_bias=w.k_rope.new_zeros(w.k_rope.shape[0]) if w.k_rope_bias is None else w.k_rope_bias,
    )
    tensors = latent_tensors(_with_constant(blueprint), padded, _ATTENTION)
    tensors[f"{_ATTENTION}kv_a_proj_with_mqa.bias"][form.rank] = _CONSTANT
    gain = w.down.new_full((form.rank + 1,), _CONSTANT / (form.rank + 1) ** 0.5)
    return tensors | {f"{_ATTENTION}kv_a_layernorm.weight": gain}


def _configure(blueprint: Blueprint) -> Config:
    form, sizes = latent_form(blueprint), blueprint.sizes
    theta = _theta(blueprint)
    block = {key: value for key, value in block_config(blueprint).items() if key not in ("mlp_bias", "sliding_window")}
    return block | {
        "kv_lora_rank": form.rank + 1,
        "q_lora_rank": None,
        "qk_rope_head_dim": form.rope_dim,
        "qk_nope_head_dim": sizes.head_dim,
        "v_head_dim": sizes.head_dim,
        "num_key_value_heads": sizes.num_heads,
        "attention_bias": True,
        "rope_interleave": False,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "first_k_dense_replace": sizes.num_layers,
        "num_nextn_predict_layers": 0,
        "n_routed_experts": 1,
        "n_shared_experts": 1,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": block["intermediate_size"],
    }


def _theta(blueprint: Blueprint) -> float:
    """The base of the source's frequencies, which are theta^(-2 p / d)."""
    config = blueprint.config
    return float((config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta") or 10000.0)


def _frequencies(blueprint: Blueprint) -> tuple[float, ...]:
    """theta^(-2 j / R): the class spreads its planes over the same range as the source does."""
    size = latent_form(blueprint).rope_dim
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    return tuple((_theta(blueprint) ** -exponents).tolist())


def _holds(sizes: Geometry, form: Form) -> bool:
    plain = sizes.rope_type == "default" and sizes.window is None
    return plain and isinstance(form, LatentCache) and form.rope_dim > 0


TARGET = Target(
    name="deepseek_v3",
    layout="native",
    # no bias on q in this class, no gain offset, no scaled embedding, no fused MLP, no sliding window
    sources=frozenset({"llama", "mistral"}),
    becomes="deepseek_v3",
    configure=_configure,
    holds=_holds,
    classes=renamed_classes("DeepseekV3"),
    shapes=_shapes,
    tensors=_tensors,
    form=LatentCache,
    fresh_config=True,
    frequencies=_frequencies,
)
