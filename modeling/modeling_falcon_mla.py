"""Falcon with multi-head latent attention (MLA): the backbone is in falcon_decoder.py."""

from typing import Any

import torch
from transformers import FalconForCausalLM, FalconModel
from transformers.models.falcon.modeling_falcon import FalconDecoderLayer

from .configuration_falcon_mla import FalconMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .distance_masks import lessened, seen_by  # noqa: TID251
from .falcon_decoder import (  # noqa: TID251
    FalconBackbone,
    FalconBackboneBlock,
    FalconBackbonePreTrainedModel,
    coarse_slopes,
)
from .latent_attention import LatentAttention  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead  # noqa: TID251
from .plain_latent import LatentInitialisation  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class FalconMLAAttention(LatentAttention):
    """Latent attention, with a rotary key or with slopes, rounded as Falcon has them."""

    def __init__(self, config: FalconMLAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, dropout=float(config.attention_dropout or 0.0))

    def sloped(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, slopes: list[float]) -> torch.Tensor:
        """Take slopes [H] from the mask of the model, [B, 1, S, T] or None: [1 or B, H, S, T]."""
        seen, _ = seen_by(given, query, keys)
        lost = coarse_slopes(seen, torch.tensor(slopes, device=query.device), self.scaling)
        return lessened(given, query, lost, seen)


class FalconMLABlock(FalconBackboneBlock):
    """One layer with this attention."""

    forward = answers_like(FalconDecoderLayer.forward)(plain_block_forward)
    attention_class = FalconMLAAttention


class FalconMLAPreTrainedModel(LatentInitialisation, FalconBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = FalconMLAConfig
    _no_split_modules: Any = ["FalconMLABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": FalconMLABlock, "attentions": FalconMLAAttention}  # noqa: RUF012


class FalconMLAModel(FalconMLAPreTrainedModel, FalconBackbone, FalconModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = FalconMLABlock
    forward = answers_like(FalconModel.forward)(plain_forward)


FalconMLAPreTrainedModel.base_class = FalconMLAModel


class FalconMLAForCausalLM(LanguageHead, FalconMLAPreTrainedModel, FalconForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(FalconForCausalLM.forward)(FalconForCausalLM.forward)


__all__ = ["FalconMLAForCausalLM", "FalconMLAModel"]
