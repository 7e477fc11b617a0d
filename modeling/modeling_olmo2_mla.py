"""OLMo 2 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Olmo2ForCausalLM, Olmo2Model
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2DecoderLayer

from .configuration_olmo2_mla import Olmo2MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Olmo2MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Olmo2MLAConfig
    _can_record_outputs: Any = {"hidden_states": Olmo2DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Olmo2MLAModel(Olmo2MLAPreTrainedModel, Olmo2Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Olmo2Model.forward)(Olmo2Model.forward)


class Olmo2MLAForCausalLM(Olmo2MLAPreTrainedModel, Olmo2ForCausalLM):
    """The language model."""

    forward = answers_like(Olmo2ForCausalLM.forward)(Olmo2ForCausalLM.forward)


Olmo2MLAPreTrainedModel.stands_for = {Olmo2Attention: StockLatentAttention, Olmo2Model: Olmo2MLAModel}

__all__ = ["Olmo2MLAForCausalLM", "Olmo2MLAModel"]
