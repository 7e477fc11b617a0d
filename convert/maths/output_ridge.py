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

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three, once something was counted."""
        if self.gram is None or self.own is None or self.inherited is None:
            raise ValueError("nothing was counted")
        return self.gram, self.own, self.inherited


def solve(fit: Regression, selection: Regression, rows: int) -> Tensor:
    """Give the change [m, D] of the output projection that does best on the selection text.

    Args:
        rows: H a; what comes after is a bias, and is not held back.
    """
    gram, own, inherited = fit.sums
    seen, missed_own, missed_inherited = selection.sums
    missed = missed_own + missed_inherited
    mean = gram.diagonal()[:rows].mean().clamp_min(1e-30)
    right, width = torch.cat([own, inherited], 1), own.shape[1]
    found = []
    for ridge in RIDGES:
        added = torch.full((len(gram),), 1e-12, dtype=gram.dtype, device=gram.device) * mean
        added[:rows] = ridge * mean
        found.append(torch.linalg.solve(gram + torch.diag(added), right))
    none = torch.zeros_like(own)
    firsts, seconds = (
        [none, *(part[:, columns] for part in found)] for columns in (slice(0, width), slice(width, None))
    )

    def alone(change: Tensor, through: Tensor) -> float:
        return float((change * through).sum() - 2 * (change * missed).sum())

    firsts_seen, seconds_seen = ([seen @ part for part in parts] for parts in (firsts, seconds))
    errors = {
        (a, b): alone(first, firsts_seen[a])
        + alone(second, seconds_seen[b])
        + 2 * float((first * seconds_seen[b]).sum())
        for a, first in enumerate(firsts)
        for b, second in enumerate(seconds)
    }
    a, b = min(errors, key=errors.__getitem__)
    best: Tensor = firsts[a] + seconds[b]
    return best
