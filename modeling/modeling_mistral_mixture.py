"""Mistral with a gate that mixes the states of all layers before the last norm; all else is transformers' own."""

from typing import Any

from transformers import MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRMSNorm

from .configuration_mistral_mixture import MistralMixtureConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .mixture_of_layers import MixingNorm, MixtureModel, ReadingBlock  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class MistralMixtureDecoderLayer(ReadingBlock, MistralDecoderLayer):
    """The stock block, which keeps what it reads."""


class MistralMixtureNorm(MixingNorm, MistralRMSNorm):
    """The stock norm behind the gate."""


class MistralMixturePreTrainedModel(MixtureModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = MistralMixtureConfig
    block_class: Any = MistralMixtureDecoderLayer
    norm_class: Any = MistralMixtureNorm
    _no_split_modules: Any = ["MistralMixtureDecoderLayer"]  # noqa: RUF012


class MistralMixtureModel(MistralMixturePreTrainedModel, MistralModel):
    """Embeddings, blocks, and the last norm behind the gate."""

    forward = answers_like(MistralModel.forward)(MistralModel.forward)


class MistralMixtureForCausalLM(MistralMixturePreTrainedModel, MistralForCausalLM):
    """The language model."""

    forward = answers_like(MistralForCausalLM.forward)(MistralForCausalLM.forward)


MistralMixturePreTrainedModel.stands_for = {MistralModel: MistralMixtureModel}

__all__ = ["MistralMixtureForCausalLM", "MistralMixtureModel"]
