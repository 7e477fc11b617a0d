"""Qwen3 with experts and multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Qwen3MoeForCausalLM, Qwen3MoeModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention, Qwen3MoePreTrainedModel

from .configuration_qwen3_moe_mla import Qwen3MoeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Qwen3MoeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Qwen3MoeMLAConfig
    _can_record_outputs: Any = {**Qwen3MoePreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class Qwen3MoeMLAModel(Qwen3MoeMLAPreTrainedModel, Qwen3MoeModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Qwen3MoeModel.forward)(Qwen3MoeModel.forward)


class Qwen3MoeMLAForCausalLM(Qwen3MoeMLAPreTrainedModel, Qwen3MoeForCausalLM):
    """The language model."""

    forward = answers_like(Qwen3MoeForCausalLM.forward)(Qwen3MoeForCausalLM.forward)


Qwen3MoeMLAPreTrainedModel.stands_for = {Qwen3MoeAttention: StockLatentAttention, Qwen3MoeModel: Qwen3MoeMLAModel}
keep_stored_names("qwen3_moe_mla", "qwen3_moe")

__all__ = ["Qwen3MoeMLAForCausalLM", "Qwen3MoeMLAModel"]
