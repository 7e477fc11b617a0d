"""Qwen3 with a gate that mixes the states of all layers before the last norm; all else is transformers' own."""

from typing import Any

from transformers import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm

from .configuration_qwen3_mixture import Qwen3MixtureConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .mixture_of_layers import MixingNorm, MixtureModel, ReadingBlock  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class Qwen3MixtureDecoderLayer(ReadingBlock, Qwen3DecoderLayer):
    """The stock block, which keeps what it reads."""


class Qwen3MixtureNorm(MixingNorm, Qwen3RMSNorm):
    """The stock norm behind the gate."""


class Qwen3MixturePreTrainedModel(MixtureModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = Qwen3MixtureConfig
    block_class: Any = Qwen3MixtureDecoderLayer
    norm_class: Any = Qwen3MixtureNorm
    _no_split_modules: Any = ["Qwen3MixtureDecoderLayer"]  # noqa: RUF012


class Qwen3MixtureModel(Qwen3MixturePreTrainedModel, Qwen3Model):
    """Embeddings, blocks, and the last norm behind the gate."""

    forward = answers_like(Qwen3Model.forward)(Qwen3Model.forward)


class Qwen3MixtureForCausalLM(Qwen3MixturePreTrainedModel, Qwen3ForCausalLM):
    """The language model."""

    forward = answers_like(Qwen3ForCausalLM.forward)(Qwen3ForCausalLM.forward)


Qwen3MixturePreTrainedModel.stands_for = {Qwen3Model: Qwen3MixtureModel}

__all__ = ["Qwen3MixtureForCausalLM", "Qwen3MixtureModel"]
