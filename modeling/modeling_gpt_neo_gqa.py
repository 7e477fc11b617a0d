"""GPT-Neo whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    GPTNeoForCausalLM,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
)
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock

from .configuration_gpt_neo_gqa import GPTNeoGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .gpt_neo_decoder import GPTNeoBackbone, GPTNeoBackboneBlock, GPTNeoBackbonePreTrainedModel  # noqa: TID251
from .own_masks import OwnMaskAttention, near  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead, SequenceHead, TokenHead  # noqa: TID251
from .shared_heads import SeparateAttention  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTNeoGQAAttention(OwnMaskAttention, SeparateAttention):
    """Three projections without biases; in local layers a token sees those within a window."""

    reorder_and_upcast_attn = True  # scores in float32, as GPT-Neo has them

    def __init__(self, config: GPTNeoGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = float(config.attention_dropout)
        self.scaling = 1.0
        self.window = config.window_size if config.attention_layers[layer_idx] == "local" else None
        self.make_projections(bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.resid_dropout = nn.Dropout(float(config.resid_dropout))

    def mask(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, arguments: dict[str, Any]) -> Any:
        """Narrow the mask of the model, [B, 1, S, T] or None, to the window."""
        return given if self.window is None else near(given, query, keys, self.window)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.resid_dropout(self.out_proj(attended))
        return projected


class GPTNeoGQABlock(GPTNeoBackboneBlock):
    """One layer with this attention."""

    forward = answers_like(GPTNeoBlock.forward)(plain_block_forward)
    attention_class = GPTNeoGQAAttention


class GPTNeoGQAPreTrainedModel(GPTNeoBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = GPTNeoGQAConfig
    _no_split_modules: Any = ["GPTNeoGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": GPTNeoGQABlock, "attentions": GPTNeoGQAAttention}  # noqa: RUF012


class GPTNeoGQAModel(GPTNeoGQAPreTrainedModel, GPTNeoBackbone, GPTNeoModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = GPTNeoGQABlock
    forward = answers_like(GPTNeoModel.forward)(plain_forward)


GPTNeoGQAPreTrainedModel.base_class = GPTNeoGQAModel


class GPTNeoGQAForCausalLM(LanguageHead, GPTNeoGQAPreTrainedModel, GPTNeoForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(GPTNeoForCausalLM.forward)(GPTNeoForCausalLM.forward)


class GPTNeoGQAForSequenceClassification(SequenceHead, GPTNeoGQAPreTrainedModel, GPTNeoForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPTNeoForSequenceClassification.forward)(GPTNeoForSequenceClassification.forward)


class GPTNeoGQAForTokenClassification(TokenHead, GPTNeoGQAPreTrainedModel, GPTNeoForTokenClassification):
    """One label for each token."""

    forward = answers_like(GPTNeoForTokenClassification.forward)(GPTNeoForTokenClassification.forward)


__all__ = [
    "GPTNeoGQAForCausalLM",
    "GPTNeoGQAForSequenceClassification",
    "GPTNeoGQAForTokenClassification",
    "GPTNeoGQAModel",
]
