"""Encoder-decoders whose decoder's query heads share key and value heads in groups: what is the same in all families.

Both attention modules of a decoder block are others: that on the decoder's own tokens, and that on what the encoder
gives, whose keys and values are made once for a text and kept beside the others in an `EncoderDecoderCache`. All else,
the whole encoder included, is the stock class's, down to the names of the tensors.

Letters in shapes:
    B  batch                T  tokens held as keys (the cache and the new ones, or the encoder's)
    D  hidden size          S  new tokens of the decoder, the ones that ask
    d  size of one head     H  query heads
                            G  key/value heads; query head i reads key/value head i // (H // G)
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .grouped_attention import (  # noqa: TID251 - beside this file in a checkpoint, too
    AttentionFunction,
    eager_grouped_attention,
    packed_attention,
    sdpa_attention_forward,
    with_bias,
)
from .transformers_api import CACHE_NAMES, update_cache  # noqa: TID251


class DecoderAttention(nn.Module):
    """Stands before a stock attention class among the bases of one with grouped heads.

    names: of the projections of queries, keys and values, and of the output.
    """

    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    config: Any
    layer_idx: Any
    scaling: float
    is_causal: bool

    def share_heads(self, heads: int, head_dim: int) -> None:
        """Put key and value projections for G heads in the place of those for H; what has them is made by now."""
        self.query_heads, self.size_of_head = heads, head_dim
        self.num_key_value_heads: int = self.config.num_key_value_heads
        self.num_key_value_groups = heads // self.num_key_value_heads
        for name in self.names[1:3]:
            stock: Any = getattr(self, name)
            rows = self.num_key_value_heads * head_dim
            setattr(self, name, nn.Linear(stock.in_features, rows, bias=stock.bias is not None))

    def heads(self, name: str, states: torch.Tensor, number: int) -> torch.Tensor:
        """[B, S, D] -> [B, n, S, d], by the projection of a name."""
        projected: torch.Tensor = getattr(self, name)(states)
        return projected.view(*states.shape[:-1], number, self.size_of_head).transpose(1, 2)

    def held(self, states: torch.Tensor, cache: Any, across: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, G, T, d] of states [B, S, D] and of what the cache holds; of the encoder's states once.

        Raises: ValueError for a cache that cannot hold those of the encoder apart.
        """
        both = isinstance(cache, EncoderDecoderCache)
        if across and cache is not None and not both:
            raise ValueError(f"the cache must be an EncoderDecoderCache, got {type(cache).__name__}")
        if both and across and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = (self.heads(name, states, self.num_key_value_heads) for name in self.names[1:3])
        if cache is None:
            return key, value
        own: Any = cache
        if both:
            own = cache.cross_attention_cache if across else cache.self_attention_cache
        key, value = update_cache(own, key, value, self.layer_idx, {})
        if across:
            cache.is_updated[self.layer_idx] = True
        return key, value

    def bias(self, tokens: int, keys: int, seen: Any) -> torch.Tensor | None:
        """[1, H, S, T] what is added to scores of so many new tokens behind those seen before, or None."""
        return None

    def attend(
        self,
        hidden_states: torch.Tensor,
        others: torch.Tensor | None,
        mask: torch.Tensor | None,
        bias: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D], the bias of its scores, and from functions that have them the weights [B, H, S, T].

        others: the encoder's states [B, T, D], None for attention on the decoder's own; mask: as the model made it;
        bias: [1, H, S, T] that another layer has made already; kwargs: the cache by its name, and what reaches the
        attention function.
        """
        cache = _take(kwargs)
        seen = 0 if cache is None or others is not None else cache.get_seq_length(self.layer_idx)
        if isinstance(seen, torch.Tensor):  # a static cache counts on in the same tensor
            seen = seen.clone()
        query = self.heads(self.names[0], hidden_states, self.query_heads)
        key, value = self.held(hidden_states if others is None else others, cache, others is not None)
        if bias is None:
            bias = self.bias(query.shape[2], key.shape[2], seen)
        function: AttentionFunction = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_grouped_attention
        )
        if function is sdpa_attention_forward:  # which would repeat heads
            function = packed_attention
        share: Any = self.dropout
        mixed, weights = function(
            self,
            query,
            key,
            value,
            mask if bias is None else with_bias(mask, bias, self.is_causal),
            dropout=share if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        out: torch.Tensor = getattr(self, self.names[3])(mixed.reshape(*hidden_states.shape[:-1], -1).contiguous())
        return out, bias, weights


def _take(kwargs: dict[str, Any]) -> Any:
    """Take the cache out of keyword arguments, by whichever of its names."""
    found: Any = None
    for name in CACHE_NAMES:  # no comprehension with a name of its own: torch.compile makes no graph of it
        given = kwargs.pop(name, None)
        found = given if found is None else found
    return found


class ScaledAttention(DecoderAttention):
    """Of BART and its relatives: four projections, scores divided by the root of a head's size."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # of the stock class
        stock: Any = self
        self.share_heads(stock.num_heads, stock.head_dim)

    @classmethod
    def like(cls, stock: Any) -> Any:
        """Make one for the place of a stock one."""
        return cls(
            embed_dim=stock.embed_dim,
            num_heads=stock.num_heads,
            dropout=stock.dropout,
            is_decoder=True,
            bias=stock.q_proj.bias is not None,
            is_causal=stock.is_causal,
            config=stock.config,
            layer_idx=stock.layer_idx,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D] and, from functions that have them, the weights [B, H, S, T]."""
        out, _, weights = self.attend(hidden_states, key_value_states, attention_mask, None, kwargs)
        return out, weights


class BiasedAttention(DecoderAttention):
    """Of T5 and its relatives: what a head's scores gain is a table's number for the distance; they are not scaled."""

    names = ("q", "k", "v", "o")
    compute_bias: Any
    has_relative_attention_bias: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # of the stock class
        stock: Any = self
        self.share_heads(stock.n_heads, stock.key_value_proj_dim)

    @classmethod
    def like(cls, stock: Any) -> Any:
        """Make one for the place of a stock one."""
        return cls(
            stock.config,
            has_relative_attention_bias=stock.has_relative_attention_bias,
            layer_idx=stock.layer_idx,
            is_causal=stock.is_causal,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """[B, S, D] -> [B, S, D], the bias for the blocks behind, and the weights as `attend` gives them."""
        return self.attend(hidden_states, key_value_states, mask, position_bias, kwargs)

    def bias(self, tokens: int, keys: int, seen: Any) -> torch.Tensor | None:
        """[1, H, S, T] by the module's own table, None where it has none."""
        if not self.has_relative_attention_bias:
            return None
        made: torch.Tensor = self.compute_bias(tokens, keys, past_seen_tokens=seen)
        return made


class GroupedDecoder:
    """What a family's models have in front of the stock class that each of them is.

    stands_for: a stock attention class -> the family's own, for those of the decoder.
    """

    stands_for: dict[type, Any]
    config_class: Any
    # transformers' patterns are for buffers in checkpoints of the stock class, and vLLM drops what they are found in
    _keys_to_ignore_on_load_unexpected: Any = None

    def post_init(self) -> None:
        """Put the family's own attention in place, then go on as transformers does."""
        model: Any = self
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                own = self.stands_for.get(type(child))
                if own is not None and child.is_decoder:
                    setattr(parent, name, own.like(child))
        super().post_init()  # type: ignore[misc]  # of the stock class


__all__ = ["BiasedAttention", "DecoderAttention", "GroupedDecoder", "ScaledAttention", "with_bias"]
