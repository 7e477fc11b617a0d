"""What calibration text tells of a layer: sums over its tokens, never the activations themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.maths.moments import Moments
from convert_attn.convert.maths.rotary import Offsets, measured_offsets
from convert_attn.convert.weights.functional import Attention

# Of the attention mass follows the prior, so that distances the text was too short for count. A floor that is even over
# all distances (0.05, 0.2) did not bring the farthest tokens nearer to the original (eval/benchmarks/far_tokens.py).
OFFSET_FLOOR = 0.05
_ROWS = 128  # queries of a window whose attention is looked at: evenly spaced where a window is longer


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Of one layer, float64; x is the block's input after the norm, p_its how head i weighs token s for query t.

    Where keys and values come from what an encoder gives, tokens s are its, and no distance is counted.

    Attributes:
        tokens: how many were seen.
        mean: [D] E[x].
        second: [D, D] E[x x^T].
        keys_mean: [D] E[sum_s p_its x_s] over heads and queries.
        keys: [D, D] E[sum_s p_its x_s x_s^T] over heads and queries: tokens by the attention they get.
        attended: [D, D] E[a a^T] with a = sum_s p_its x_s, over heads and queries: what values meet.
        histogram: [H, T] attention mass at each offset t - s (|t - s| where tokens look both ways), rows sum to one.
    """

    tokens: int
    mean: Tensor
    second: Tensor
    keys_mean: Tensor
    keys: Tensor
    attended: Tensor
    histogram: Tensor

    def offsets(self, context: int) -> Offsets:
        """Tell how far back the heads look, with a floor of the prior up to `context`."""
        return measured_offsets(self.histogram, context, OFFSET_FLOOR)

    def damped(self, prior: Moments, others: Moments | None = None) -> tuple[Moments, Moments, Moments]:
        """Give moments of tokens, keys and attended inputs, leaning on the prior where the text is short.

        D directions cannot be told from fewer tokens: the prior counts like D / 16 of them, and is scaled to the
        measured size. Every result then has full rank, whatever the text.

        Args:
            others: of what keys and values read, where that is not what queries read.
        """
        hidden = self.mean.shape[0]
        share = hidden / (hidden + 16 * self.tokens)

        def lean(measured: Tensor, mean: Tensor, guessed: Moments | None = others) -> Moments:
            guess = (prior if guessed is None else guessed).matrix()
            size = guess.diagonal().sum().clamp_min(1e-200)
            return Moments(mean, (1 - share) * measured + share * (measured.diagonal().sum() / size) * guess)

        return (
            lean(self.second, self.mean, prior),
            lean(self.keys, self.keys_mean),
            lean(self.attended, self.keys_mean),
        )


class Gathering:
    """Sums for one layer's statistics, batch by batch."""

    def __init__(self, hidden: int, heads: int, length: int, device: str) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self._tokens = self._rows = self._queries = 0
        self._mean, self._keys_mean, self._histogram = zeros(hidden), zeros(hidden), zeros(heads, length)
        self._second, self._keys, self._attended = (zeros(hidden, hidden) for _ in range(3))

    def attend(self, attention: Attention) -> Tensor:
        """Give the attention's output [B, T, D], its statistics added to the sums."""
        x, looked_at, asked = attention.x, attention.looked_at, attention.asked
        length = x.shape[1]
        flat = x.flatten(0, 1) if asked is None else x[asked]
        stride = -(-length // _ROWS)
        rows = torch.arange(stride - 1, length, stride, device=x.device)
        received = torch.zeros_like(looked_at[..., 0])  # [B, T] attention that each token gets
        counted = None if asked is None else asked[:, rows]
        for part, probabilities in attention.probabilities(rows):
            if counted is not None:
                probabilities = probabilities * counted[:, None, :, None]
            received += probabilities.sum((1, 2))
            mixed = (probabilities.flatten(1, 2) @ looked_at).flatten(0, 1)  # [B h r, D]
            self._attended += mixed.mT @ mixed
            if attention.rule.across:
                self._histogram[part] += 1
            else:
                self._histogram[part] += _by_offset(probabilities.sum(0), rows, both=not attention.rule.causal)
        heads = self._histogram.shape[0]
        self._tokens += flat.shape[0]
        queries = x.shape[0] * len(rows) if counted is None else int(counted.sum())
        self._rows += heads * queries
        self._queries += queries
        self._mean += flat.sum(0)
        self._second += flat.mT @ flat
        met = looked_at.flatten(0, 1)
        weighted = met * received.flatten()[:, None] / heads
        self._keys += met.mT @ weighted
        self._keys_mean += weighted.sum(0)
        return attention.output()

    def result(self) -> LayerStatistics:
        """Give the means."""
        return LayerStatistics(
            tokens=self._tokens,
            mean=self._mean / self._tokens,
            second=self._second / self._tokens,
            keys_mean=self._keys_mean / self._queries,
            keys=self._keys / self._queries,
            attended=self._attended / self._rows,
            histogram=self._histogram / self._histogram.sum(1, keepdim=True),
        )


def _by_offset(probabilities: Tensor, rows: Tensor, both: bool = False) -> Tensor:
    """[h, r, T] of queries at positions `rows`: [h, T], entry n the mass n tokens back, or away, in `both` ways."""
    length = probabilities.shape[-1]
    offsets = rows[:, None] - torch.arange(length, device=rows.device)
    offsets = offsets.abs() if both else offsets
    seen = offsets >= 0
    found = probabilities.new_zeros(len(probabilities), length, dtype=torch.float64)
    return found.index_add_(1, offsets[seen], probabilities[:, seen].double())
