"""Falcon whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import (
    FalconForCausalLM,
    FalconForSequenceClassification,
    FalconForTokenClassification,
    FalconModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.falcon.modeling_falcon import (
    FalconDecoderLayer,
    FalconLinear,
    FalconMLP,
    FalconRotaryEmbedding,
    apply_rotary_pos_emb,
)

from .configuration_falcon_gqa import FalconGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .own_masks import AlibiAttention, alibi_slopes  # noqa: TID251
from .plain_decoder import (  # noqa: TID251
    PlainBlock,
    PlainModel,
    PlainPreTrainedModel,
    plain_block_forward,
    plain_forward,
)
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
        first = seen.int().argmax(-1, keepdim=True)
        places = torch.arange(seen.shape[-1], device=seen.device) - first
        slopes = alibi_slopes(self.num_heads, seen.device).bfloat16()
        return (slopes[:, None, None] * places).float() * self.scaling


class FalconGQABlock(PlainBlock):
    """One layer: attention and MLP side by side, behind one LayerNorm or two, or one behind the other."""

    forward = answers_like(FalconDecoderLayer.forward)(plain_block_forward)

    def __init__(self, config: FalconGQAConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, float(config.layer_norm_epsilon or 0.0)
        attention = FalconGQAAlibiAttention if config.alibi else FalconGQAAttention
        self.self_attention = attention(config, layer_idx)
        self.mlp = FalconMLP(config)
        new = bool(config.new_decoder_architecture)
        self.parallel = new or bool(config.parallel_attn)
        self.two_norms = new and config.num_ln_in_parallel_attn in (None, 2)
        if self.two_norms:
            self.ln_attn = nn.LayerNorm(size, eps=eps)
            self.ln_mlp = nn.LayerNorm(size, eps=eps)
        else:
            self.input_layernorm = nn.LayerNorm(size, eps=eps)
        if not self.parallel:
            self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention_dropout = nn.Dropout(float(config.attention_dropout or 0.0))
        self.hidden_dropout = nn.Dropout(float(config.hidden_dropout or 0.0))

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed = (self.ln_attn if self.two_norms else self.input_layernorm)(hidden_states)
        attended, _ = self.self_attention(normed, **arguments)
        if not self.parallel:
            hidden_states = hidden_states + self.attention_dropout(attended)
            added = self.mlp(self.post_attention_layernorm(hidden_states))
        else:
            added = self.mlp(self.ln_mlp(hidden_states) if self.two_norms else normed) + attended
        output: torch.Tensor = hidden_states + self.hidden_dropout(added)
        return output


class FalconGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = FalconGQAConfig
    base_model_prefix = "transformer"
    _no_split_modules: Any = ["FalconGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": FalconGQABlock, "attentions": FalconGQAAttention}  # noqa: RUF012


class FalconGQAModel(FalconGQAPreTrainedModel, PlainModel, FalconModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(FalconModel.forward)(plain_forward)
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: FalconGQAConfig) -> None:
        """Make the modules."""
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([FalconGQABlock(config, layer) for layer in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=float(config.layer_norm_epsilon or 0.0))
        if not config.alibi:
            self.rotary_emb = FalconRotaryEmbedding(config)
        self.gradient_checkpointing = False

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks."""
        return self.h

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]; blocks get cosines and sines, where heads turn."""
        if not self.config.alibi:
            arguments["position_embeddings"] = self.rotary_emb(inputs_embeds, position_ids=arguments["position_ids"])
        return inputs_embeds

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed: torch.Tensor = self.ln_f(hidden_states)
        return normed


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
