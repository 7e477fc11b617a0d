"""Attention of H query heads over G key/value heads, which are never repeated to H while decoding.

Letters in shapes:
    B  batch                T  tokens held as keys (the cache and the new ones)
    d  size of one head     S  new tokens, the ones that ask
    m  H // G               H  query heads
                            G  key/value heads of the layer; query head i reads key/value head i // m

The m query heads of a group become rows of one query, [B, H, S, d] -> [B, G, m * S, d], a view or a copy of something
small, and meet the cache as it is, [B, G, T, d]. The two attention functions here, `eager` and `sdpa`, do so; any other
choice (flash_attention_2, flex_attention, a function that an engine registered) is called as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import logging
from transformers.utils.generic import maybe_autocast

from .transformers_api import has_pages  # noqa: TID251 - beside this file in a checkpoint, too

logger = logging.get_logger(__name__)

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]

# Up to this many new tokens the CPU kernel is faster on packed rows, which read each key once and not m times.
# Beyond it, H heads that point into G (`enable_gqa`) are as fast and need no mask tiled over the rows.
MAX_PACKED_TOKENS = 16


def pack_queries(query: torch.Tensor, groups: int) -> torch.Tensor:
    """[B, H, S, d] -> [B, G, m * S, d]: the query heads of a group as rows, ordered (head, token)."""
    batch, heads, tokens, size = query.shape
    return query.reshape(batch, groups, heads // groups * tokens, size)


def pack_mask(mask: torch.Tensor | None, groups: int, per_group: int) -> torch.Tensor | None:
    """[B, 1 or H, S, T] -> one mask row per packed query row, in a shape that broadcasts to [B, G, m * S, T]."""
    if mask is None:
        return None
    batch, heads, tokens, keys = mask.shape
    if heads > 1:
        return mask.reshape(batch, groups, per_group * tokens, keys)
    if tokens == 1:  # the kernel broadcasts it over the rows
        return mask
    return mask.expand(batch, per_group, tokens, keys).reshape(batch, 1, per_group * tokens, keys)


def _scores(module: nn.Module, query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """query [B, G, m * S, d], key [B, G, T, d] -> [B, G, m * S, T], in fp32 where the config asks for it."""
    key = key.transpose(-1, -2)
    if getattr(module, "reorder_and_upcast_attn", False):
        with maybe_autocast(query.device.type, enabled=False):
            return torch.matmul(query.float(), key.float()) * scaling
    return torch.matmul(query, key) * scaling


def eager_grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as two products, which can show its weights.

    query [B, H, S, d], key and value [B, G, T, d], additive mask [B, 1 or H, S, T]
    -> output [B, S, H, d], weights [B, H, S, T]
    """
    batch, heads, tokens, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    scale = size**-0.5 if scaling is None else scaling
    scores = _scores(module, pack_queries(query, groups), key, scale)
    # G and m lie next to each other: seen as [B, H, S, T] the mask broadcasts as it does for plain attention.
    scores = scores.view(batch, heads, tokens, keys)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=getattr(module, "softmax_dtype", None)).to(value.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights.view(batch, groups, -1, keys), value)
    return output.view(batch, heads, tokens, size).transpose(1, 2), weights


def sdpa_grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by PyTorch's fused kernels.

    query [B, H, S, d], key and value [B, G, T, d], boolean or additive mask [B, 1 or H, S, T]
    -> output [B, S, H, d], None in place of the weights
    """
    if has_pages(kwargs):
        # Here continuous batching hands its cache to the attention function; only transformers' own fills its pages.
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    if kwargs.get("output_attentions"):
        logger.warning_once("`sdpa` attention returns no weights: load with attn_implementation='eager'.")
    heads, tokens = query.shape[1], query.shape[2]
    groups = key.shape[1]
    if is_causal is None:
        is_causal = bool(module.is_causal)
    causal = bool(is_causal and attention_mask is None and tokens > 1)
    # With a mask, `enable_gqa` leaves the fused kernels on anything but the CPU.
    packed = groups < heads and not causal and (tokens <= MAX_PACKED_TOKENS or query.device.type != "cpu")
    if causal:
        # No mask for several new tokens means that nothing came before them. A static cache has room behind
        # them, which is cut: the fast kernels want as many keys as queries.
        key, value = key[:, :, :tokens], value[:, :, :tokens]
    output = F.scaled_dot_product_attention(
        pack_queries(query, groups) if packed else query,
        key,
        value,
        attn_mask=pack_mask(attention_mask, groups, heads // groups) if packed else attention_mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scaling,
        enable_gqa=groups < heads and not packed,
    )
    return output.reshape(query.shape).transpose(1, 2), None


__all__ = [
    "MAX_PACKED_TOKENS",
    "AttentionFunction",
    "eager_grouped_attention",
    "pack_mask",
    "pack_queries",
    "sdpa_attention_forward",
    "sdpa_grouped_attention",
]
