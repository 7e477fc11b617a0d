"""GPT-2 with multi-head latent attention (MLA): the backbone is in gpt2_backbone.py, the attention in
latent_attention.py."""

from typing import Any

import torch
from torch import nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from .configuration_gpt2_mla import GPT2MLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .gpt2_backbone import BackboneBlock, BackboneModel, BackbonePreTrainedModel, count_labels  # noqa: TID251
from .latent_attention import LatentAttention, init_latent_attention  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPT2MLABlock(BackboneBlock):
    """One layer of GPT-2 with latent attention."""

    def __init__(self, config: GPT2MLAConfig, layer_idx: int) -> None:
        attention = LatentAttention(config, layer_idx, dropout=config.attn_pdrop)
        super().__init__(config, attention, attention.o_proj)


class GPT2MLAPreTrainedModel(BackbonePreTrainedModel):
    """What differs from GPT-2 in what the classes below declare to transformers."""

    config_class = GPT2MLAConfig
    _no_split_modules = ["GPT2MLABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs = {"hidden_states": GPT2MLABlock, "attentions": LatentAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        init_latent_attention(module)


class GPT2MLAModel(GPT2MLAPreTrainedModel, BackboneModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = GPT2MLABlock


class GPT2MLAForCausalLM(GPT2MLAPreTrainedModel, GPT2LMHeadModel):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(GPT2LMHeadModel.forward)(GPT2LMHeadModel.forward)

    def __init__(self, config: GPT2MLAConfig) -> None:
        super().__init__(config)
        self.transformer = GPT2MLAModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


class GPT2MLAForSequenceClassification(GPT2MLAPreTrainedModel, GPT2ForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPT2ForSequenceClassification.forward)(GPT2ForSequenceClassification.forward)

    def __init__(self, config: GPT2MLAConfig) -> None:
        super().__init__(config)
        self.num_labels = count_labels(config)
        self.transformer = GPT2MLAModel(config)
        self.score = nn.Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()


__all__ = ["GPT2MLAForCausalLM", "GPT2MLAForSequenceClassification", "GPT2MLAModel", "GPT2MLAPreTrainedModel"]
