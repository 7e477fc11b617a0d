"""GLM-4 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Glm4ForCausalLM, Glm4Model
from transformers.models.glm4.modeling_glm4 import Glm4Attention, Glm4DecoderLayer

from .configuration_glm4_mla import Glm4MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Glm4MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Glm4MLAConfig
    _can_record_outputs: Any = {"hidden_states": Glm4DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Glm4MLAModel(Glm4MLAPreTrainedModel, Glm4Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Glm4Model.forward)(Glm4Model.forward)


class Glm4MLAForCausalLM(Glm4MLAPreTrainedModel, Glm4ForCausalLM):
    """The language model."""

    forward = answers_like(Glm4ForCausalLM.forward)(Glm4ForCausalLM.forward)


Glm4MLAPreTrainedModel.stands_for = {Glm4Attention: StockLatentAttention, Glm4Model: Glm4MLAModel}

__all__ = ["Glm4MLAForCausalLM", "Glm4MLAModel"]
