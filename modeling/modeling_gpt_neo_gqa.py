"""GPT-Neo whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import (
    GPTNeoForCausalLM,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
)
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock, GPTNeoMLP

from .configuration_gpt_neo_gqa import GPTNeoGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .own_masks import OwnMaskAttention, near  # noqa: TID251
from .plain_decoder import (  # noqa: TID251
    PlainBlock,
    PlainModel,
    PlainPreTrainedModel,
    plain_block_forward,
    plain_forward,
)
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


class GPTNeoGQABlock(PlainBlock):
    """One layer: attention and MLP, each behind its LayerNorm and added to what came in."""

    forward = answers_like(GPTNeoBlock.forward)(plain_block_forward)

    def __init__(self, config: GPTNeoGQAConfig, layer_idx: int) -> None:
        super().__init__()
        inner = 4 * config.hidden_size if config.intermediate_size is None else config.intermediate_size
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = nn.ModuleDict({"attention": GPTNeoGQAAttention(config, layer_idx)})
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = GPTNeoMLP(inner, config)

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        attended, _ = self.attn["attention"](self.ln_1(hidden_states), **arguments)
        hidden_states = attended + hidden_states
        output: torch.Tensor = hidden_states + self.mlp(self.ln_2(hidden_states))
        return output


class GPTNeoGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers; engines with an attention of their own know of no window here."""

    config_class: Any = GPTNeoGQAConfig
    base_model_prefix = "transformer"
    _supports_attention_backend = False
    _supports_flash_attn = False
    _supports_flex_attn = False
    _no_split_modules: Any = ["GPTNeoGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": GPTNeoGQABlock, "attentions": GPTNeoGQAAttention}  # noqa: RUF012


class GPTNeoGQAModel(GPTNeoGQAPreTrainedModel, PlainModel, GPTNeoModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(GPTNeoModel.forward)(plain_forward)

    def build(self, config: GPTNeoGQAConfig) -> None:
        """Make the modules."""
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(float(config.embed_dropout))
        self.h = nn.ModuleList([GPTNeoGQABlock(config, layer) for layer in range(config.num_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks."""
        return self.h

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D], positions added."""
        states = inputs_embeds + self.wpe(arguments["position_ids"])
        kinds = given["token_type_ids"]
        dropped: torch.Tensor = self.drop(states if kinds is None else states + self.wte(kinds))
        return dropped

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed: torch.Tensor = self.ln_f(hidden_states)
        return normed


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
