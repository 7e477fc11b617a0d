"""Qwen3 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer

from .configuration_qwen3_mla import Qwen3MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Qwen3MLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Qwen3MLAConfig
    _can_record_outputs: Any = {"hidden_states": Qwen3DecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class Qwen3MLAModel(Qwen3MLAPreTrainedModel, Qwen3Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Qwen3Model.forward)(Qwen3Model.forward)


class Qwen3MLAForCausalLM(Qwen3MLAPreTrainedModel, Qwen3ForCausalLM):
    """The language model."""

    forward = answers_like(Qwen3ForCausalLM.forward)(Qwen3ForCausalLM.forward)


Qwen3MLAPreTrainedModel.stands_for = {Qwen3Attention: StockLatentAttention, Qwen3Model: Qwen3MLAModel}

__all__ = ["Qwen3MLAForCausalLM", "Qwen3MLAModel"]
