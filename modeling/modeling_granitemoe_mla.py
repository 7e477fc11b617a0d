"""Granite with experts and multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import GraniteMoeForCausalLM, GraniteMoeModel
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeAttention, GraniteMoePreTrainedModel

from .configuration_granitemoe_mla import GraniteMoeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GraniteMoeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = GraniteMoeMLAConfig
    _can_record_outputs: Any = {**GraniteMoePreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class GraniteMoeMLAModel(GraniteMoeMLAPreTrainedModel, GraniteMoeModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(GraniteMoeModel.forward)(GraniteMoeModel.forward)


class GraniteMoeMLAForCausalLM(GraniteMoeMLAPreTrainedModel, GraniteMoeForCausalLM):
    """The language model."""

    forward = answers_like(GraniteMoeForCausalLM.forward)(GraniteMoeForCausalLM.forward)


GraniteMoeMLAPreTrainedModel.stands_for = {
    GraniteMoeAttention: StockLatentAttention,
    GraniteMoeModel: GraniteMoeMLAModel,
}
keep_stored_names("granitemoe_mla", "granitemoe")

__all__ = ["GraniteMoeMLAForCausalLM", "GraniteMoeMLAModel"]
