"""OLMoE with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import OlmoeForCausalLM, OlmoeModel
from transformers.models.olmoe.modeling_olmoe import OlmoeAttention, OlmoePreTrainedModel

from .configuration_olmoe_mla import OlmoeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class OlmoeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = OlmoeMLAConfig
    _can_record_outputs: Any = {**OlmoePreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class OlmoeMLAModel(OlmoeMLAPreTrainedModel, OlmoeModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(OlmoeModel.forward)(OlmoeModel.forward)


class OlmoeMLAForCausalLM(OlmoeMLAPreTrainedModel, OlmoeForCausalLM):
    """The language model."""

    forward = answers_like(OlmoeForCausalLM.forward)(OlmoeForCausalLM.forward)


OlmoeMLAPreTrainedModel.stands_for = {OlmoeAttention: StockLatentAttention, OlmoeModel: OlmoeMLAModel}
keep_stored_names("olmoe_mla", "olmoe")

__all__ = ["OlmoeMLAForCausalLM", "OlmoeMLAModel"]
