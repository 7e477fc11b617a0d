"""Falcon whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from transformers import (
    FalconForCausalLM,
    FalconForSequenceClassification,
    FalconForTokenClassification,
    FalconModel,
)
from transformers.models.falcon.modeling_falcon import (
    FalconDecoderLayer,
    FalconLinear,
    FalconRotaryEmbedding,
    apply_rotary_pos_emb,
)

from .configuration_falcon_gqa import FalconGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .falcon_decoder import (  # noqa: TID251
    FalconBackbone,
    FalconBackboneBlock,
    FalconBackbonePreTrainedModel,
    coarse_slopes,
)
from .own_masks import AlibiAttention, alibi_slopes  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead, SequenceHead, TokenHead  # noqa: TID251
from .shared_heads import SharedHeadsAttention  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class FalconGQAAttention(SharedHeadsAttention):
    """`query_key_value` makes, group by group, its query heads, its key head and its value head.

    That is each of Falcon's own three layouts, for as many groups as heads, for one, and for those between. The cache
    holds G heads, where that of the stock class holds H wherever there is more than one.
    """

    def __init__(self, config: FalconGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        bias = bool(config.bias)
        rows = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.query_key_value = FalconLinear(config.hidden_size, rows, bias=bias)
        self.dense = FalconLinear(config.hidden_size, config.hidden_size, bias=bias)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        return self.grouped(self.query_key_value(hidden_states))

    def turn(
        self, query: torch.Tensor, key: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn query [B, H, S, d] and key [B, G, S, d] by the model's tables, where it has such."""
        tables = arguments.pop("position_embeddings", None)
        if tables is None:
            return query, key
        turned: tuple[torch.Tensor, torch.Tensor] = apply_rotary_pos_emb(query, key, *tables)
        return turned

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.dense(attended)
        return projected


class FalconGQAAlibiAttention(AlibiAttention, FalconGQAAttention):
    """With slopes instead of rotary position, rounded as Falcon has them and within what the scale multiplies."""

    def __init__(self, config: FalconGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = float(config.attention_dropout or 0.0)

    def lost(self, seen: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor:
        """Give what is added to scores, [1 or B, H, S, T], by places from the first token that is seen."""
        return coarse_slopes(seen, alibi_slopes(self.num_heads, seen.device), self.scaling)


def _attention(config: FalconGQAConfig, layer_idx: int) -> FalconGQAAttention:
    return (FalconGQAAlibiAttention if config.alibi else FalconGQAAttention)(config, layer_idx)


class FalconGQABlock(FalconBackboneBlock):
    """One layer with this attention."""

    forward = answers_like(FalconDecoderLayer.forward)(plain_block_forward)
    attention_class = staticmethod(_attention)


class FalconGQAPreTrainedModel(FalconBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = FalconGQAConfig
    _no_split_modules: Any = ["FalconGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": FalconGQABlock, "attentions": FalconGQAAttention}  # noqa: RUF012


class FalconGQAModel(FalconGQAPreTrainedModel, FalconBackbone, FalconModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = FalconGQABlock
    forward = answers_like(FalconModel.forward)(plain_forward)

    def build(self, config: FalconGQAConfig) -> None:
        """Make the modules."""
        super().build(config)
        if not config.alibi:
            self.rotary_emb = FalconRotaryEmbedding(config)

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]; blocks get cosines and sines, where heads turn."""
        if not self.config.alibi:
            arguments["position_embeddings"] = self.rotary_emb(inputs_embeds, position_ids=arguments["position_ids"])
        return inputs_embeds


FalconGQAPreTrainedModel.base_class = FalconGQAModel


class FalconGQAForCausalLM(LanguageHead, FalconGQAPreTrainedModel, FalconForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(FalconForCausalLM.forward)(FalconForCausalLM.forward)


class FalconGQAForSequenceClassification(SequenceHead, FalconGQAPreTrainedModel, FalconForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(FalconForSequenceClassification.forward)(FalconForSequenceClassification.forward)


class FalconGQAForTokenClassification(TokenHead, FalconGQAPreTrainedModel, FalconForTokenClassification):
    """One label for each token."""

    forward = answers_like(FalconForTokenClassification.forward)(FalconForTokenClassification.forward)


__all__ = [
    "FalconGQAForCausalLM",
    "FalconGQAForSequenceClassification",
    "FalconGQAForTokenClassification",
    "FalconGQAModel",
]
