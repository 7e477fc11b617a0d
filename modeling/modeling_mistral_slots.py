"""Mistral with a cache of fixed length; all else is transformers' own."""

from typing import Any

from transformers import MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import MistralAttention

from .configuration_mistral_slots import MistralSlotsConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_sequence import SlotAttention, SlotModel, makes_its_cache  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class MistralSlotsAttention(SlotAttention, MistralAttention):
    """The stock attention, which may meet slots."""


class MistralSlotsPreTrainedModel(SlotModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = MistralSlotsConfig


class MistralSlotsModel(MistralSlotsPreTrainedModel, MistralModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(MistralModel.forward)(makes_its_cache(MistralModel.forward))


class MistralSlotsForCausalLM(MistralSlotsPreTrainedModel, MistralForCausalLM):
    """The language model."""

    forward = answers_like(MistralForCausalLM.forward)(MistralForCausalLM.forward)


MistralSlotsPreTrainedModel.stands_for = {MistralAttention: MistralSlotsAttention, MistralModel: MistralSlotsModel}

__all__ = ["MistralSlotsForCausalLM", "MistralSlotsModel"]
