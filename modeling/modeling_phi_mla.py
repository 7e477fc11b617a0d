"""Phi with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import PhiForCausalLM, PhiModel
from transformers.models.phi.modeling_phi import PhiAttention, PhiDecoderLayer

from .configuration_phi_mla import PhiMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class PhiMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = PhiMLAConfig
    _can_record_outputs: Any = {"hidden_states": PhiDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class PhiMLAModel(PhiMLAPreTrainedModel, PhiModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(PhiModel.forward)(PhiModel.forward)


class PhiMLAForCausalLM(PhiMLAPreTrainedModel, PhiForCausalLM):
    """The language model."""

    forward = answers_like(PhiForCausalLM.forward)(PhiForCausalLM.forward)


PhiMLAPreTrainedModel.stands_for = {PhiAttention: StockLatentAttention, PhiModel: PhiMLAModel}

__all__ = ["PhiMLAForCausalLM", "PhiMLAModel"]
