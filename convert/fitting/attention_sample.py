"""Queries of a text, and what the original's attention does with them at one layer, in tiles.

A tile is some queries of some windows with the tokens that they may look at: half of all pairs of a query and a token
are ahead of it, and what is worked on at once stays near the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.maths.products import product
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import (
    OtherSide,
    Rule,
    attention_of,
    distance_bias,
    keys,
    may_not_look,
    queries,
    with_filling,
)

_SCORES = 2**27  # in a sample, of all heads: 512 MB for the original's, as much for what they count
_TILE_SCORES, _TILE_ROWS = 2**20, 128
_FEWEST = 16  # queries of a window; where windows are many or long, fewer windows are looked at instead


@dataclass(kw_only=True)
class Tile:
    """Some queries of a batch of windows.

    Attributes:
        batch: which of the sample's inputs.
        rows: where the queries are.
        positions: [r] the same, as numbers.
        length: the tokens 0..length-1 are all that a query may look at.
        hidden: [r, length], or [B, 1, r, length], True where one may not.
        scores: [B, H, r, length] of the original, before a soft cap and without what falls with the distance.
        importance: [B, H, r, length] what errors of scores count, rows sum to one; at first the original's attention.
        output: [B, r, D] of the original's attention.
        weight: [B, r, 1] what the square of an error of the output counts.
        asked: [B, 1, r, 1] 1 where a query counts and 0 where not; None: all do.
    """

    batch: int
    rows: slice
    positions: Tensor
    length: int
    hidden: Tensor
    scores: Tensor
    importance: Tensor
    output: Tensor
    weight: Tensor
    asked: Tensor | None = None

    def forget_scores(self) -> None:
        """Let go what is only needed for queries and keys."""
        self.scores = self.importance = self.scores.new_empty(0)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some windows of the text at one layer, [B, T, D] each.

    Attributes:
        original, converted: inputs after the norm in the original and in the conversion.
        output: what the original's attention gives.
        attended: the residual stream after it.
        side: of an encoder-decoder; where the rule says so, keys and values come from it, else from the inputs.
    """

    original: Tensor
    converted: Tensor
    output: Tensor
    attended: Tensor
    side: OtherSide | None = None

    def looked_at(self, rule: Rule, inputs: Tensor) -> Tensor:
        """Tell what keys and values are made of, for one of both inputs."""
        return self.side.states if self.side is not None and rule.across else inputs

    def hidden(self, rule: Rule, seen: int, positions: Tensor) -> Tensor:
        """[r, seen], or [B, 1, r, seen], True where a query at one of r positions may not look."""
        hidden = may_not_look(rule, seen, positions)
        return hidden if self.side is None else with_filling(hidden, rule, self.side)

    def asked(self, rows: slice) -> Tensor | None:
        """[B, 1, r, 1] 1 where a query counts and 0 where not; None: all do."""
        if self.side is None or self.side.asked is None:
            return None
        return self.side.asked[:, None, rows, None].to(torch.float32)


@dataclass(frozen=True)
class Sample:
    """Windows of the text at one layer.

    Attributes:
        inputs: [B, T, D] batches of what the converted attention reads.
        looked_at: [B, M, D] of what its keys and values are made of.
        tiles: batch by batch.
    """

    inputs: list[Tensor]
    looked_at: list[Tensor]
    tiles: list[Tile]


def sampled_windows(count: int, length: int, heads: int) -> Tensor:
    """Tell which of `count` windows of `length` tokens are in a sample."""
    most = max(1, _SCORES // (heads * _FEWEST * length))
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def sampled_rows(windows: int, length: int, heads: int) -> slice:
    """Tell which positions of each sampled window are queries; half of its pairs are never looked at."""
    stride = min(length, max(1, -(-windows * heads * length * length // (2 * _SCORES))))
    return slice(stride - 1, length, stride)


def windows_at_once(length: int, heads: int) -> int:
    """Tell how many windows make a batch of a sample."""
    return max(1, _TILE_SCORES // (heads * length * min(length, _TILE_ROWS)))


def sample_original(
    weights: AttentionWeights,
    batches: Sequence[Batch],
    rule: Rule,
    order: Sequence[int],
) -> Sample:
    """Tell what the original's attention does on a sample.

    Args:
        order: the original's query heads in the order of the conversion's.
    """
    windows, length = sum(len(part.original) for part in batches), batches[0].original.shape[1]
    every = range(*sampled_rows(windows, length, len(weights.q)).indices(length))
    inputs = [part.converted for part in batches]
    looked_at = [part.looked_at(rule, part.converted) for part in batches]
    found = Sample(inputs, looked_at, [])
    for number, batch in enumerate(batches):
        original, output, attended = batch.original, batch.output, batch.attended
        key = keys(weights, batch.looked_at(rule, original), rule)
        for begin in range(0, len(every), _TILE_ROWS):
            part = every[begin : begin + _TILE_ROWS]
            rows, seen = slice(part.start, part[-1] + 1, part.step), rule.seen(part[-1], key.shape[2])
            positions = torch.tensor(part, device=original.device)
            hidden, asked = batch.hidden(rule, seen, positions), batch.asked(rows)
            query = queries(weights, original[:, rows], rule, positions)
            scores = scores_of(query * rule.scale, key[:, :, :seen])
            bias = distance_bias(rule, seen, positions)
            attention = attention_of(scores.clone(), rule, hidden=hidden, bias=bias, sinks=weights.sinks)
            weight = attended[:, rows].square().sum(-1, keepdim=True).reciprocal()
            tile = Tile(
                batch=number,
                rows=rows,
                positions=positions,
                length=seen,
                hidden=hidden,
                asked=asked,
                scores=scores[:, order],
                importance=attention[:, order],
                output=output[:, rows],
                weight=weight if asked is None else weight * asked[:, 0],
            )
            found.tiles.append(tile)
    return found


def scores_of(query: Tensor, key: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Tensor:
    """Give products of queries and the keys that they share: [B, H, r, e] on [B, K, T, e]: [B, H, r, T]."""
    return _by_group(query, key.mT, multiply)


def mixed(attention: Tensor, value: Tensor) -> Tensor:
    """Give values under the attention of the heads that share them: [B, H, r, T] of [B, K, T, a]: [B, H, r, a]."""
    return _by_group(attention, value)


def _by_group(left: Tensor, right: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = product) -> Tensor:
    """[B, H, r, m] times the [B, K, m, n] of a head's group: [B, H, r, n], one product for all heads of a group."""
    groups, rows = right.shape[1], left.shape[2]
    grouped = left.unflatten(1, (groups, -1)).flatten(2, 3)  # [B, K, H / K r, m]
    found: Tensor = multiply(grouped, right).unflatten(2, (-1, rows)).flatten(1, 2)
    return found


def gathered(parts: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """The transpose of both, summed over queries and heads that share: [B, H, r, T], [B, H, r, e] -> [B, K, T, e]."""
    left, right = (part.unflatten(1, (heads, -1)).flatten(2, 3) for part in (parts, tokens))
    return product(left.mT, right)
