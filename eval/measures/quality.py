"""Quality lost: perplexity, KL divergence and agreement with the original, token by token on the same windows.

Every figure is a mean over predicted tokens: in windows that do not overlap, all tokens but each window's first. Both
models see the same tokens in the same forward calls, so that differences are paired; logits are compared a slice at a
time and never kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.text.pair_windows import both_sides, readable
from convert_attn.eval.measures.decoding import has_encoder, logits_on

FIGURES = ("loss", "reference_loss", "kl", "top1", "top5", "correct", "reference_correct")
"""Per predicted token: negative log-likelihood in nats of the model and of the reference, KL(reference || model) in
nats, whether both rank the same token first, the share of the reference's five likeliest tokens that are among the
model's five, and whether the token ranked first is the one that came."""

_SLICE_NUMBERS = 1 << 24  # log-probabilities of each model that exist at a time
_BATCH_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # logits of one model


@dataclass(frozen=True)
class Quality:
    """How one model does on a text, and how far it is from a reference.

    Attributes:
        perplexity: exp of the mean negative log-likelihood.
        kl: KL(reference || model) in nats per token, None without a reference.
        top1: share of tokens where both rank the same token first, None without a reference.
        tokens: predicted tokens.
    """

    perplexity: float
    kl: float | None
    top1: float | None
    tokens: int


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, None where there are too few clusters to tell."""

    mean: float
    error: float | None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {"mean": self.mean, "error": self.error}


def windows(token_ids: list[int], length: int, limit: int | None = None) -> Tensor:
    """Give token ids as whole windows [n, length]; what does not fill a last window is left out.

    Raises:
        ValueError: the text is shorter than one window.
    """
    count = len(token_ids) // length
    if count == 0:
        raise ValueError(f"the text has {len(token_ids)} tokens, fewer than one window of {length}")
    count = min(count, limit or count)
    return torch.tensor(token_ids[: count * length]).reshape(count, length)


def batch_size(length: int, vocabulary: int, device: str) -> int:
    """Give windows per forward call such that one model's logits in float32 stay within a budget, from 1 to 32."""
    budget = _BATCH_BYTES["cpu" if device == "cpu" else "cuda"]
    return max(1, min(32, budget // (4 * length * vocabulary)))


def _slice_figures(logits: Tensor, target: Tensor, reference: Tensor | None) -> Tensor:
    """[len(FIGURES), n] in float64 on the CPU, zeros where there is no reference.

    Args:
        logits, reference: [n, vocabulary].
        target: [n].
    """
    ours = logits.float().log_softmax(-1)
    figures = torch.zeros(len(FIGURES), len(target), dtype=torch.float64, device=logits.device)
    figures[0] = -ours.gather(-1, target[:, None])[:, 0]
    best = ours.topk(min(5, ours.shape[-1])).indices
    figures[5] = best[:, 0] == target
    if reference is not None:
        theirs = reference.float().log_softmax(-1)
        likeliest = theirs.topk(best.shape[-1]).indices
        figures[1] = -theirs.gather(-1, target[:, None])[:, 0]
        figures[2] = (theirs.exp() * (theirs - ours)).sum(-1)
        figures[3] = likeliest[:, 0] == best[:, 0]
        figures[4] = (likeliest[:, :, None] == best[:, None, :]).any(-1).double().mean(-1)
        figures[6] = likeliest[:, 0] == target
    return figures.cpu()


@torch.no_grad()
def token_figures(model: Any, batch: Tensor, reference: Any | None = None) -> Tensor:
    """FIGURES of every predicted token.

    Args:
        batch: [n, length] token ids, or windows of pairs for a model with an encoder.
        reference: the original, run on the same batch.

    Returns:
        [len(FIGURES), n, length - 1] in float64 on the CPU, length that of targets where these are pairs; zeros for
        what needs a reference where there is none. What stands for a token that fills up means nothing.
    """
    logits = logits_on(model, batch)[:, :-1].flatten(0, 1)
    theirs = None if reference is None else logits_on(reference, batch)[:, :-1].flatten(0, 1)
    predicted = readable(both_sides(batch)[1] if has_encoder(model) else batch)
    target = predicted[:, 1:].flatten().to(logits.device)
    rows = max(1, _SLICE_NUMBERS // logits.shape[-1])
    parts = [
        _slice_figures(
            logits[at : at + rows], target[at : at + rows], None if theirs is None else theirs[at : at + rows]
        )
        for at in range(0, len(target), rows)
    ]
    return torch.cat(parts, -1).reshape(len(FIGURES), predicted.shape[0], predicted.shape[1] - 1)


def measure(model: Any, tokens: Tensor, reference: Any | None = None, batch_size: int = 8) -> Quality:
    """Measure a causal language model.

    Args:
        model: a transformers causal model.
        tokens: [n, length] windows.
        reference: the original, run on the same batches.
    """
    sums = torch.zeros(len(FIGURES), dtype=torch.float64)
    for batch in tokens.split(batch_size):
        sums += token_figures(model, batch, reference).sum((1, 2))
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    loss, _, kl, top1, *_ = (sums / count).tolist()
    compared = reference is not None
    return Quality(math.exp(loss), kl if compared else None, top1 if compared else None, count)


class Tally:
    """Sums of FIGURES by cluster (document or window) and by position."""

    def __init__(self, clusters: int, positions: int) -> None:
        self.sums = torch.zeros(len(FIGURES), clusters, positions, dtype=torch.float64)
        self.counts = torch.zeros(clusters, positions, dtype=torch.float64)

    def add(self, figures: Tensor, clusters: Tensor, positions: Tensor) -> None:
        """Count tokens.

        Args:
            figures: [len(FIGURES), ...].
            clusters, positions: [...] int64, where each token belongs.
        """
        width = self.counts.shape[1]
        place = (clusters * width + positions).flatten()
        self.counts.view(-1).index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
        self.sums.view(len(FIGURES), -1).index_add_(1, place, figures.flatten(1))

    def estimate(self, figure: str, minus: str | None = None, position: int | None = None) -> Estimate:
        """Give the mean per token of a figure, or of the difference of two, with the standard error of its clusters.

        Args:
            position: only tokens of this position.
        """
        sums = self.sums[FIGURES.index(figure)]
        if minus is not None:
            sums = sums - self.sums[FIGURES.index(minus)]
        if position is None:
            return ratio(sums.sum(1), self.counts.sum(1))
        return ratio(sums[:, position], self.counts[:, position])

    def per_cluster(self, figure: str) -> list[float]:
        """Give sums over the tokens of each cluster."""
        return list(self.sums[FIGURES.index(figure)].sum(1).tolist())


def ratio(sums: Tensor, counts: Tensor) -> Estimate:
    """Give a mean per token from sums per cluster, with the standard error of a ratio estimator.

    Clusters weigh as many tokens as they have; the error is that of drawing other clusters (Cochran, Sampling
    Techniques, 1977, section 6.4), so tokens of one document need not be independent.

    Args:
        sums, counts: [clusters].
    """
    used = counts > 0
    sums, counts = sums[used], counts[used]
    clusters, tokens = len(counts), counts.sum()
    mean = sums.sum() / tokens
    if clusters < 2:
        return Estimate(float(mean), None)
    spread = ((sums - mean * counts) ** 2).sum() * clusters / (clusters - 1)
    return Estimate(float(mean), float(spread.sqrt() / tokens))


Advance = Callable[[int, int], None]
"""Called with how much is done and how much there is."""
