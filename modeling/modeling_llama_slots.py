"""Llama with a cache of fixed length; all else is transformers' own."""

from typing import Any

from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention

from .configuration_llama_slots import LlamaSlotsConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_sequence import SlotAttention, SlotModel, makes_its_cache  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class LlamaSlotsAttention(SlotAttention, LlamaAttention):
    """The stock attention, which may meet slots."""


class LlamaSlotsPreTrainedModel(SlotModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = LlamaSlotsConfig


class LlamaSlotsModel(LlamaSlotsPreTrainedModel, LlamaModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(LlamaModel.forward)(makes_its_cache(LlamaModel.forward))


class LlamaSlotsForCausalLM(LlamaSlotsPreTrainedModel, LlamaForCausalLM):
    """The language model."""

    forward = answers_like(LlamaForCausalLM.forward)(LlamaForCausalLM.forward)


LlamaSlotsPreTrainedModel.stands_for = {LlamaAttention: LlamaSlotsAttention, LlamaModel: LlamaSlotsModel}

__all__ = ["LlamaSlotsForCausalLM", "LlamaSlotsModel"]
