"""Experimental: a latent cache (latent_attention.py) of fixed length (latent_sequence.py).

A slot is a latent and a rotary key that stand for many. Both are merged by the attention received, since a latent is
the key and the value of all heads at once; the rotary key before its rotation. How far apart two entries are is how far
apart these numbers are. Letters in shapes as in latent_attention.py.
"""

from typing import Any

import torch

from .attention_names import attention_name  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_attention import LatentAttention  # noqa: TID251
from .latent_sequence import OBSERVED, SlotLayer, check_learns_of_masses, layer_among  # noqa: TID251


class SlotLatentAttention(LatentAttention):
    """Latent attention that may meet slots."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, dropout=config.attention_dropout)
        self.layer: SlotLayer | None = None
        self.asked: torch.Tensor = torch.empty(0)
        self.bias: torch.Tensor | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As LatentAttention."""
        self.layer = layer = layer_among(kwargs.values(), self.layer_idx)
        arguments = kwargs | {"position_ids": position_ids, "attention_mask": attention_mask}
        if layer is None or position_ids is None:  # without a cache
            return super().forward(hidden_states, **arguments)
        check_learns_of_masses(attention_name(self.config))
        found = super().forward(hidden_states, **arguments)
        inv_freq = hidden_states.new_zeros(0) if self.rotary is None else self.rotary.inv_freq
        masks = (attention_mask, self.bias)
        layer.settle(self.asked, masks, scaling=self.scaling, position_ids=position_ids, inv_freq=inv_freq)
        self.layer, self.asked, self.bias = None, torch.empty(0), None
        return found

    def mask(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, pages: bool) -> Any:
        """As LatentAttention, and log of the masses of slots."""
        found = super().mask(given, query, keys, pages)
        if self.layer is not None:
            self.bias = found = self.layer.bias(found, query)
        return found

    def _absorbed_query(self, nope: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        query = super()._absorbed_query(nope, rope)
        self.asked = query[:, :, -OBSERVED:].detach()
        return query

    def _expand(
        self, query: torch.Tensor, entries: torch.Tensor, widen: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.layer is not None:
            if not self._up_projection_is_plain():
                raise ValueError(
                    "slots read kv_b_proj.weight, which here is quantized, adapted, sharded or offloaded: leave it as "
                    "it is, or set use_cache=False"
                )
            last = query[:, :, -OBSERVED:].split([self.qk_nope_head_dim, self.qk_rope_head_dim], -1)
            self._absorbed_query(*last)
        return super()._expand(query, entries, widen)


__all__ = ["SlotLatentAttention"]
