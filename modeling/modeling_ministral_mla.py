"""Ministral with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import MinistralForCausalLM, MinistralModel
from transformers.models.ministral.modeling_ministral import MinistralAttention, MinistralDecoderLayer

from .configuration_ministral_mla import MinistralMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class MinistralMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = MinistralMLAConfig
    _can_record_outputs: Any = {"hidden_states": MinistralDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class MinistralMLAModel(MinistralMLAPreTrainedModel, MinistralModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(MinistralModel.forward)(MinistralModel.forward)


class MinistralMLAForCausalLM(MinistralMLAPreTrainedModel, MinistralForCausalLM):
    """The language model."""

    forward = answers_like(MinistralForCausalLM.forward)(MinistralForCausalLM.forward)


MinistralMLAPreTrainedModel.stands_for = {MinistralAttention: StockLatentAttention, MinistralModel: MinistralMLAModel}

__all__ = ["MinistralMLAForCausalLM", "MinistralMLAModel"]
