"""What BioGPT has around its attention, for the one loop in plain_decoder.py.

Letters in shapes: B batch, S new tokens, D hidden size.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .plain_decoder import PlainParts  # noqa: TID251 - beside this file in a checkpoint, too


class BioGptParts(PlainParts):
    """Embeddings, blocks and the last LayerNorm."""

    layers: Any
    layerdrop: Any
    dropout: Any
    training: Any
    layer_norm: Any
    embed_positions: Any
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks; in training some are left out at random, where the config says so."""
        return [layer for layer in self.layers if not (self.training and torch.rand([]) < self.layerdrop)]

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D], positions added."""
        places = arguments["position_ids"]
        states = inputs_embeds + self.embed_positions(places, position_ids=places)
        return nn.functional.dropout(states, p=float(self.dropout), training=self.training)

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed: torch.Tensor = self.layer_norm(hidden_states)
        return normed


__all__ = ["BioGptParts"]
