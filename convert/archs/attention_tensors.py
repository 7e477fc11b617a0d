"""Attention weights in and out of a checkpoint's own layout: pure functions of the architecture's facts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.weights.attention import AttentionWeights


def weight_shapes(arch: Architecture, geometry: Geometry, num_kv_heads: int) -> dict[str, tuple[int, ...]]:
    """Give shape of each projection's weight as stored, by name below the block (bias: the output size)."""
    rows = arch.qkv.rows(geometry.num_heads, num_kv_heads, geometry.head_dim)
    shapes = {name: (count, geometry.hidden_size) for name, count in rows.items()}
    shapes[arch.output] = (geometry.hidden_size, geometry.num_heads * geometry.head_dim)
    return {name: arch.row_shape(shape) for name, shape in shapes.items()}


def extra_shapes(arch: Architecture, geometry: Geometry, num_kv_heads: int) -> dict[str, tuple[int, ...]]:
    """Give shape of what the attention has besides its projections, by the tensor's name below the block."""
    shapes: dict[str, tuple[int, ...]] = {arch.sinks: (geometry.num_heads,)} if geometry.sinks else {}
    if geometry.norm is not None and arch.q_norm:
        for name, heads in ((arch.q_norm, geometry.num_heads), (arch.k_norm, num_kv_heads)):
            for kind in geometry.norm.tensors:
                shapes[f"{name}.{kind}"] = geometry.norm.shape(heads, geometry.head_dim)
    return shapes


def bias_shape(arch: Architecture, weight_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the bias of a weight: one number per output."""
    return arch.row_shape(weight_shape)[:1]


def split(arch: Architecture, geometry: Geometry, tensors: Mapping[str, Tensor]) -> AttentionWeights:
    """Give a block's tensors, by name below the block, as attention weights, planes in half-split order.

    Raises:
        ValueError: a weight is missing.
    """
    heads, order = geometry.num_heads, geometry.head_order()
    names = dict.fromkeys(arch.qkv.roles.values())
    weights = {name: arch.rows(tensors[f"{name}.weight"]) for name in names}
    biases = {name: bias for name in names if (bias := tensors.get(f"{name}.bias")) is not None}
    # by the layer's own tensors, whose number of K/V heads may be another than that of the next layer
    kv_heads = int(arch.qkv.kv_heads({name: len(rows) for name, rows in weights.items()}, heads, geometry.head_dim))
    q, k, v = arch.qkv.split(weights, heads, kv_heads)
    q_bias, k_bias, v_bias = arch.qkv.split(biases, heads, kv_heads)
    if q is None or k is None or v is None:
        raise ValueError(f"a block of {arch.model_type} lacks queries, keys or values")

    def of_norm(kind: str) -> tuple[Tensor | None, Tensor | None]:
        norm = geometry.norm
        if norm is None or not arch.q_norm or kind not in norm.tensors:
            return None, None
        sides = ((arch.q_norm, heads), (arch.k_norm, kv_heads))
        found = [norm.read(tensors[f"{name}.{kind}"], count)[:, order] for name, count in sides]
        return found[0], found[1]

    (q_gain, k_gain), (q_shift, k_shift) = of_norm("weight"), of_norm("bias")
    return AttentionWeights(
        q=q[:, order],
        k=k[:, order],
        v=v,
        o=arch.rows(tensors[f"{arch.output}.weight"]).unflatten(1, (heads, -1)).transpose(0, 1),
        q_bias=None if q_bias is None else q_bias[:, order],
        k_bias=None if k_bias is None else k_bias[:, order],
        v_bias=v_bias,
        o_bias=tensors.get(f"{arch.output}.bias"),
        q_gain=q_gain,
        k_gain=k_gain,
        q_shift=q_shift,
        k_shift=k_shift,
        sinks=tensors[arch.sinks] if geometry.sinks else None,
    )


def join(arch: Architecture, geometry: Geometry, weights: AttentionWeights) -> dict[str, Tensor]:
    """Give the inverse of `split`, for any number of K/V heads, in the layout of `arch`."""
    back = torch.argsort(geometry.head_order())
    q_bias, k_bias = (None if b is None else b[:, back] for b in (weights.q_bias, weights.k_bias))
    stored = arch.qkv.join((weights.q[:, back], weights.k[:, back], weights.v))
    stored[arch.output] = weights.o.transpose(0, 1).flatten(1)
    tensors = {f"{name}.weight": arch.rows(weight).contiguous() for name, weight in stored.items()}
    biases = arch.qkv.join((q_bias, k_bias, weights.v_bias))
    if weights.o_bias is not None:
        biases[arch.output] = weights.o_bias
    tensors |= {f"{name}.bias": bias.contiguous() for name, bias in biases.items()}
    if weights.sinks is not None:
        tensors[arch.sinks] = weights.sinks
    of_norms = {
        f"{arch.q_norm}.weight": weights.q_gain,
        f"{arch.k_norm}.weight": weights.k_gain,
        f"{arch.q_norm}.bias": weights.q_shift,
        f"{arch.k_norm}.bias": weights.k_shift,
    }
    for name, part in of_norms.items():
        if geometry.norm is not None and part is not None:
            tensors[name] = geometry.norm.write(part[:, back]).contiguous()
    return tensors
