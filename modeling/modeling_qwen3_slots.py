"""Qwen3 with a cache of fixed length; all else is transformers' own."""

from typing import Any

from transformers import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from .configuration_qwen3_slots import Qwen3SlotsConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_sequence import SlotAttention, SlotModel, makes_its_cache  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Qwen3SlotsAttention(SlotAttention, Qwen3Attention):
    """The stock attention, which may meet slots."""


class Qwen3SlotsPreTrainedModel(SlotModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Qwen3SlotsConfig


class Qwen3SlotsModel(Qwen3SlotsPreTrainedModel, Qwen3Model):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(Qwen3Model.forward)(makes_its_cache(Qwen3Model.forward))


class Qwen3SlotsForCausalLM(Qwen3SlotsPreTrainedModel, Qwen3ForCausalLM):
    """The language model."""

    forward = answers_like(Qwen3ForCausalLM.forward)(Qwen3ForCausalLM.forward)


Qwen3SlotsPreTrainedModel.stands_for = {Qwen3Attention: Qwen3SlotsAttention, Qwen3Model: Qwen3SlotsModel}

__all__ = ["Qwen3SlotsForCausalLM", "Qwen3SlotsModel"]
