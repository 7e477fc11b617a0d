"""Llama with a gate that mixes the states of all layers before the last norm; all else is transformers' own."""

from typing import Any

from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from .configuration_llama_mixture import LlamaMixtureConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .mixture_of_layers import MixingNorm, MixtureModel, ReadingBlock  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class LlamaMixtureDecoderLayer(ReadingBlock, LlamaDecoderLayer):
    """The stock block, which keeps what it reads."""


class LlamaMixtureNorm(MixingNorm, LlamaRMSNorm):
    """The stock norm behind the gate."""


class LlamaMixturePreTrainedModel(MixtureModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = LlamaMixtureConfig
    block_class: Any = LlamaMixtureDecoderLayer
    norm_class: Any = LlamaMixtureNorm
    _no_split_modules: Any = ["LlamaMixtureDecoderLayer"]  # noqa: RUF012


class LlamaMixtureModel(LlamaMixturePreTrainedModel, LlamaModel):
    """Embeddings, blocks, and the last norm behind the gate."""

    forward = answers_like(LlamaModel.forward)(LlamaModel.forward)


class LlamaMixtureForCausalLM(LlamaMixturePreTrainedModel, LlamaForCausalLM):
    """The language model."""

    forward = answers_like(LlamaForCausalLM.forward)(LlamaForCausalLM.forward)


LlamaMixturePreTrainedModel.stands_for = {LlamaModel: LlamaMixtureModel}

__all__ = ["LlamaMixtureForCausalLM", "LlamaMixtureModel"]
