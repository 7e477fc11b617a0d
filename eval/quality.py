"""Quality lost: perplexity, KL divergence and agreement with the original, on the same tokens.

Every figure is a mean over predicted tokens: in windows that do not overlap, all tokens but each window's first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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


def windows(token_ids: list[int], length: int, limit: int | None = None) -> Tensor:
    """Token ids as whole windows [n, length]; what does not fill a last window is left out.

    Raises:
        ValueError: the text is shorter than one window.
    """
    count = len(token_ids) // length
    if count == 0:
        raise ValueError(f"the text has {len(token_ids)} tokens, fewer than one window of {length}")
    count = min(count, limit or count)
    return torch.tensor(token_ids[: count * length]).reshape(count, length)


def _log_probs(model: Any, batches: tuple[Tensor, ...]) -> Iterator[Tensor]:
    for batch in batches:
        logits = model(input_ids=batch.to(model.device)).logits[:, :-1]
        yield logits.float().log_softmax(-1)


@torch.no_grad()
def measure(model: Any, tokens: Tensor, reference: Any | None = None, batch_size: int = 8) -> Quality:
    """Measure a causal language model.

    Args:
        model: a transformers causal model.
        tokens: [n, length] windows.
        reference: the original, run on the same batches.
    """
    batches = tokens.split(batch_size)
    loss = kl = agreed = 0.0
    theirs = _log_probs(reference, batches) if reference is not None else None
    for batch, ours in zip(batches, _log_probs(model, batches), strict=True):
        target = batch[:, 1:, None].to(ours.device)
        loss -= float(ours.gather(-1, target).sum(dtype=torch.float64))
        if theirs is not None:
            original = next(theirs)
            kl += float((original.exp() * (original - ours)).sum(dtype=torch.float64))
            agreed += float((original.argmax(-1) == ours.argmax(-1)).sum())
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    compared = reference is not None
    return Quality(
        perplexity=math.exp(loss / count),
        kl=kl / count if compared else None,
        top1=agreed / count if compared else None,
        tokens=count,
    )
