"""CodeGen with multi-head latent attention (MLA); all but the attention has the names it had."""

from typing import Any

from torch import nn
from transformers import CodeGenForCausalLM, CodeGenModel
from transformers.models.codegen.modeling_codegen import CodeGenBlock, CodeGenMLP

from .configuration_codegen_mla import CodeGenMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .parallel_latent import (  # noqa: TID251
    ParallelLatentAttention,
    ParallelLatentBlock,
    ParallelLatentModel,
    ParallelLatentPreTrainedModel,
)
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class CodeGenMLABlock(ParallelLatentBlock):
    """One layer of CodeGen with this attention."""

    forward = answers_like(CodeGenBlock.forward)(plain_block_forward)
    mlp_class = CodeGenMLP


class CodeGenMLAPreTrainedModel(ParallelLatentPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = CodeGenMLAConfig
    _no_split_modules: Any = ["CodeGenMLABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": CodeGenMLABlock, "attentions": ParallelLatentAttention}  # noqa: RUF012


class CodeGenMLAModel(CodeGenMLAPreTrainedModel, ParallelLatentModel, CodeGenModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = CodeGenMLABlock
    forward = answers_like(CodeGenModel.forward)(plain_forward)


CodeGenMLAPreTrainedModel.base_class = CodeGenMLAModel


class CodeGenMLAForCausalLM(CodeGenMLAPreTrainedModel, CodeGenForCausalLM):
    """The language model; its head has a bias."""

    forward = answers_like(CodeGenForCausalLM.forward)(CodeGenForCausalLM.forward)

    def add_head(self, config: CodeGenMLAConfig) -> None:
        """Make the head."""
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)


__all__ = ["CodeGenMLAForCausalLM", "CodeGenMLAModel"]
