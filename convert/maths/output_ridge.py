"""The output projection by ridge regression, held back as strongly as does best on text that it was not fitted on.

What the output of a converted layer lacks has two parts: what this layer itself has lost, and what the residual stream
brings along from the layers before it. Both are regressed on the heads' outputs, each with a ridge of its own. The
first can be told from little text. The second is mostly nothing that this layer could know of: fitted as if it were,
it is fitted to the text, at every layer anew, and what was falsely learnt adds up.

Rows count relative to the residual stream, or to what is missing where that is more: the first token's state is a
hundred times as large as others in many models, and a token whose state has gone astray is not worth a fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Tried for each part, as shares of the mean square of a head output's channels."""


@dataclass
class Regression:
    """Sums over a text: heads' outputs [n, H a] against what is missing [n, D], float64.

    Attributes:
        gram: [m, m], m = H a, and one more where there is a bias.
        own, inherited: [m, D].
    """

    gram: Tensor | None = None
    own: Tensor | None = None
    inherited: Tensor | None = None

    def add(self, heads: Tensor, own: Tensor, inherited: Tensor, stream: Tensor, biased: bool) -> None:
        """Count a batch.

        Args:
            heads: [n, H a].
            own, inherited: [n, D] what this layer and those before it have lost.
            stream: [n, D] the original's residual stream after its attention.
        """
        size = stream.square().sum(-1, keepdim=True) + (own + inherited).square().sum(-1, keepdim=True)
        weight = size.clamp_min(1e-30).reciprocal()
        if biased:
            heads = torch.cat([heads, torch.ones_like(heads[:, :1])], 1)
        weighed = (heads * weight).mT
        sums = [weighed @ part for part in (heads, own, inherited)]
        held = (self.gram, self.own, self.inherited)
        self.gram, self.own, self.inherited = (
            new.double() if old is None else old.add_(new) for old, new in zip(held, sums, strict=True)
        )

    def __add__(self, other: Regression) -> Regression:
        """Give the sums over both texts."""
        return Regression(*(mine + theirs for mine, theirs in zip(self.sums, other.sums, strict=True)))

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three, once something was counted."""
        if self.gram is None or self.own is None or self.inherited is None:
            raise ValueError("nothing was counted")
        return self.gram, self.own, self.inherited


def solve(fit: Regression, selection: Regression, rows: int) -> Tensor:
    """Give the change [m, D] of the output projection: ridges that do best on the selection text, solved on both.

    Args:
        rows: H a; what comes after is a bias, and is not held back.
    """
    seen, *missed = selection.sums
    found = [_change(fit, ridge, rows) for ridge in RIDGES]
    width = missed[0].shape[1]
    tried = [[torch.zeros_like(missed[0]), *(part[:, at] for part in found)] for at in _halves(width)]
    through = [[seen @ change for change in of_part] for of_part in tried]

    def error(own: int, inherited: int) -> float:
        """On the selection text, less what there is without a change."""
        change = tried[0][own] + tried[1][inherited]
        return float((change * (through[0][own] + through[1][inherited] - 2 * sum(missed))).sum())

    best = min(product(range(len(RIDGES) + 1), repeat=2), key=lambda pair: error(*pair))
    parts = torch.zeros_like(missed[0]), torch.zeros_like(missed[0])
    for part, number, at in zip(parts, best, _halves(width), strict=True):
        if number:
            part.copy_(_change(fit + selection, RIDGES[number - 1], rows)[:, at])
    return parts[0] + parts[1]


def _halves(width: int) -> tuple[slice, slice]:
    """The columns of a change that answer to what the layer has lost, and to what it inherits."""
    return slice(0, width), slice(width, None)


def _change(sums: Regression, ridge: float, rows: int) -> Tensor:
    """[m, 2 D] for both parts, with one ridge."""
    gram, own, inherited = sums.sums
    mean = gram.diagonal()[:rows].mean().clamp_min(1e-30)
    added = torch.full((len(gram),), 1e-12, dtype=gram.dtype, device=gram.device) * mean
    added[:rows] = ridge * mean
    found: Tensor = torch.linalg.solve(gram + torch.diag(added), torch.cat([own, inherited], 1))
    return found
