"""Gemma 2 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Gemma2ForCausalLM, Gemma2Model
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2DecoderLayer

from .configuration_gemma2_mla import Gemma2MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Gemma2MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    _supports_attention_backend = False  # an engine's function would know no cap
    config_class: Any = Gemma2MLAConfig
    _can_record_outputs: Any = {"hidden_states": Gemma2DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Gemma2MLAModel(Gemma2MLAPreTrainedModel, Gemma2Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Gemma2Model.forward)(Gemma2Model.forward)


class Gemma2MLAForCausalLM(Gemma2MLAPreTrainedModel, Gemma2ForCausalLM):
    """The language model."""

    forward = answers_like(Gemma2ForCausalLM.forward)(Gemma2ForCausalLM.forward)


Gemma2MLAPreTrainedModel.stands_for = {Gemma2Attention: StockLatentAttention, Gemma2Model: Gemma2MLAModel}

__all__ = ["Gemma2MLAForCausalLM", "Gemma2MLAModel"]
