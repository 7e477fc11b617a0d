"""Qwen2 with a gate that mixes the states of all layers before the last norm; all else is transformers' own."""

from typing import Any

from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from .configuration_qwen2_mixture import Qwen2MixtureConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .mixture_of_layers import MixingNorm, MixtureModel, ReadingBlock  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Qwen2MixtureDecoderLayer(ReadingBlock, Qwen2DecoderLayer):
    """The stock block, which keeps what it reads."""


class Qwen2MixtureNorm(MixingNorm, Qwen2RMSNorm):
    """The stock norm behind the gate."""


class Qwen2MixturePreTrainedModel(MixtureModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Qwen2MixtureConfig
    block_class: Any = Qwen2MixtureDecoderLayer
    norm_class: Any = Qwen2MixtureNorm
    _no_split_modules: Any = ["Qwen2MixtureDecoderLayer"]  # noqa: RUF012


class Qwen2MixtureModel(Qwen2MixturePreTrainedModel, Qwen2Model):
    """Embeddings, blocks, and the last norm behind the gate."""

    forward = answers_like(Qwen2Model.forward)(Qwen2Model.forward)


class Qwen2MixtureForCausalLM(Qwen2MixturePreTrainedModel, Qwen2ForCausalLM):
    """The language model."""

    forward = answers_like(Qwen2ForCausalLM.forward)(Qwen2ForCausalLM.forward)


Qwen2MixturePreTrainedModel.stands_for = {Qwen2Model: Qwen2MixtureModel}

__all__ = ["Qwen2MixtureForCausalLM", "Qwen2MixtureModel"]
