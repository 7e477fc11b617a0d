"""Gemma 3 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Gemma3ForCausalLM, Gemma3TextModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3DecoderLayer

from .configuration_gemma3_text_mla import Gemma3MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Gemma3MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Gemma3MLAConfig
    _can_record_outputs: Any = {"hidden_states": Gemma3DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Gemma3MLAModel(Gemma3MLAPreTrainedModel, Gemma3TextModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Gemma3TextModel.forward)(Gemma3TextModel.forward)


class Gemma3MLAForCausalLM(Gemma3MLAPreTrainedModel, Gemma3ForCausalLM):
    """The language model."""

    forward = answers_like(Gemma3ForCausalLM.forward)(Gemma3ForCausalLM.forward)


Gemma3MLAPreTrainedModel.stands_for = {Gemma3Attention: StockLatentAttention, Gemma3TextModel: Gemma3MLAModel}

__all__ = ["Gemma3MLAForCausalLM", "Gemma3MLAModel"]
