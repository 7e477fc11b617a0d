"""GPT-J with multi-head latent attention (MLA); all but the attention has the names it had."""

from typing import Any

from torch import nn
from transformers import GPTJForCausalLM, GPTJForSequenceClassification, GPTJModel
from transformers.models.gptj.modeling_gptj import GPTJMLP, GPTJBlock

from .configuration_gptj_mla import GPTJMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .parallel_latent import (  # noqa: TID251
    ParallelLatentAttention,
    ParallelLatentBlock,
    ParallelLatentModel,
    ParallelLatentPreTrainedModel,
)
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTJMLABlock(ParallelLatentBlock):
    """One layer of GPT-J with this attention."""

    forward = answers_like(GPTJBlock.forward)(plain_block_forward)
    mlp_class = GPTJMLP


class GPTJMLAPreTrainedModel(ParallelLatentPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = GPTJMLAConfig
    _no_split_modules: Any = ["GPTJMLABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": GPTJMLABlock, "attentions": ParallelLatentAttention}  # noqa: RUF012


class GPTJMLAModel(GPTJMLAPreTrainedModel, ParallelLatentModel, GPTJModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = GPTJMLABlock
    forward = answers_like(GPTJModel.forward)(plain_forward)


GPTJMLAPreTrainedModel.base_class = GPTJMLAModel


class GPTJMLAForCausalLM(GPTJMLAPreTrainedModel, GPTJForCausalLM):
    """The language model; its head has a bias."""

    forward = answers_like(GPTJForCausalLM.forward)(GPTJForCausalLM.forward)

    def add_head(self, config: GPTJMLAConfig) -> None:
        """Make the head."""
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)


class GPTJMLAForSequenceClassification(GPTJMLAPreTrainedModel, GPTJForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPTJForSequenceClassification.forward)(GPTJForSequenceClassification.forward)

    def add_head(self, config: GPTJMLAConfig) -> None:
        """Make the head."""
        labels: Any = config.num_labels
        self.num_labels = labels
        self.score = nn.Linear(config.n_embd, labels, bias=False)


__all__ = ["GPTJMLAForCausalLM", "GPTJMLAForSequenceClassification", "GPTJMLAModel"]
