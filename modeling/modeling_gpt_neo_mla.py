"""GPT-Neo with multi-head latent attention (MLA): the backbone is in gpt_neo_decoder.py."""

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

from .configuration_gpt_neo_mla import GPTNeoMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .distance_masks import near  # noqa: TID251
from .gpt_neo_decoder import GPTNeoBackbone, GPTNeoBackboneBlock, GPTNeoBackbonePreTrainedModel  # noqa: TID251
from .latent_attention import LatentAttention  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .plain_latent import LatentInitialisation  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTNeoMLAAttention(LatentAttention):
    """Latent attention; in local layers a token sees those within a window."""

    def __init__(self, config: GPTNeoMLAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, dropout=float(config.attention_dropout))
        self.window = config.window_size if config.attention_layers[layer_idx] == "local" else None
        self.output_dropout = float(config.resid_dropout)

    def mask(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, pages: bool) -> Any:
        """Narrow the mask of the model, [B, 1, S, T] or None, to the window."""
        if pages:
            raise ValueError("continuous batching masks tokens by itself, which this attention does too: use generate")
        return given if self.window is None else near(given, query, keys, self.window)


class GPTNeoMLABlock(GPTNeoBackboneBlock):
    """One layer with this attention."""

    forward = answers_like(GPTNeoBlock.forward)(plain_block_forward)
    attention_class = GPTNeoMLAAttention


class GPTNeoMLAPreTrainedModel(LatentInitialisation, GPTNeoBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = GPTNeoMLAConfig
    _no_split_modules: Any = ["GPTNeoMLABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": GPTNeoMLABlock, "attentions": GPTNeoMLAAttention}  # noqa: RUF012


class GPTNeoMLAModel(GPTNeoMLAPreTrainedModel, GPTNeoBackbone, GPTNeoModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = GPTNeoMLABlock
    forward = answers_like(GPTNeoModel.forward)(plain_forward)


GPTNeoMLAPreTrainedModel.base_class = GPTNeoMLAModel


class GPTNeoMLAForCausalLM(GPTNeoMLAPreTrainedModel, GPTNeoForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(GPTNeoForCausalLM.forward)(GPTNeoForCausalLM.forward)

    def add_head(self, config: GPTNeoMLAConfig) -> None:
        """Make the head."""
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class GPTNeoMLAForSequenceClassification(GPTNeoMLAPreTrainedModel, GPTNeoForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPTNeoForSequenceClassification.forward)(GPTNeoForSequenceClassification.forward)

    def add_head(self, config: GPTNeoMLAConfig) -> None:
        """Make the head."""
        labels: Any = config.num_labels
        self.num_labels = labels
        self.score = nn.Linear(config.hidden_size, labels, bias=False)


class GPTNeoMLAForTokenClassification(GPTNeoMLAPreTrainedModel, GPTNeoForTokenClassification):
    """One label for each token."""

    forward = answers_like(GPTNeoForTokenClassification.forward)(GPTNeoForTokenClassification.forward)

    def add_head(self, config: GPTNeoMLAConfig) -> None:
        """Make the head."""
        labels: Any = config.num_labels
        self.num_labels = labels
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, labels)


__all__ = [
    "GPTNeoMLAForCausalLM",
    "GPTNeoMLAForSequenceClassification",
    "GPTNeoMLAForTokenClassification",
    "GPTNeoMLAModel",
]
