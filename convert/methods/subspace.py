"""Optimal shared heads: the rank-d factorisation of what a group's heads do to scores and outputs.

- V, and K without rotary position: Eckart-Young on the stacked output and score forms, globally optimal.
- K under rotary position: alternating least squares over one shared K and one query map per head, with the
  rotation averaged over the offsets a head attends to (`maths.shared_key`).
- K behind a norm: the mean of the heads, as no map of a query can undo a norm (`maths.normed_keys`).
- Which heads form a group: the balanced partition with the smallest residual of both.

The query and output projections change too, but are not cached: shapes and cache are those of averaged GQA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convert_attn.convert.maths.grouping import Group, best_partition, contiguous
from convert_attn.convert.maths.head_sharing import Stack, damping, double
from convert_attn.convert.maths.moments import gram, own_gram
from convert_attn.convert.maths.normed_keys import NormedKeys
from convert_attn.convert.maths.shared_key import RotaryKeys, fit_rotary, rotary_residuals
from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.methods.latent_subspace import compress
from convert_attn.convert.weights.attention import (
    AttentionWeights,
    drop_key_bias,
    fold_value_bias,
)


@dataclass(frozen=True)
class _Layer:
    """A layer's heads, ready to be shared: what its keys and its values weigh and how they overlap."""

    keys: Stack | RotaryKeys | NormedKeys
    values: Stack
    queries_per_kv: int

    @classmethod
    def of(cls, weights: AttentionWeights, context: LayerContext) -> _Layer:
        moments, per_kv = context.moments, weights.queries_per_kv
        queries = own_gram(weights.q, weights.q_bias, moments)  # [H, d, d]
        outputs = torch.stack([o.mT @ o for o in map(double, weights.o)])  # [H, d, d]
        keys = gram(weights.k, weights.k_bias, context.key_moments)
        values = Stack(
            outputs.unflatten(0, (-1, per_kv)).sum(1), gram(weights.v, weights.v_bias, context.value_moments)
        )
        if context.norm is not None and weights.k_gain is not None:
            return cls(NormedKeys.of(keys, weights.k_gain, context.norm), values, per_kv)
        if context.rotary is None:
            return cls(Stack(queries.unflatten(0, (-1, per_kv)).sum(1), keys), values, per_kv)
        return cls(
            RotaryKeys(
                queries=queries,
                gram=keys,
                rotary=context.rotary,
                offsets=context.offsets,
                damping=damping(context.epsilon),
            ),
            values,
            per_kv,
        )

    def costs(self, groups: list[Group]) -> list[float]:
        """Give the share of score energy plus the share of output energy that each group would lose."""
        key_energy, value_energy = max(self.keys.energy, 1e-200), max(self.values.energy, 1e-200)
        value_loss = [self.values.lost(group) / value_energy for group in groups]
        if not isinstance(self.keys, RotaryKeys):
            key_loss = [self.keys.lost(group) for group in groups]
        else:
            key_loss = rotary_residuals(self.keys, groups)
        return [k / key_energy + v for k, v in zip(key_loss, value_loss, strict=True)]

    def share_keys(self, groups: list[Group]) -> list[tuple[Tensor, Tensor]]:
        """For each group the mixing [d, n, d] of its keys and the map [m, d, d] of each of its query heads."""
        if isinstance(self.keys, RotaryKeys):
            return fit_rotary(self.keys, groups)
        if isinstance(self.keys, NormedKeys):
            d = self.values.root.shape[-1]
            as_it_is = torch.eye(d, dtype=torch.float64, device=self.keys.sizes.device)
            return [
                (self.keys.mixing(list(group), d), as_it_is.repeat(len(group) * self.queries_per_kv, 1, 1))
                for group in groups
            ]
        shared = (self.keys.share(list(group)) for group in groups)
        return [(mixing, out.mT.repeat_interleave(self.queries_per_kv, 0)) for mixing, out in shared]


def _mix(mixing: Tensor, heads: Tensor) -> Tensor:
    """One shared head: mixing [d, n, d], heads [n, d] or [n, d, D] -> [1, d] or [1, d, D], in the heads' dtype."""
    shared = torch.stack([mixing[:, k] @ double(head) for k, head in enumerate(heads)]).sum(0)
    return shared.to(heads.dtype)[None]


def _apply(maps: Tensor, heads: Tensor) -> Tensor:
    """maps [n, d, d] @ heads [n, d, ...], head by head, in the heads' dtype."""
    return torch.stack([(m @ double(head)).to(heads.dtype) for m, head in zip(maps, heads, strict=True)])


def _share_group(
    weights: AttentionWeights, layer: _Layer, group: Group, keys: tuple[Tensor, Tensor]
) -> AttentionWeights:
    """One group as attention weights of its own, with one key/value head; `keys` as of `_Layer.share_keys`."""
    index, per_kv = list(group), weights.queries_per_kv
    query_index = [kv * per_kv + n for kv in index for n in range(per_kv)]
    key_mixing, query_maps = keys
    value_mixing, expansion = layer.values.share(index)
    q_bias, k_bias, v_bias = weights.q_bias, weights.k_bias, weights.v_bias
    return AttentionWeights(
        q=_apply(query_maps, weights.q[query_index]),
        k=_mix(key_mixing, weights.k[index]),
        v=_mix(value_mixing, weights.v[index]),
        o=_apply(expansion.mT.repeat_interleave(per_kv, 0), weights.o[query_index].mT).mT,
        q_bias=None if q_bias is None else _apply(query_maps, q_bias[query_index]),
        k_bias=None if k_bias is None else _mix(key_mixing, k_bias[index]),
        v_bias=None if v_bias is None else _mix(value_mixing, v_bias[index]),
        q_gain=None if weights.q_gain is None else weights.q_gain[query_index],
        k_gain=None if weights.k_gain is None else weights.k_gain[index].mean(0, keepdim=True),
        q_shift=None if weights.q_shift is None else weights.q_shift[query_index],
        k_shift=None if weights.k_shift is None else weights.k_shift[index].mean(0, keepdim=True),
        sinks=None if weights.sinks is None else weights.sinks[query_index],
    )


def share(weights: AttentionWeights, groups: int, context: LayerContext) -> AttentionWeights:
    """Give shared heads that minimise the error of scores and outputs under the context's moments."""
    counts = context.capped or weights.k_gain is not None or weights.sinks is not None
    if context.rotary is None and not counts:
        weights = drop_key_bias(weights)
    weights = fold_value_bias(weights)
    layer = _Layer.of(weights, context)
    if context.fixed_order:
        partition = contiguous(weights.num_kv_heads, groups)
    else:
        affinity = layer.keys.affinity() + layer.values.affinity()
        partition = best_partition(weights.num_kv_heads, groups, weights.head_dim, layer.costs, affinity)
    shared = _room(weights, groups)
    for n, (group, keys) in enumerate(zip(partition, layer.share_keys(partition), strict=True)):
        part = vars(_share_group(weights, layer, group, keys))
        for name, room in vars(shared).items():
            if isinstance(room, Tensor) and name != "o_bias":
                size = len(part[name])
                room[n * size : (n + 1) * size] = part[name]
    if isinstance(layer.keys, NormedKeys) and context.norm is not None and shared.k_gain is not None:
        shrunk = (shared.k_gain + context.norm.offset) * layer.keys.shrinkage(partition) - context.norm.offset
        shared = replace(shared, k_gain=shrunk)
    per_kv = weights.queries_per_kv
    return replace(shared, order=tuple(kv * per_kv + n for group in partition for kv in group for n in range(per_kv)))


def _room(weights: AttentionWeights, groups: int) -> AttentionWeights:
    """Where the groups' results go, one by one: joining them at the end would hold the layer twice."""

    def fewer(heads: Tensor | None) -> Tensor | None:
        return None if heads is None else heads.new_empty(groups, *heads.shape[1:])

    return replace(
        weights,
        q=torch.empty_like(weights.q),
        k=weights.k.new_empty(groups, *weights.k.shape[1:]),
        v=weights.v.new_empty(groups, *weights.v.shape[1:]),
        o=torch.empty_like(weights.o),
        q_bias=None if weights.q_bias is None else torch.empty_like(weights.q_bias),
        k_bias=fewer(weights.k_bias),
        v_bias=fewer(weights.v_bias),
        q_gain=None if weights.q_gain is None else torch.empty_like(weights.q_gain),
        k_gain=fewer(weights.k_gain),
        q_shift=None if weights.q_shift is None else torch.empty_like(weights.q_shift),
        k_shift=fewer(weights.k_shift),
        sinks=None if weights.sinks is None else torch.empty_like(weights.sinks),
    )


METHOD = Method(
    name="subspace",
    summary="optimal shared heads or latent: least squares on scores and outputs",
    source="this project; Eckart & Young 1936 on the stacked score and output forms",
    share=share,
    compress=compress,
    chooses_sizes=True,
    calibration="optional",
    refit=True,
)
