"""Qwen2 with experts and multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Qwen2MoeForCausalLM, Qwen2MoeModel
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeAttention, Qwen2MoePreTrainedModel

from .configuration_qwen2_moe_mla import Qwen2MoeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Qwen2MoeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Qwen2MoeMLAConfig
    _can_record_outputs: Any = {**Qwen2MoePreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class Qwen2MoeMLAModel(Qwen2MoeMLAPreTrainedModel, Qwen2MoeModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Qwen2MoeModel.forward)(Qwen2MoeModel.forward)


class Qwen2MoeMLAForCausalLM(Qwen2MoeMLAPreTrainedModel, Qwen2MoeForCausalLM):
    """The language model."""

    forward = answers_like(Qwen2MoeForCausalLM.forward)(Qwen2MoeForCausalLM.forward)


Qwen2MoeMLAPreTrainedModel.stands_for = {Qwen2MoeAttention: StockLatentAttention, Qwen2MoeModel: Qwen2MoeMLAModel}
keep_stored_names("qwen2_moe_mla", "qwen2_moe")

__all__ = ["Qwen2MoeMLAForCausalLM", "Qwen2MoeMLAModel"]
