"""Attention weights as every method sees them, whatever the checkpoint's own layout.

Shape letters, here and in `methods/`: D hidden size, H query heads, K key/value heads (K <= H), G shared
heads after conversion, d head size, L layers. Query head i reads key/value head i // (H / K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionWeights:
    """One block's projections, acting on a column vector x [D]: q_i = q[i] @ x + q_bias[i].

    The block's output is sum_i o[i] @ (sum_t p_it v[i]) + o_bias.

    Attributes:
        q: [H, d, D].
        k: [K, d, D].
        v: [K, d, D].
        o: [H, D, d].
        q_bias: [H, d] or None where the layer has none.
        k_bias: [K, d] or None.
        v_bias: [K, d] or None.
        o_bias: [D] or None.
        q_gain: [H, d] the stored weight of a norm on queries, or None where queries are as projected.
        k_gain: [K, d] the same for keys.
        q_shift, k_shift: [H, d] and [K, d] the biases of those norms, or None.
        sinks: [H] the score of what a query head looks at besides its tokens, or None.
        order: the original's number of each query head, empty where they are as they were.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_gain: Tensor | None = None
    k_gain: Tensor | None = None
    q_shift: Tensor | None = None
    k_shift: Tensor | None = None
    sinks: Tensor | None = None
    order: tuple[int, ...] = ()

    @property
    def num_heads(self) -> int:
        """H."""
        return self.q.shape[0]

    @property
    def num_kv_heads(self) -> int:
        """K."""
        return self.k.shape[0]

    @property
    def head_dim(self) -> int:
        """d."""
        return self.q.shape[1]

    @property
    def queries_per_kv(self) -> int:
        """H / K."""
        return self.num_heads // self.num_kv_heads

    def to(self, dtype: torch.dtype) -> AttentionWeights:
        """Give the same weights in another dtype (a tensor already of that dtype is not copied)."""
        changed: dict[str, Any] = {
            name: value.to(dtype) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


def map_query_heads(weights: AttentionWeights, function: Callable[[Tensor], Tensor]) -> AttentionWeights:
    """`function` applied to each tensor whose first axis is the query heads; what is None stays None."""
    return replace(
        weights,
        q=function(weights.q),
        o=function(weights.o),
        q_bias=None if weights.q_bias is None else function(weights.q_bias),
        q_gain=None if weights.q_gain is None else function(weights.q_gain),
        q_shift=None if weights.q_shift is None else function(weights.q_shift),
        sinks=None if weights.sinks is None else function(weights.sinks),
    )


def permute_kv_heads(weights: AttentionWeights, order: list[int]) -> AttentionWeights:
    """Symmetry 1: heads in another order, each key/value head with its own query heads.

    Args:
        order: a permutation of range(K); key/value head order[n] becomes head n.
    """
    m = weights.queries_per_kv
    query_order = [kv * m + n for kv in order for n in range(m)]
    queries = map_query_heads(weights, lambda heads: heads[query_order])
    return map_kv_heads(queries, lambda heads: heads[order])


def drop_key_bias(weights: AttentionWeights) -> AttentionWeights:
    """Symmetry 2: without rotary position q . k_bias is the same for every key; softmax removes it.

    The tensor stays, as zeros: the class that holds the result still has the parameter. Not for weights with a norm on
    keys or with sinks, nor under a soft cap, where it counts.
    """
    if weights.k_bias is None:
        return weights
    return replace(weights, k_bias=torch.zeros_like(weights.k_bias))


def fold_value_bias(weights: AttentionWeights) -> AttentionWeights:
    """Symmetry 3: softmax rows sum to one, so o_bias += sum_i o_i v_bias_i, under any position encoding.

    Weights without an output bias to fold into are returned as they are, and so are those with sinks: what a sink
    takes is missing from the sum.
    """
    if weights.v_bias is None or weights.o_bias is None or weights.sinks is not None:
        return weights
    folded = weights.o_bias.to(torch.float64)
    for head, output in enumerate(weights.o):  # one head at a time: no float64 copy of all of them
        bias = weights.v_bias[head // weights.queries_per_kv]
        folded = folded + output.to(torch.float64) @ bias.to(torch.float64)
    zero = torch.zeros_like(weights.v_bias)
    return replace(weights, v_bias=zero, o_bias=folded.to(weights.o_bias.dtype))


def map_kv_heads(weights: AttentionWeights, function: Callable[[Tensor], Tensor]) -> AttentionWeights:
    """`function` applied to each tensor whose first axis is the key/value heads; what is None stays None."""
    return replace(
        weights,
        k=function(weights.k),
        v=function(weights.v),
        k_bias=None if weights.k_bias is None else function(weights.k_bias),
        v_bias=None if weights.v_bias is None else function(weights.v_bias),
        k_gain=None if weights.k_gain is None else function(weights.k_gain),
        k_shift=None if weights.k_shift is None else function(weights.k_shift),
    )


def replicate_kv_heads(weights: AttentionWeights, num_kv_heads: int) -> AttentionWeights:
    """Give each key/value head repeated so that there are `num_kv_heads` (a multiple of K): the same function."""
    times = num_kv_heads // weights.num_kv_heads
    return map_kv_heads(weights, lambda heads: heads.repeat_interleave(times, 0))
