"""Arcee with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import ArceeForCausalLM, ArceeModel
from transformers.models.arcee.modeling_arcee import ArceeAttention, ArceeDecoderLayer

from .configuration_arcee_mla import ArceeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class ArceeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = ArceeMLAConfig
    _can_record_outputs: Any = {"hidden_states": ArceeDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class ArceeMLAModel(ArceeMLAPreTrainedModel, ArceeModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(ArceeModel.forward)(ArceeModel.forward)


class ArceeMLAForCausalLM(ArceeMLAPreTrainedModel, ArceeForCausalLM):
    """The language model."""

    forward = answers_like(ArceeForCausalLM.forward)(ArceeForCausalLM.forward)


ArceeMLAPreTrainedModel.stands_for = {ArceeAttention: StockLatentAttention, ArceeModel: ArceeMLAModel}

__all__ = ["ArceeMLAForCausalLM", "ArceeMLAModel"]
