"""OPT whose query heads share key and value heads in groups; all but the attention is transformers' own.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import OPTForCausalLM, OPTForQuestionAnswering, OPTForSequenceClassification, OPTModel
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoder, OPTDecoderLayer

from .configuration_opt_gqa import OPTGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .opt_decoder import OPTParts  # noqa: TID251
from .plain_decoder import plain_forward  # noqa: TID251
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


class OPTGQADecoder(OPTParts, OPTGQAPreTrainedModel, OPTDecoder):
    """Embeddings, blocks and, in most, the last LayerNorm."""

    forward = answers_like(OPTDecoder.forward)(plain_forward)


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
