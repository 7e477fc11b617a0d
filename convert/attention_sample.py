"""Some queries of some windows of a text, and what the original's attention does with them at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.functional import Attention, Rule, keys, may_not_look, queries, values

_PAIRS = 2**21  # of a query and a token in the sample, for each head
_FEWEST = 16  # queries of a window; where windows are many or long, fewer windows are looked at instead


@dataclass(frozen=True)
class Sample:
    """Some windows of the text at one layer, and some queries of each.

    Attributes:
        inputs: [B, T, D] batches of what the converted attention reads.
        scores: [B, H, r, T] of the original.
        attention: [B, H, r, T] of the original, rows sum to one.
        outputs: [B, r, D] of the original's attention.
        weights: [B, r, 1] what the square of an error of the output counts.
        rows: [r] positions of the queries.
    """

    inputs: list[Tensor]
    scores: list[Tensor]
    attention: list[Tensor]
    outputs: list[Tensor]
    weights: list[Tensor]
    rows: Tensor


def sampled_windows(count: int, length: int) -> Tensor:
    """Which of `count` windows of `length` tokens are in a sample."""
    most = max(1, _PAIRS // (_FEWEST * length))
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def sampled_rows(windows: int, length: int) -> Tensor:
    """Which positions of each sampled window are queries."""
    stride = max(1, -(-windows * length * length // _PAIRS))
    return torch.arange(min(stride, length) - 1, length, stride)


def sample_original(
    weights: AttentionWeights, batches: Sequence[tuple[Tensor, Tensor, Tensor]], rule: Rule, order: Sequence[int]
) -> Sample:
    """What the original's attention does on a sample.

    Args:
        batches: of inputs after the norm in the original and in the conversion [B, T, D], and of residual streams
            in front of the original's attention.
        order: the original's query heads in the order of the conversion's.
    """
    windows, length = sum(len(part) for part, _, _ in batches), batches[0][0].shape[1]
    rows = sampled_rows(windows, length).to(batches[0][0].device)
    hidden = may_not_look(rule, length, rows)
    found = Sample([], [], [], [], [], rows)
    for original, converted, stream in batches:
        query, key = queries(weights, original[:, rows], rule, rows), keys(weights, original, rule)
        scores = scores_of(query * rule.scale, key)
        attention = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out = Attention(weights, original, rule).output(mixed(attention, values(weights, original)).transpose(1, 2))
        found.inputs.append(converted)
        found.scores.append(scores[:, order])
        found.attention.append(attention[:, order])
        found.outputs.append(out)
        found.weights.append((stream[:, rows] + out).square().sum(-1, keepdim=True).reciprocal())
    return found


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """Products of queries and the keys that they share: [B, H, r, e] on [B, K, T, e]: [B, H, r, T]."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    found: Tensor = (grouped @ key[:, :, None].mT).flatten(1, 2)
    return found


def mixed(attention: Tensor, value: Tensor) -> Tensor:
    """Values under the attention of the heads that share them: [B, H, r, T] of [B, K, T, a]: [B, H, r, a]."""
    grouped = attention.unflatten(1, (value.shape[1], -1))
    found: Tensor = (grouped @ value[:, :, None]).flatten(1, 2)
    return found


def gathered(parts: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """The transpose of both, summed over queries and heads that share: [B, H, r, T], [B, H, r, e] -> [B, K, T, e]."""
    summed: Tensor = (parts.mT @ tokens).unflatten(1, (heads, -1)).sum(2)
    return summed
