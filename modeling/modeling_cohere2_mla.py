"""Cohere 2 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Cohere2ForCausalLM, Cohere2Model
from transformers.models.cohere2.modeling_cohere2 import Cohere2Attention, Cohere2DecoderLayer

from .configuration_cohere2_mla import Cohere2MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Cohere2MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Cohere2MLAConfig
    _can_record_outputs: Any = {"hidden_states": Cohere2DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Cohere2MLAModel(Cohere2MLAPreTrainedModel, Cohere2Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Cohere2Model.forward)(Cohere2Model.forward)


class Cohere2MLAForCausalLM(Cohere2MLAPreTrainedModel, Cohere2ForCausalLM):
    """The language model."""

    forward = answers_like(Cohere2ForCausalLM.forward)(Cohere2ForCausalLM.forward)


Cohere2MLAPreTrainedModel.stands_for = {Cohere2Attention: StockLatentAttention, Cohere2Model: Cohere2MLAModel}

__all__ = ["Cohere2MLAForCausalLM", "Cohere2MLAModel"]
