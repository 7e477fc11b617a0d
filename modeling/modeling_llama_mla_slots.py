"""Llama with multi-head latent attention and a cache of fixed length; all else is that of modeling_llama_mla.py."""

from typing import Any

from .configuration_llama_mla_slots import LlamaMLASlotsConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_attention import LatentAttention  # noqa: TID251
from .latent_sequence import SlotModel, makes_its_cache  # noqa: TID251
from .latent_slots import SlotLatentAttention  # noqa: TID251
from .modeling_llama_mla import LlamaMLAForCausalLM, LlamaMLAModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class LlamaMLASlotsPreTrainedModel(SlotModel):
    """What the classes below declare to transformers in another way than those without slots."""

    config_class: Any = LlamaMLASlotsConfig


class LlamaMLASlotsModel(LlamaMLASlotsPreTrainedModel, LlamaMLAModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(LlamaMLAModel.forward)(makes_its_cache(LlamaMLAModel.forward))


class LlamaMLASlotsForCausalLM(LlamaMLASlotsPreTrainedModel, LlamaMLAForCausalLM):
    """The language model."""

    forward = answers_like(LlamaMLAForCausalLM.forward)(LlamaMLAForCausalLM.forward)


LlamaMLASlotsPreTrainedModel.stands_for = {LatentAttention: SlotLatentAttention, LlamaMLAModel: LlamaMLASlotsModel}

__all__ = ["LlamaMLASlotsForCausalLM", "LlamaMLASlotsModel"]
