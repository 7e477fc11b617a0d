"""StableLM with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import StableLmForCausalLM, StableLmModel
from transformers.models.stablelm.modeling_stablelm import StableLmAttention, StableLmDecoderLayer

from .configuration_stablelm_mla import StableLmMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class StableLmMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = StableLmMLAConfig
    _can_record_outputs: Any = {"hidden_states": StableLmDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class StableLmMLAModel(StableLmMLAPreTrainedModel, StableLmModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(StableLmModel.forward)(StableLmModel.forward)


class StableLmMLAForCausalLM(StableLmMLAPreTrainedModel, StableLmForCausalLM):
    """The language model."""

    forward = answers_like(StableLmForCausalLM.forward)(StableLmForCausalLM.forward)


StableLmMLAPreTrainedModel.stands_for = {StableLmAttention: StockLatentAttention, StableLmModel: StableLmMLAModel}

__all__ = ["StableLmMLAForCausalLM", "StableLmMLAModel"]
