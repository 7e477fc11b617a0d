"""ERNIE 4.5 with experts and multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Ernie4_5_MoeForCausalLM, Ernie4_5_MoeModel
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeAttention, Ernie4_5_MoePreTrainedModel

from .configuration_ernie4_5_moe_mla import Ernie45MoeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Ernie45MoeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Ernie45MoeMLAConfig
    _can_record_outputs: Any = {**Ernie4_5_MoePreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class Ernie45MoeMLAModel(Ernie45MoeMLAPreTrainedModel, Ernie4_5_MoeModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Ernie4_5_MoeModel.forward)(Ernie4_5_MoeModel.forward)


class Ernie45MoeMLAForCausalLM(Ernie45MoeMLAPreTrainedModel, Ernie4_5_MoeForCausalLM):
    """The language model."""

    forward = answers_like(Ernie4_5_MoeForCausalLM.forward)(Ernie4_5_MoeForCausalLM.forward)


Ernie45MoeMLAPreTrainedModel.stands_for = {
    Ernie4_5_MoeAttention: StockLatentAttention,
    Ernie4_5_MoeModel: Ernie45MoeMLAModel,
}
keep_stored_names("ernie4_5_moe_mla", "ernie4_5_moe")

__all__ = ["Ernie45MoeMLAForCausalLM", "Ernie45MoeMLAModel"]
