"""What the classes with a latent cache share: tensor names and shapes as in DeepSeek-V2's attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.archs.block_facts import Alibi
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.targets.base import Blueprint, Config, Converted, Shapes
from convert_attn.convert.weights.head_norm import HeadNorm
from convert_attn.convert.weights.latent import NORM_EPS, LatentWeights


def latent_form(blueprint: Blueprint) -> LatentCache:
    """Give the sizes of the latent cache."""
    if not isinstance(blueprint.form, LatentCache):
        raise TypeError("a class with a latent cannot hold K/V heads")
    return blueprint.form


@dataclass(frozen=True)
class Biases:
    """Which projections of the result have a bias.

    The key's bias stays only on the rotary key: on position-free keys it adds the same to every score. The value's
    bias moves to the output, and so does what the latent misses of a LayerNorm's mean.
    """

    q: bool
    kv_a: bool
    o: bool

    @classmethod
    def of(cls, blueprint: Blueprint) -> Biases:
        """From what the source has."""
        rotary = latent_form(blueprint).rope_dim > 0
        return cls(
            q="q" in blueprint.biases,
            kv_a=rotary and "k" in blueprint.biases,
            o=bool({"v", "o"} & blueprint.biases),
        )


def latent_shapes(blueprint: Blueprint, layer: int, attention: str) -> Shapes:
    """Give shapes below a layer's block.

    Args:
        attention: the attention module's name and a dot, "self_attn." or "attn.".
    """
    form, sizes = latent_form(blueprint).of_layer(layer), blueprint.sizes
    heads, d, hidden = sizes.num_heads, sizes.head_dim, sizes.hidden_size
    query, cached = heads * (d + form.rope_dim), form.rank + form.rope_dim
    has = Biases.of(blueprint)
    norm: Shapes = {f"{attention}kv_a_layernorm.weight": (form.rank,)} if form.norm else {}
    if sizes.norm is not None:
        norm[f"{attention}key_size_proj.weight"] = (sizes.kv_by_layer[layer] * d, hidden)
    shapes: Shapes = {
        f"{attention}q_proj.weight": (query, hidden),
        f"{attention}kv_a_proj_with_mqa.weight": (cached, hidden),
        f"{attention}kv_b_proj.weight": (heads * 2 * d, form.rank),
        f"{attention}o_proj.weight": (hidden, heads * d),
    }
    biases: Shapes = {
        f"{attention}q_proj.bias": (query,) if has.q else (),
        f"{attention}kv_a_proj_with_mqa.bias": (cached,) if has.kv_a else (),
        f"{attention}o_proj.bias": (hidden,) if has.o else (),
    }
    return shapes | norm | {name: shape for name, shape in biases.items() if shape}


def latent_tensors(blueprint: Blueprint, converted: Converted, attention: str) -> dict[str, Tensor]:
    """Give the tensors of `latent_shapes`."""
    if not isinstance(converted, LatentWeights):
        raise TypeError("a class with a latent cannot hold K/V heads")
    has, w = Biases.of(blueprint), converted
    tensors = {
        "q_proj.weight": torch.cat([w.q_nope, w.q_rope], 1).flatten(0, 1),
        "kv_a_proj_with_mqa.weight": torch.cat([w.down, w.k_rope]),
        "kv_b_proj.weight": torch.cat([w.up_k, w.up_v], 1).flatten(0, 1),
        "o_proj.weight": w.o.transpose(0, 1).flatten(1),
    }
    if w.norm:
        # a latent of typical size comes out of the norm as it goes in
        tensors["kv_a_layernorm.weight"] = w.down.new_full(w.down.shape[:1], (w.mean_power + NORM_EPS) ** 0.5)
    if w.sized is not None:
        tensors["key_size_proj.weight"] = w.sized.flatten(0, 1)
    if has.q and w.q_nope_bias is not None and w.q_rope_bias is not None:
        tensors["q_proj.bias"] = torch.cat([w.q_nope_bias, w.q_rope_bias], 1).flatten()
    if has.kv_a and w.k_rope_bias is not None:
        tensors["kv_a_proj_with_mqa.bias"] = torch.cat([w.down.new_zeros(w.down.shape[0]), w.k_rope_bias])
    if has.o:
        tensors["o_proj.bias"] = w.o.new_zeros(w.o.shape[1]) if w.o_bias is None else w.o_bias
    return {attention + name: tensor.contiguous() for name, tensor in tensors.items()}


def read_latent(config: Any, tensors: Mapping[str, Tensor], layer: int) -> LatentWeights:
    """Read a layer of our classes with a latent back: the inverse of `latent_tensors`.

    Args:
        config: typed, one with `LatentAttentionFields`.
        tensors: by name below the attention module, "q_proj.weight" and so on.
    """
    heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    query = tensors["q_proj.weight"].unflatten(0, (heads, nope + rope))
    compressed, up = tensors["kv_a_proj_with_mqa.weight"], tensors["kv_b_proj.weight"]
    rank = compressed.shape[0] - rope
    up = up.unflatten(0, (heads, -1))
    q_bias, kv_bias = tensors.get("q_proj.bias"), tensors.get("kv_a_proj_with_mqa.bias")
    q_biases = (None, None) if q_bias is None else q_bias.unflatten(0, (heads, -1)).split([nope, rope], 1)
    gain = tensors.get("kv_a_layernorm.weight")
    frequencies = config.rope_inv_freq[layer] if rope else []
    sized = tensors.get("key_size_proj.weight")
    together = bool(sized is not None and config.key_norm_together)
    return LatentWeights(
        q_nope=query[:, :nope],
        q_rope=query[:, nope:],
        down=compressed[:rank],
        k_rope=compressed[rank:],
        up_k=up[:, :nope],
        up_v=up[:, nope:],
        o=tensors["o_proj.weight"].unflatten(1, (heads, -1)).transpose(0, 1),
        inv_freq=torch.tensor(frequencies, dtype=torch.float64),
        q_nope_bias=q_biases[0],
        q_rope_bias=q_biases[1],
        k_rope_bias=None if kv_bias is None else kv_bias[rank:],
        o_bias=tensors.get("o_proj.bias"),
        norm=gain is not None,
        power=None if gain is None else gain.double().square() - NORM_EPS,
        sized=None if sized is None else sized.unflatten(0, (config.key_norm_heads, -1)),
        head_norm=None if sized is None else HeadNorm(eps=config.key_norm_eps, together=together),
    )


def latent_config(blueprint: Blueprint) -> Config:
    """Give the keys that our classes with a latent read (modeling/configuration_latent_attention.py)."""
    form, sizes, has = latent_form(blueprint), blueprint.sizes, Biases.of(blueprint)
    return {
        "kv_lora_rank": max(form.ranks),
        "kv_lora_ranks": list(form.ranks) if "rank" in form.varied else None,
        "qk_rope_head_dim": form.rope_dim,
        "qk_nope_head_dim": sizes.head_dim,
        "v_head_dim": sizes.head_dim,
        "qk_head_dim": sizes.head_dim + form.rope_dim,
        "head_dim": sizes.head_dim + form.rope_dim,
        "num_key_value_heads": sizes.num_heads,
        "softmax_scale": sizes.scale(0),
        "rope_inv_freq": [list(layer) for layer in blueprint.inv_freq] if form.rope_dim else None,
        "score_softcap": next(iter(sizes.softcaps), None),
        "alibi_slopes": list(position.slopes) if isinstance(position := sizes.position, Alibi) else None,
        "key_norm_heads": 0 if sizes.norm is None else sizes.num_kv_heads,
        "key_norm_together": sizes.norm is not None and sizes.norm.computes.together,
        "key_norm_eps": NORM_EPS if sizes.norm is None else sizes.norm.computes.eps,
        "latent_norm": form.norm,
        "latent_norm_eps": NORM_EPS,
        "q_bias": has.q,
        "kv_a_bias": has.kv_a,
        "o_bias": has.o,
    }
