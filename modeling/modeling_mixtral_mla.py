"""Mixtral with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import MixtralForCausalLM, MixtralModel
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, MixtralPreTrainedModel

from .configuration_mixtral_mla import MixtralMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class MixtralMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = MixtralMLAConfig
    _can_record_outputs: Any = {**MixtralPreTrainedModel._can_record_outputs, "attentions": StockLatentAttention}  # noqa: RUF012


class MixtralMLAModel(MixtralMLAPreTrainedModel, MixtralModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(MixtralModel.forward)(MixtralModel.forward)


class MixtralMLAForCausalLM(MixtralMLAPreTrainedModel, MixtralForCausalLM):
    """The language model."""

    forward = answers_like(MixtralForCausalLM.forward)(MixtralForCausalLM.forward)


MixtralMLAPreTrainedModel.stands_for = {MixtralAttention: StockLatentAttention, MixtralModel: MixtralMLAModel}
keep_stored_names("mixtral_mla", "mixtral")

__all__ = ["MixtralMLAForCausalLM", "MixtralMLAModel"]
