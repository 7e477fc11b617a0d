"""BioGPT whose query heads share key and value heads in groups; all but the attention is transformers' own.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptModel,
)
from transformers.models.biogpt.modeling_biogpt import BioGptAttention, BioGptDecoderLayer

from .biogpt_decoder import BioGptParts  # noqa: TID251 - beside this file in a checkpoint, too
from .configuration_biogpt_gqa import BioGptGQAConfig  # noqa: TID251
from .plain_decoder import plain_forward  # noqa: TID251
from .shared_heads import SeparateAttention, SharedHeadsModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class BioGptGQAAttention(SeparateAttention, BioGptAttention):
    """Three projections; `k_proj` and `v_proj` make G heads."""

    def __init__(self, config: BioGptGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = float(config.attention_probs_dropout_prob)
        self.make_projections(bias=True)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.out_proj(attended)
        return projected


class BioGptGQAPreTrainedModel(SharedHeadsModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = BioGptGQAConfig
    _supports_attention_backend = True
    _can_record_outputs: Any = {"hidden_states": BioGptDecoderLayer, "attentions": BioGptGQAAttention}  # noqa: RUF012


class BioGptGQAModel(BioGptParts, BioGptGQAPreTrainedModel, BioGptModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(BioGptModel.forward)(plain_forward)


class BioGptGQAForCausalLM(BioGptGQAPreTrainedModel, BioGptForCausalLM):
    """The language model; `output_projection` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(BioGptForCausalLM.forward)(BioGptForCausalLM.forward)


class BioGptGQAForSequenceClassification(BioGptGQAPreTrainedModel, BioGptForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(BioGptForSequenceClassification.forward)(BioGptForSequenceClassification.forward)


class BioGptGQAForTokenClassification(BioGptGQAPreTrainedModel, BioGptForTokenClassification):
    """One label for each token."""

    forward = answers_like(BioGptForTokenClassification.forward)(BioGptForTokenClassification.forward)


BioGptGQAPreTrainedModel.stands_for = {BioGptAttention: BioGptGQAAttention, BioGptModel: BioGptGQAModel}

__all__ = [
    "BioGptGQAForCausalLM",
    "BioGptGQAForSequenceClassification",
    "BioGptGQAForTokenClassification",
    "BioGptGQAModel",
]
