"""Attention whose scores stay below a size: transformers' own functions know of no cap, or forget it.

Letters in shapes: B batch, H query heads, S new tokens, T tokens held as keys, d size of a head, v size of a value.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .latent_kernel_plain import masked  # noqa: TID251 - beside this file in a checkpoint, too


def capped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention whose scores stay below a size c, as c tanh(score / c) (Gemma 2, arXiv:2408.00118, section 2).

    query and key [B, H, S or T, d], value [B, H, T, v], mask [B, 1, S, T] or None -> [B, S, H, v], weights [B, H, S, T]
    """
    scores = (query @ key.mT * scaling / softcap).tanh() * softcap
    scores = masked(scores, attention_mask, causal=attention_mask is None and query.shape[2] > 1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


__all__ = ["capped_attention"]
