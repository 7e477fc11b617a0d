"""Attention weights in and out of a checkpoint's own layout: pure functions of the architecture's facts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from convert_attn.convert.archs.base import Architecture, Fused
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.weights.attention import AttentionWeights


def weight_shapes(arch: Architecture, geometry: Geometry, num_kv_heads: int) -> dict[str, tuple[int, ...]]:
    """Shape of each projection's weight as stored, by name below the block (bias: the output size)."""
    d, hidden = geometry.head_dim, geometry.hidden_size
    rows_q, rows_kv = geometry.num_heads * d, num_kv_heads * d
    rows: dict[str, tuple[int, int]] = {arch.output: (hidden, rows_q)}
    if isinstance(arch.qkv, Fused):
        rows[arch.qkv.qkv] = (rows_q + 2 * rows_kv, hidden)
    else:
        rows |= {arch.qkv.q: (rows_q, hidden), arch.qkv.k: (rows_kv, hidden), arch.qkv.v: (rows_kv, hidden)}
    return {name: (shape[::-1] if arch.transposed else shape) for name, shape in rows.items()}


def bias_shape(arch: Architecture, weight_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The bias of a weight: one number per output."""
    return (weight_shape[1] if arch.transposed else weight_shape[0],)


def split(arch: Architecture, geometry: Geometry, tensors: Mapping[str, Tensor]) -> AttentionWeights:
    """A block's tensors ("<projection>.weight" / ".bias") as attention weights, planes in half-split order."""
    heads, kv_heads, d = geometry.num_heads, geometry.num_kv_heads, geometry.head_dim
    sizes = [heads * d, kv_heads * d, kv_heads * d]

    def rows(name: str) -> Tensor:
        weight = tensors[f"{name}.weight"]
        return weight.T if arch.transposed else weight

    def bias(name: str) -> Tensor | None:
        return tensors.get(f"{name}.bias")

    if isinstance(arch.qkv, Fused):
        q, k, v = rows(arch.qkv.qkv).split(sizes)
        fused = bias(arch.qkv.qkv)
        biases = [None] * 3 if fused is None else list(fused.split(sizes))
    else:
        names = (arch.qkv.q, arch.qkv.k, arch.qkv.v)
        q, k, v = (rows(name) for name in names)
        biases = [bias(name) for name in names]
    per_head = [None if b is None else b.unflatten(0, (-1, d)) for b in biases]
    order = geometry.head_order()
    return AttentionWeights(
        q=q.unflatten(0, (heads, d))[:, order],
        k=k.unflatten(0, (kv_heads, d))[:, order],
        v=v.unflatten(0, (kv_heads, d)),
        o=rows(arch.output).unflatten(1, (heads, d)).transpose(0, 1),
        q_bias=None if per_head[0] is None else per_head[0][:, order],
        k_bias=None if per_head[1] is None else per_head[1][:, order],
        v_bias=per_head[2],
        o_bias=bias(arch.output),
    )


def join(arch: Architecture, geometry: Geometry, weights: AttentionWeights) -> dict[str, Tensor]:
    """The inverse of `split`, for any number of K/V heads, in the layout of `arch`."""
    back = torch.argsort(geometry.head_order())
    tensors: dict[str, Tensor] = {}

    def put(name: str, weight: Tensor, bias: Tensor | None) -> None:
        tensors[f"{name}.weight"] = (weight.T if arch.transposed else weight).contiguous()
        if bias is not None:
            tensors[f"{name}.bias"] = bias.contiguous()

    rows = [weights.q[:, back].flatten(0, 1), weights.k[:, back].flatten(0, 1), weights.v.flatten(0, 1)]
    biases = [
        None if weights.q_bias is None else weights.q_bias[:, back].flatten(),
        None if weights.k_bias is None else weights.k_bias[:, back].flatten(),
        None if weights.v_bias is None else weights.v_bias.flatten(),
    ]
    if isinstance(arch.qkv, Fused):
        present = [b for b in biases if b is not None]
        put(arch.qkv.qkv, torch.cat(rows), torch.cat(present) if present else None)
    else:
        for name, weight, bias in zip((arch.qkv.q, arch.qkv.k, arch.qkv.v), rows, biases, strict=True):
            put(name, weight, bias)
    put(arch.output, weights.o.transpose(0, 1).flatten(1), weights.o_bias)
    return tensors
