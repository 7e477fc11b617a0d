"""What BioGPT has around its attention, for the one loop in plain_decoder.py.

Letters in shapes: B batch, S new tokens, D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .plain_decoder import LayerDropParts  # noqa: TID251 - beside this file in a checkpoint, too


class BioGptParts(LayerDropParts):
    """Embeddings, blocks and the last LayerNorm."""

    dropout: Any
    embed_positions: Any
    block_list, final_norm = "layers", "layer_norm"
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D], positions added."""
        places = arguments["position_ids"]
        states = inputs_embeds + self.embed_positions(places, position_ids=places)
        return nn.functional.dropout(states, p=float(self.dropout), training=self.training)


__all__ = ["BioGptParts"]
