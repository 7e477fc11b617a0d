"""OLMo 3 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Olmo3ForCausalLM, Olmo3Model
from transformers.models.olmo3.modeling_olmo3 import Olmo3Attention, Olmo3DecoderLayer

from .configuration_olmo3_mla import Olmo3MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Olmo3MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Olmo3MLAConfig
    _can_record_outputs: Any = {"hidden_states": Olmo3DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Olmo3MLAModel(Olmo3MLAPreTrainedModel, Olmo3Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Olmo3Model.forward)(Olmo3Model.forward)


class Olmo3MLAForCausalLM(Olmo3MLAPreTrainedModel, Olmo3ForCausalLM):
    """The language model."""

    forward = answers_like(Olmo3ForCausalLM.forward)(Olmo3ForCausalLM.forward)


Olmo3MLAPreTrainedModel.stands_for = {Olmo3Attention: StockLatentAttention, Olmo3Model: Olmo3MLAModel}

__all__ = ["Olmo3MLAForCausalLM", "Olmo3MLAModel"]
