"""Apertus with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import ApertusForCausalLM, ApertusModel
from transformers.models.apertus.modeling_apertus import ApertusAttention, ApertusPreTrainedModel

from .configuration_apertus_mla import ApertusMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class ApertusMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = ApertusMLAConfig
    _can_record_outputs: Any = {**ApertusPreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class ApertusMLAModel(ApertusMLAPreTrainedModel, ApertusModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(ApertusModel.forward)(ApertusModel.forward)


class ApertusMLAForCausalLM(ApertusMLAPreTrainedModel, ApertusForCausalLM):
    """The language model."""

    forward = answers_like(ApertusForCausalLM.forward)(ApertusForCausalLM.forward)


ApertusMLAPreTrainedModel.stands_for = {ApertusAttention: StockLatentAttention, ApertusModel: ApertusMLAModel}

__all__ = ["ApertusMLAForCausalLM", "ApertusMLAModel"]
