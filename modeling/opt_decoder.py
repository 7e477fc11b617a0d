"""What OPT's decoder has around its attention, for the one loop in plain_decoder.py.

Letters in shapes: B batch, S new tokens, T tokens seen, D hidden size.
"""

from typing import Any

import torch

from .plain_decoder import LayerDropParts  # noqa: TID251 - beside this file in a checkpoint, too


class OPTParts(LayerDropParts):
    """Embeddings, blocks and, in most, the last LayerNorm."""

    block_list = "layers"
    project_in: Any
    project_out: Any
    final_layer_norm: Any
    embed_positions: Any

    def positions(self, inputs_embeds: torch.Tensor, mask: torch.Tensor | None, cache: Any) -> torch.Tensor:
        """[1 or B, S]: where no positions are given, the places among the tokens that the mask does not hide."""
        if mask is None or mask.ndim != 2:
            return super().positions(inputs_embeds, mask, cache)
        return (mask.cumsum(1) * mask - 1).long()[:, -inputs_embeds.shape[1] :]

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, word size] -> [B, S, D], positions added."""
        places = arguments["position_ids"]
        positions = self.embed_positions(places, position_ids=places)
        states = inputs_embeds if self.project_in is None else self.project_in(inputs_embeds)
        summed: torch.Tensor = states + positions.to(states.device)
        return summed

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, word size]."""
        states = hidden_states if self.final_layer_norm is None else self.final_layer_norm(hidden_states)
        projected: torch.Tensor = states if self.project_out is None else self.project_out(states)
        return projected


__all__ = ["OPTParts"]
