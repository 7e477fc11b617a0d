"""GPT-2 whose query heads share key and value heads in groups (GQA; MQA is one group).

Everything but the attention is GPT-2's, down to the names of the tensors. With a group for each head it is GPT-2.

Letters in shapes:
    B  batch                T  tokens held as keys (the cache and the new ones)
    D  hidden size          S  new tokens, the ones that ask
    d  size of one head     H  query heads, H * d == D
    m  H // G               G  key/value heads of the layer; query head i reads key/value head i // m
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from .configuration_gpt2_gqa import GPT2GQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .gpt2_backbone import BackboneBlock, BackboneModel, BackbonePreTrainedModel, count_labels  # noqa: TID251
from .grouped_attention import (  # noqa: TID251
    AttentionFunction,
    eager_grouped_attention,
    packed_attention,
    sdpa_attention_forward,
)
from .transformers_api import answers_like, has_pages, take_cache, update_cache  # noqa: TID251


class GPT2GQAAttention(nn.Module):
    """Causal self-attention; `c_attn` makes H query heads, then G key heads, then G value heads."""

    def __init__(self, config: GPT2GQAConfig, layer_idx: int) -> None:
        super().__init__()
        if config.head_dim is None:
            raise ValueError("head_dim must be set in the config")
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.n_head
        self.num_key_value_heads = config.key_value_heads(layer_idx)
        self.num_key_value_groups = config.n_head // self.num_key_value_heads
        self.head_dim = config.head_dim
        self.is_causal = True
        self.scaling = self._scaling()
        self.reorder_and_upcast_attn = config.reorder_and_upcast_attn

        kv_size = self.num_key_value_heads * self.head_dim
        self.split_sizes = [config.n_embd, kv_size, kv_size]
        self.c_attn = Conv1D(sum(self.split_sizes), config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)

    def _scaling(self) -> float:
        scaling: float = self.head_dim**-0.5 if self.config.scale_attn_weights else 1.0
        if self.config.scale_attn_by_inverse_layer_idx:
            scaling /= self.layer_idx + 1
        return scaling

    def _project(self, hidden_states: torch.Tensor) -> list[torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key [B, G, S, d], value [B, G, S, d]."""
        parts = self.c_attn(hidden_states).split(self.split_sizes, dim=-1)
        return [part.view(*part.shape[:-1], -1, self.head_dim).transpose(1, 2) for part in parts]

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D] and, from functions that have them, the weights [B, H, S, T].

        The cache is among kwargs, by any of its names; what else there is reaches the attention function.
        """
        if has_pages(kwargs) and self.num_key_value_heads != self.config.num_key_value_heads:
            raise ValueError(
                "continuous batching keeps one number of key/value heads for all layers, and the layers of this model "
                "differ: use generate"
            )
        kv_cache = take_cache(kwargs)
        query, key, value = self._project(hidden_states)
        if kv_cache is not None:  # [B, G, S, d] -> [B, G, T, d]
            key, value = update_cache(kv_cache, key, value, self.layer_idx, kwargs)
        # Looked up and called here, in `forward`: vLLM reads this function's source to see that it may replace it.
        attend: AttentionFunction = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_grouped_attention
        )
        if attend is sdpa_attention_forward:  # which would repeat heads
            attend = packed_attention
        dropout = self.attn_dropout.p if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.c_proj(output), weights


class GPT2GQABlock(BackboneBlock):
    """One layer of GPT-2 with this attention."""

    def __init__(self, config: GPT2GQAConfig, layer_idx: int) -> None:
        attention = GPT2GQAAttention(config, layer_idx)
        super().__init__(config, attention, attention.c_proj)


class GPT2GQAPreTrainedModel(BackbonePreTrainedModel):
    """What differs from GPT-2 in what the classes below declare to transformers."""

    config_class = GPT2GQAConfig
    _no_split_modules = ["GPT2GQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs = {"hidden_states": GPT2GQABlock, "attentions": GPT2GQAAttention}  # noqa: RUF012


class GPT2GQAModel(GPT2GQAPreTrainedModel, BackboneModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = GPT2GQABlock


class GPT2GQAForCausalLM(GPT2GQAPreTrainedModel, GPT2LMHeadModel):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(GPT2LMHeadModel.forward)(GPT2LMHeadModel.forward)

    def __init__(self, config: GPT2GQAConfig) -> None:
        super().__init__(config)
        self.transformer = GPT2GQAModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


class GPT2GQAForSequenceClassification(GPT2GQAPreTrainedModel, GPT2ForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPT2ForSequenceClassification.forward)(GPT2ForSequenceClassification.forward)

    def __init__(self, config: GPT2GQAConfig) -> None:
        super().__init__(config)
        self.num_labels = count_labels(config)
        self.transformer = GPT2GQAModel(config)
        self.score = nn.Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()


class GPT2GQAForTokenClassification(GPT2GQAPreTrainedModel, GPT2ForTokenClassification):
    """One label for each token."""

    forward = answers_like(GPT2ForTokenClassification.forward)(GPT2ForTokenClassification.forward)

    def __init__(self, config: GPT2GQAConfig) -> None:
        super().__init__(config)
        self.num_labels = count_labels(config)
        self.transformer = GPT2GQAModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.n_embd, self.num_labels)
        self.post_init()


def _classifier_dropout(config: GPT2GQAConfig) -> float:
    """GPT-2's rule: either of two names that older configs carry, or 0.1."""
    for name in ("classifier_dropout", "hidden_dropout"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    return 0.1


class GPT2GQAForQuestionAnswering(GPT2GQAPreTrainedModel, GPT2ForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    forward = answers_like(GPT2ForQuestionAnswering.forward)(GPT2ForQuestionAnswering.forward)

    def __init__(self, config: GPT2GQAConfig) -> None:
        super().__init__(config)
        self.num_labels = count_labels(config)
        self.transformer = GPT2GQAModel(config)
        self.qa_outputs = nn.Linear(config.n_embd, 2)
        self.post_init()


__all__ = [
    "GPT2GQAForCausalLM",
    "GPT2GQAForQuestionAnswering",
    "GPT2GQAForSequenceClassification",
    "GPT2GQAForTokenClassification",
    "GPT2GQAModel",
    "GPT2GQAPreTrainedModel",
]
