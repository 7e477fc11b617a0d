"""OPT whose query heads share key and value heads in groups; all but the attention is transformers' own.

Letters in shapes are those of `shared_heads.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import OPTForCausalLM, OPTForQuestionAnswering, OPTForSequenceClassification, OPTModel
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoder, OPTDecoderLayer

from .configuration_opt_gqa import OPTGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .plain_decoder import PlainParts, plain_forward  # noqa: TID251
from .shared_heads import SeparateAttention, SharedHeadsModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class OPTGQAAttention(SeparateAttention, OPTAttention):
    """Three projections; `k_proj` and `v_proj` make G heads."""

    def __init__(self, config: OPTGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = config.attention_dropout
        self.make_projections(config.enable_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.enable_bias)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.out_proj(attended)
        return projected


class OPTGQAPreTrainedModel(SharedHeadsModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = OPTGQAConfig
    _can_record_outputs: Any = {"hidden_states": OPTDecoderLayer, "attentions": OPTGQAAttention}  # noqa: RUF012


class OPTGQADecoder(PlainParts, OPTGQAPreTrainedModel, OPTDecoder):
    """Embeddings, blocks and, in most, the last LayerNorm."""

    forward = answers_like(OPTDecoder.forward)(plain_forward)

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks; in training some are left out at random, where the config says so."""
        return [layer for layer in self.layers if not (self.training and torch.rand([]) < self.layerdrop)]

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


class OPTGQAModel(OPTGQAPreTrainedModel, OPTModel):
    """The decoder, by another name."""

    forward = answers_like(OPTModel.forward)(OPTModel.forward)


class OPTGQAForCausalLM(OPTGQAPreTrainedModel, OPTForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(OPTForCausalLM.forward)(OPTForCausalLM.forward)


class OPTGQAForSequenceClassification(OPTGQAPreTrainedModel, OPTForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(OPTForSequenceClassification.forward)(OPTForSequenceClassification.forward)


class OPTGQAForQuestionAnswering(OPTGQAPreTrainedModel, OPTForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    forward = answers_like(OPTForQuestionAnswering.forward)(OPTForQuestionAnswering.forward)


OPTGQAPreTrainedModel.stands_for = {
    OPTAttention: OPTGQAAttention,
    OPTDecoder: OPTGQADecoder,
    OPTModel: OPTGQAModel,
}

__all__ = ["OPTGQAForCausalLM", "OPTGQAForQuestionAnswering", "OPTGQAForSequenceClassification", "OPTGQAModel"]
