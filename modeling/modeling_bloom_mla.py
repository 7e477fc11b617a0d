"""Bloom with multi-head latent attention (MLA): the backbone is in bloom_decoder.py."""

from typing import Any

from transformers import BloomForCausalLM, BloomModel
from transformers.models.bloom.modeling_bloom import BloomBlock

from .bloom_decoder import (  # noqa: TID251 - beside this file in a checkpoint, too
    BloomBackbone,
    BloomBackboneBlock,
    BloomBackbonePreTrainedModel,
)
from .configuration_bloom_mla import BloomMLAConfig  # noqa: TID251
from .latent_attention import LatentAttention  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead  # noqa: TID251
from .plain_latent import LatentInitialisation  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class BloomMLAAttention(LatentAttention):
    """Latent attention, whose scores fall with the distance."""

    def __init__(self, config: BloomMLAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, dropout=float(config.attention_dropout))
        self.output_dropout = float(config.hidden_dropout)


class BloomMLABlock(BloomBackboneBlock):
    """One layer with this attention."""

    forward = answers_like(BloomBlock.forward)(plain_block_forward)
    attention_class = BloomMLAAttention


class BloomMLAPreTrainedModel(LatentInitialisation, BloomBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = BloomMLAConfig
    _no_split_modules: Any = ["BloomMLABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": BloomMLABlock, "attentions": BloomMLAAttention}  # noqa: RUF012


class BloomMLAModel(BloomMLAPreTrainedModel, BloomBackbone, BloomModel):
    """Embeddings with a LayerNorm, blocks and the last LayerNorm."""

    block_class = BloomMLABlock
    forward = answers_like(BloomModel.forward)(plain_forward)


BloomMLAPreTrainedModel.base_class = BloomMLAModel


class BloomMLAForCausalLM(LanguageHead, BloomMLAPreTrainedModel, BloomForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(BloomForCausalLM.forward)(BloomForCausalLM.forward)


__all__ = ["BloomMLAForCausalLM", "BloomMLAModel"]
