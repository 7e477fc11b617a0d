"""Qwen2 with a cache of fixed length; all else is transformers' own."""

from typing import Any

from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from .configuration_qwen2_slots import Qwen2SlotsConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_sequence import SlotAttention, SlotModel, makes_its_cache  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Qwen2SlotsAttention(SlotAttention, Qwen2Attention):
    """The stock attention, which may meet slots."""


class Qwen2SlotsPreTrainedModel(SlotModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Qwen2SlotsConfig


class Qwen2SlotsModel(Qwen2SlotsPreTrainedModel, Qwen2Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Qwen2Model.forward)(makes_its_cache(Qwen2Model.forward))


class Qwen2SlotsForCausalLM(Qwen2SlotsPreTrainedModel, Qwen2ForCausalLM):
    """The language model."""

    forward = answers_like(Qwen2ForCausalLM.forward)(Qwen2ForCausalLM.forward)


Qwen2SlotsPreTrainedModel.stands_for = {Qwen2Attention: Qwen2SlotsAttention, Qwen2Model: Qwen2SlotsModel}

__all__ = ["Qwen2SlotsForCausalLM", "Qwen2SlotsModel"]
