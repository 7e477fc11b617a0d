"""OLMo with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import OlmoForCausalLM, OlmoModel
from transformers.models.olmo.modeling_olmo import OlmoAttention, OlmoDecoderLayer

from .configuration_olmo_mla import OlmoMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class OlmoMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = OlmoMLAConfig
    _can_record_outputs: Any = {"hidden_states": OlmoDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class OlmoMLAModel(OlmoMLAPreTrainedModel, OlmoModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(OlmoModel.forward)(OlmoModel.forward)


class OlmoMLAForCausalLM(OlmoMLAPreTrainedModel, OlmoForCausalLM):
    """The language model."""

    forward = answers_like(OlmoForCausalLM.forward)(OlmoForCausalLM.forward)


OlmoMLAPreTrainedModel.stands_for = {OlmoAttention: StockLatentAttention, OlmoModel: OlmoMLAModel}

__all__ = ["OlmoMLAForCausalLM", "OlmoMLAModel"]
