"""EXAONE 4 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Exaone4ForCausalLM, Exaone4Model
from transformers.models.exaone4.modeling_exaone4 import Exaone4Attention, Exaone4DecoderLayer

from .configuration_exaone4_mla import Exaone4MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Exaone4MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Exaone4MLAConfig
    _can_record_outputs: Any = {"hidden_states": Exaone4DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Exaone4MLAModel(Exaone4MLAPreTrainedModel, Exaone4Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Exaone4Model.forward)(Exaone4Model.forward)


class Exaone4MLAForCausalLM(Exaone4MLAPreTrainedModel, Exaone4ForCausalLM):
    """The language model."""

    forward = answers_like(Exaone4ForCausalLM.forward)(Exaone4ForCausalLM.forward)


Exaone4MLAPreTrainedModel.stands_for = {Exaone4Attention: StockLatentAttention, Exaone4Model: Exaone4MLAModel}

__all__ = ["Exaone4MLAForCausalLM", "Exaone4MLAModel"]
