"""StarCoder 2 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Starcoder2ForCausalLM, Starcoder2Model
from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2Attention, Starcoder2DecoderLayer

from .configuration_starcoder2_mla import Starcoder2MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Starcoder2MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Starcoder2MLAConfig
    _can_record_outputs: Any = {"hidden_states": Starcoder2DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Starcoder2MLAModel(Starcoder2MLAPreTrainedModel, Starcoder2Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Starcoder2Model.forward)(Starcoder2Model.forward)


class Starcoder2MLAForCausalLM(Starcoder2MLAPreTrainedModel, Starcoder2ForCausalLM):
    """The language model."""

    forward = answers_like(Starcoder2ForCausalLM.forward)(Starcoder2ForCausalLM.forward)


Starcoder2MLAPreTrainedModel.stands_for = {
    Starcoder2Attention: StockLatentAttention,
    Starcoder2Model: Starcoder2MLAModel,
}

__all__ = ["Starcoder2MLAForCausalLM", "Starcoder2MLAModel"]
