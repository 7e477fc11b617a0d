"""Encoders whose query heads share key and value heads in groups: what is the same in all families.

An encoder keeps no cache. What grouped heads save are the parameters of its key and value projections, and the work of
making keys and values.

Letters in shapes:
    B  batch                T  tokens
    d  size of one head     H  query heads
    m  H // G               G  key/value heads of the layer; query head i reads key/value head i // m

Everything but the self-attention is the stock class's, down to the names of the tensors.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_CACHES = ("cache", "past_key_values", "encoder_hidden_states")  # what only decoders are given, under all its names


def settle_heads(config: Any) -> None:
    """Fill in and check how many key/value heads each layer of an encoder has.

    Raises: ValueError for numbers that do not divide the query heads, and for a config of a decoder.
    """
    heads, by_layer = config.num_attention_heads, config.num_key_value_heads_per_layer
    if config.num_key_value_heads is None:
        config.num_key_value_heads = max(by_layer or [heads])
    largest = config.num_key_value_heads
    if largest < 1 or heads % largest:
        raise ValueError(
            f"num_key_value_heads must divide the number of query heads, got {largest} and {heads}: choose a divisor"
        )
    if by_layer is not None:
        count = config.num_hidden_layers
        if len(by_layer) != count or max(by_layer) != largest or any(n < 1 or heads % n for n in by_layer):
            raise ValueError(
                f"num_key_value_heads_per_layer must hold {count} divisors of {heads}, the largest "
                f"num_key_value_heads={largest}, got {by_layer}"
            )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError("this class is an encoder: is_decoder and add_cross_attention must be off")


def key_value_heads(config: Any, layer: int) -> int:
    """Tell how many key/value heads a layer has."""
    by_layer = config.num_key_value_heads_per_layer
    return int(config.num_key_value_heads if by_layer is None else by_layer[layer])


def eager_grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as two products, which can show its weights; keys and values are not repeated.

    query [B, H, T, d], key and value [B, G, T, d], additive mask [B, 1 or H, T, T]
    -> output [B, T, H, d], weights [B, H, T, T]
    """
    batch, heads, tokens, size = query.shape
    groups = key.shape[1]
    rows = query.reshape(batch, groups, heads // groups * tokens, size)  # [B, G, m T, d]
    scores = (rows @ key.transpose(-1, -2) * scaling).view(batch, heads, tokens, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1)
    weights = F.dropout(weights, p=dropout, training=module.training)
    output = weights.view(batch, groups, rows.shape[2], -1) @ value
    return output.view(batch, heads, tokens, size).transpose(1, 2).contiguous(), weights


class GroupedSelfAttention(nn.Module):
    """Stands before a stock self-attention class among the bases of one with grouped heads.

    projections: the names of the query, key and value projections.
    """

    projections = ("query", "key", "value")
    scaling: float

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config)
        groups = key_value_heads(config, layer)
        self.num_key_value_heads = groups
        self.num_key_value_groups = config.num_attention_heads // groups
        self.is_causal = False
        self.layer_idx = layer  # engines find their own attention of this layer by it
        size, biased = groups * self.size_of_head, getattr(self, self.projections[0]).bias is not None
        for name in self.projections[1:]:
            setattr(self, name, nn.Linear(config.hidden_size, size, bias=biased))

    def turned(self, query: torch.Tensor, key: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Give queries [B, H, T, d] and keys [B, G, T, d] as scores are made of them: here, as they are."""
        return query, key

    @property
    def size_of_head(self) -> int:
        """The numbers of a head."""
        size: Any = self.attention_head_size
        return int(size)

    @property
    def dropped(self) -> float:
        """Which share of attention is dropped in training."""
        dropout: Any = self.dropout
        return float(dropout.p)

    def mixed(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix tokens: [B, T, D] -> what the output projection reads, [B, T, H d], and attention weights or None.

        Raises: ValueError for a cache or the states of another model, which only a decoder has a use for.
        """
        for name in _CACHES:
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"this class is an encoder and has no use for {name}: leave it out")
        shape = (*hidden_states.shape[:-1], -1, self.size_of_head)
        query, key, value = (
            getattr(self, name)(hidden_states).view(shape).transpose(1, 2) for name in self.projections
        )
        query, key = self.turned(query, key, **kwargs)
        settings: Any = self.config
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(settings._attn_implementation, eager_grouped_attention)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropped if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return output.reshape(*hidden_states.shape[:-1], -1).contiguous(), weights

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Self-attention of [B, T, D] in front of its output projection, and its weights or None."""
        return self.mixed(hidden_states, attention_mask, kwargs)


class GroupedEncoder:
    """Stands before a stock base model among the bases of one with grouped heads.

    attention_class: with grouped heads; blocks: the list of the layers; place: of the attention below a layer.
    """

    attention_class: type[GroupedSelfAttention]
    blocks = "encoder.layer"
    place = "attention.self"

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)  # type: ignore[call-arg]  # the stock class
        model: Any = self
        holder, _, name = self.place.rpartition(".")
        for number, layer in enumerate(model.get_submodule(self.blocks)):
            setattr(layer.get_submodule(holder), name, self.attention_class(config, number))
        model.post_init()


class GroupedHead:
    """Stands before a stock class with a head among the bases of one whose base model has grouped heads.

    base_class: that base model.
    """

    base_class: type[GroupedEncoder]
    base_model_prefix: str

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # the stock class
        model: Any = self
        stock = getattr(model, self.base_model_prefix)
        pooled = {"add_pooling_layer": stock.pooler is not None} if hasattr(stock, "pooler") else {}
        setattr(model, self.base_model_prefix, self.base_class(config, **pooled))
        model.post_init()


__all__ = ["GroupedEncoder", "GroupedHead", "GroupedSelfAttention", "key_value_heads", "settle_heads"]
