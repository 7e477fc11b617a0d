"""Granite with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import GraniteForCausalLM, GraniteModel
from transformers.models.granite.modeling_granite import GraniteAttention, GraniteDecoderLayer

from .configuration_granite_mla import GraniteMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GraniteMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = GraniteMLAConfig
    _can_record_outputs: Any = {"hidden_states": GraniteDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class GraniteMLAModel(GraniteMLAPreTrainedModel, GraniteModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(GraniteModel.forward)(GraniteModel.forward)


class GraniteMLAForCausalLM(GraniteMLAPreTrainedModel, GraniteForCausalLM):
    """The language model."""

    forward = answers_like(GraniteForCausalLM.forward)(GraniteForCausalLM.forward)


GraniteMLAPreTrainedModel.stands_for = {GraniteAttention: StockLatentAttention, GraniteModel: GraniteMLAModel}

__all__ = ["GraniteMLAForCausalLM", "GraniteMLAModel"]
