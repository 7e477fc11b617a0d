"""Stock decoders of transformers with fewer key/value heads: the attention module is another, all else is the family's.

A family's file says how queries, keys and values are projected and turned, and which stock classes its own stand for.
The stock classes are built as they are, and before their weights are drawn those parts are put in place.

Letters in shapes:
    B  batch                T  tokens held as keys (the cache and the new ones)
    D  hidden size          S  new tokens, the ones that ask
    d  size of one head     H  query heads, H * d == D
                            G  key/value heads of the layer; query head i reads key/value head i // (H // G)
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_shared_heads import key_value_heads  # noqa: TID251 - beside this file in a checkpoint, too
from .grouped_attention import (  # noqa: TID251
    AttentionFunction,
    eager_grouped_attention,
    packed_attention,
    sdpa_attention_forward,
)
from .replaced_parts import ReplacedParts, keep_stored_names  # noqa: TID251
from .transformers_api import CACHE_NAME, has_pages, take_cache, update_cache  # noqa: TID251

LAYER_CACHE = "layer_past"  # what some stock blocks call the cache that they hand to their attention


class SharedHeadsAttention(nn.Module):
    """Causal self-attention of H query heads over G key/value heads.

    A family's class comes before the stock one among its bases, and sets what `project` and `output` need.
    """

    softmax_dtype = torch.float32
    layer_idx: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        # past the __init__ of the stock class behind this one, which would make projections for H heads
        nn.Module.__init__(self)
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = key_value_heads(config, layer_idx)
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = config.head_dim
        self.is_causal = True
        self.scaling: float = self.head_dim**-0.5
        self.dropout_share = 0.0

    def heads(self, states: torch.Tensor, number: int) -> torch.Tensor:
        """[B, S, n d] -> [B, n, S, d]."""
        return states.view(*states.shape[:-1], number, self.head_dim).transpose(1, 2)

    def grouped(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, (H + 2 G) d], each group its queries, its key and its value -> [B, H, S, d] and twice [B, G, S, d]."""
        shape = (self.num_key_value_heads, self.num_key_value_groups + 2, self.head_dim)
        groups = states.unflatten(-1, shape)
        query, key, value = groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :]
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        raise NotImplementedError

    def turn(
        self, query: torch.Tensor, key: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn query [B, H, S, d] and key [B, G, S, d] by their positions; arguments: of forward, by name."""
        return query, key

    def mask(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, arguments: dict[str, Any]) -> Any:
        """Give the mask of the attention function: what the model made, [B, 1, S, T] or None, with what is added."""
        return given

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D] and, from functions that have them, the weights [B, H, S, T].

        The cache is among kwargs, by any of its names; what else there is reaches the attention function.
        """
        if kwargs.get(LAYER_CACHE) is not None:
            kwargs[CACHE_NAME] = kwargs.pop(LAYER_CACHE)
        if has_pages(kwargs) and self.num_key_value_heads != self.config.num_key_value_heads:
            raise ValueError(
                "continuous batching keeps one number of key/value heads for all layers, and the layers of this model "
                "differ: use generate"
            )
        kv_cache = take_cache(kwargs)
        query, key, value = self.project(hidden_states)
        query, key = self.turn(query, key, kwargs)
        if kv_cache is not None:  # [B, G, S, d] -> [B, G, T, d]
            key, value = update_cache(kv_cache, key, value, self.layer_idx, kwargs)
        attention_mask = self.mask(attention_mask, query, key.shape[-2], kwargs)
        # Looked up and called here, in `forward`: vLLM reads this function's source to see that it may replace it.
        attend: AttentionFunction = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_grouped_attention
        )
        if attend is sdpa_attention_forward:  # which would repeat heads
            attend = packed_attention
        dropout = self.dropout_share if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.output(attended.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


class SeparateAttention(SharedHeadsAttention):
    """With three projections `q_proj`, `k_proj` and `v_proj`."""

    def make_projections(self, bias: bool) -> None:
        """Make the three, with biases or without."""
        inputs, kv_rows = self.config.hidden_size, self.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(inputs, self.num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(inputs, kv_rows, bias=bias)
        self.v_proj = nn.Linear(inputs, kv_rows, bias=bias)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        key, value = (
            self.heads(projection(hidden_states), self.num_key_value_heads) for projection in (self.k_proj, self.v_proj)
        )
        return self.heads(self.q_proj(hidden_states), self.num_heads), key, value


class SharedHeadsModel(ReplacedParts):
    """What a family's models have in front of the stock class that each of them is."""


__all__ = ["SeparateAttention", "SharedHeadsAttention", "SharedHeadsModel", "keep_stored_names"]
