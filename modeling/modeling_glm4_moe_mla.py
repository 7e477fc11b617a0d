"""GLM-4.5 with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import Glm4MoeForCausalLM, Glm4MoeModel
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeAttention, Glm4MoePreTrainedModel

from .configuration_glm4_moe_mla import Glm4MoeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Glm4MoeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Glm4MoeMLAConfig
    _can_record_outputs: Any = {**Glm4MoePreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class Glm4MoeMLAModel(Glm4MoeMLAPreTrainedModel, Glm4MoeModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Glm4MoeModel.forward)(Glm4MoeModel.forward)


class Glm4MoeMLAForCausalLM(Glm4MoeMLAPreTrainedModel, Glm4MoeForCausalLM):
    """The language model."""

    forward = answers_like(Glm4MoeForCausalLM.forward)(Glm4MoeForCausalLM.forward)


Glm4MoeMLAPreTrainedModel.stands_for = {Glm4MoeAttention: StockLatentAttention, Glm4MoeModel: Glm4MoeMLAModel}
keep_stored_names("glm4_moe_mla", "glm4_moe")

__all__ = ["Glm4MoeMLAForCausalLM", "Glm4MoeMLAModel"]
