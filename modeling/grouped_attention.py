"""Attention of H query heads over G key/value heads, which are never repeated to H while decoding.

Letters in shapes:
    B  batch                T  tokens held as keys (the cache and the new ones)
    d  size of one head     S  new tokens, the ones that ask
    m  H // G               H  query heads
                            G  key/value heads of the layer; query head i reads key/value head i // m

The m query heads of a group become rows of one query, [B, H, S, d] -> [B, G, m * S, d], a view or a copy of something
small, and meet the cache as it is, [B, G, T, d]. Both attention functions here, `eager` and `packed`, do so. Classes of
ours take `packed` where transformers' own SDPA function is asked for; any other choice (flash_attention_2,
flex_attention, a function that an engine registered) is called as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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

# Where two products and a softmax are faster than the CPU's fused kernel, for one new token: up to so many rows of a
# group; in bf16 from so many keys, in fp32 from so many for each row. With more rows where the kernel leaves threads
# idle: it works on a group in one.
MAX_ROWS_OF_PRODUCTS = {torch.bfloat16: 16, torch.float32: 8}
MIN_KEYS_BFLOAT16 = 1024
MIN_KEYS_FLOAT32 = 128
MIN_KEYS_OF_ANY_ROWS = 2048

# What some classes tell their attention and no fused function computes: which keys a token may choose from.
UNKNOWN = ("indices", "block_indices", "sinks")


class Scores(NamedTuple):
    """What becomes of scores before they are weights.

    mask: [B, 1 or H, S, T], added, or, where it is boolean, what may be seen; None: all.
    causal: a token sees those before it, and there is no mask.
    dropout: share of the weights that is dropped.
    """

    scale: float
    mask: torch.Tensor | None = None
    causal: bool = False
    dropout: float = 0.0


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


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with the query heads of a group as rows, by PyTorch's fused kernels or, where faster, by two products.

    query [B, H, S, d], key [B, G, T, d], value [B, G, T, v], boolean or additive mask [B, 1 or H, S, T]
    -> output [B, S, H, v], None in place of the weights

    softcap: the size c that scores stay below, as c tanh(score / c).
    s_aux: [H], scores of a key that has no value (a sink).
    position_bias: [1 or B, H, S, T], added to scores.

    Raises: ValueError for an argument by which a token chooses among the keys, which this function does not compute.
    """
    plain = softcap is None and s_aux is None and position_bias is None
    if has_pages(kwargs) and plain:
        # Here continuous batching hands its cache to the attention function; only transformers' own fills its pages.
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    _refuse(kwargs)
    if kwargs.get("output_attentions"):
        logger.warning_once("Fused attention returns no weights: load with attn_implementation='eager'.")
    tokens = query.shape[2]
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    causal = bool(is_causal and attention_mask is None and tokens > 1)
    if causal:
        # No mask for several new tokens means that nothing came before them. A static cache has room behind
        # them, which is cut: the fast kernels want as many keys as queries.
        key, value = key[:, :, :tokens], value[:, :, :tokens]
    if position_bias is not None:
        attention_mask, causal = with_bias(attention_mask, position_bias[..., : key.shape[2]], causal), False
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, attention_mask, causal, dropout)
    if softcap is not None or s_aux is not None:
        output = _shaped(query, key, value, scores, softcap=softcap, sinks=s_aux)
    elif _products_are_faster(query, key, dropout):
        output = _by_products(query, key, value, scores)
    else:
        output = _fused(query, key, value, scores)
    return output.reshape(*query.shape[:3], -1).transpose(1, 2), None


def _refuse(kwargs: dict[str, Any]) -> None:
    asked = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if has_pages(kwargs):
        asked = ["a paged cache beside a cap, sinks or a bias of scores"]
    if asked:
        raise ValueError(
            f"packed attention was given {', '.join(asked)}, which it does not know: load with "
            "attn_implementation='eager'"
        )


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores) -> torch.Tensor:
    """By the fused kernels: [B, H, S, v], or [B, G, m * S, v], which is the same."""
    heads, groups, tokens = query.shape[1], key.shape[1], query.shape[2]
    # With a mask, `enable_gqa` leaves the fused kernels on anything but the CPU.
    packed = groups < heads and not scores.causal and (tokens <= MAX_PACKED_TOKENS or query.device.type != "cpu")
    return F.scaled_dot_product_attention(
        pack_queries(query, groups) if packed else query,
        key,
        value,
        attn_mask=pack_mask(scores.mask, groups, heads // groups) if packed else scores.mask,
        dropout_p=scores.dropout,
        is_causal=scores.causal,
        scale=scores.scale,
        enable_gqa=groups < heads and not packed,
    )


def _products_are_faster(query: torch.Tensor, key: torch.Tensor, dropout: float) -> bool:
    """Whether products are faster than the fused kernel; measured by eval/benchmarks/heads of convert-attn.

    One new token on a CPU, a few query heads a group: for that few rows PyTorch's kernel calls a matrix product a block
    of keys, which in bf16 converts them first.
    """
    if query.shape[2] != 1 or query.device.type != "cpu" or dropout > 0 or query.dtype not in MAX_ROWS_OF_PRODUCTS:
        return False
    batch, groups, keys = key.shape[:3]
    per_group = query.shape[1] // groups
    if per_group > MAX_ROWS_OF_PRODUCTS[query.dtype]:
        idle = not torch.compiler.is_compiling() and batch * groups < torch.get_num_threads()
        return idle and keys >= MIN_KEYS_OF_ANY_ROWS
    return keys >= (MIN_KEYS_BFLOAT16 if query.dtype == torch.bfloat16 else MIN_KEYS_FLOAT32 * per_group)


def _by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores) -> torch.Tensor:
    """One new token: [B, G, m, v]."""
    groups, per_group = key.shape[1], query.shape[1] // key.shape[1]
    rows = pack_queries(query, groups)
    if query.dtype == torch.float32:
        found = torch.matmul(key, rows.mT).mT * scores.scale  # [B, G, m, T]
    else:
        found = torch.matmul(rows, key.mT) * scores.scale
    found = hidden(found, pack_mask(scores.mask, groups, per_group))
    weights = F.softmax(found, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value)


def _shaped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    *,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """With a cap, with sinks, or both: [B, G, m * S, v]."""
    batch, heads, tokens, _ = query.shape
    groups, keys = key.shape[1], key.shape[2]
    found = torch.matmul(pack_queries(query, groups), key.mT) * scores.scale
    found = found.view(batch, heads, tokens, keys)
    if softcap is not None:
        found = (found / softcap).tanh() * softcap
    mask = scores.mask
    if scores.causal:  # S == T
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril()
    found = hidden(found, mask)
    if sinks is not None:
        found = torch.cat([found, sinks.to(found.dtype).view(1, -1, 1, 1).expand(batch, -1, tokens, -1)], dim=-1)
    weights = F.softmax(found, dim=-1, dtype=torch.float32)[..., :keys].to(value.dtype)
    weights = F.dropout(weights, p=scores.dropout, training=scores.dropout > 0)
    return torch.matmul(weights.reshape(batch, groups, -1, keys), value)


def hidden(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scores of which those that the mask hides are least; the mask is added or, where it is boolean, what is seen."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        # Not minus infinity: a row that may see nothing, such as a padding token's, would become NaN.
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def with_bias(mask: torch.Tensor | None, bias: torch.Tensor, causal: bool) -> torch.Tensor:
    """Make one mask that is added to scores, [B, H, S, T], of a bias [1, H, S, T] and what hides tokens.

    mask: boolean, True where a token is seen, or added to scores; None hides what is ahead, where causal, or nothing.
    """
    tokens, keys = bias.shape[-2:]
    if mask is None and causal and tokens > 1:  # then nothing came before them
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=bias.device).tril()
    return hidden(bias, mask)


__all__ = [
    "MAX_PACKED_TOKENS",
    "AttentionFunction",
    "eager_grouped_attention",
    "pack_mask",
    "pack_queries",
    "packed_attention",
    "sdpa_attention_forward",
    "with_bias",
]
