"""Latent attention by two products and a softmax: everywhere. See latent_kernel.py."""

import torch
from torch.nn import functional as F

from .latent_kernel import Kernel, Shaping  # noqa: TID251 - beside this file, too


def _applies(query: torch.Tensor, training: bool, weights: bool) -> bool:
    """Always."""
    return True


def run_plain(
    query: torch.Tensor,
    entries: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float,
    causal: bool,
    dropout: float,
    shaping: Shaping | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale is applied within the product, before it is rounded: unscaled it could overflow fp16."""
    entries = entries.squeeze(1)
    rows = query.flatten(1, 2)  # [B, H * S, r + R]
    turned = _entries_first(query)
    left, right = (entries, rows.mT) if turned else (rows, entries.mT)
    scores = torch.baddbmm(query.new_zeros(()), left, right, beta=0, alpha=scaling)
    scores = (scores.mT if turned else scores).unflatten(1, query.shape[1:3])
    scores = masked(scores if shaping is None else shaping.of(scores), mask, causal)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(entries.dtype)
    weights = F.dropout(weights, p=dropout, training=dropout > 0)
    parts = weights.flatten(1, 2)
    mixed = torch.bmm(entries.mT, parts.mT).mT if turned else torch.bmm(parts, entries)
    return mixed.reshape(query.shape), weights


def _entries_first(query: torch.Tensor) -> bool:
    """Whether products with the entries on the left are faster; measured by eval/benchmarks/heads of convert-attn.

    The few rows of one new token in fp32 on a CPU: MKL shares the entries out over its threads then.
    """
    return query.shape[2] == 1 and query.dtype == torch.float32 and query.device.type == "cpu"


def masked(scores: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
    """scores [B, H, S, T], mask [B, 1 or H, S, T]: added, or, where it is boolean, what may be seen."""
    if causal:  # S == T
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        # Not minus infinity: a row that may see nothing, such as a padding token's, would become NaN.
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


PLAIN = Kernel(_applies, run_plain)

__all__ = ["PLAIN", "masked", "run_plain"]
