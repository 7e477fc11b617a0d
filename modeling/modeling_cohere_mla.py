"""Cohere with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import CohereForCausalLM, CohereModel
from transformers.models.cohere.modeling_cohere import CohereAttention, CohereDecoderLayer

from .configuration_cohere_mla import CohereMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class CohereMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = CohereMLAConfig
    _can_record_outputs: Any = {"hidden_states": CohereDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class CohereMLAModel(CohereMLAPreTrainedModel, CohereModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(CohereModel.forward)(CohereModel.forward)


class CohereMLAForCausalLM(CohereMLAPreTrainedModel, CohereForCausalLM):
    """The language model."""

    forward = answers_like(CohereForCausalLM.forward)(CohereForCausalLM.forward)


CohereMLAPreTrainedModel.stands_for = {CohereAttention: StockLatentAttention, CohereModel: CohereMLAModel}

__all__ = ["CohereMLAForCausalLM", "CohereMLAModel"]
