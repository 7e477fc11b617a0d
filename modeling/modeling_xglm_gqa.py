"""XGLM whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import XGLMForCausalLM, XGLMModel

from .configuration_xglm_gqa import XGLMGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .plain_decoder import PlainPreTrainedModel, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead  # noqa: TID251
from .shared_heads import SeparateAttention  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251
from .xglm_decoder import XGLMBackbone, XGLMBackboneLayer  # noqa: TID251


class XGLMGQAAttention(SeparateAttention):
    """Three projections; `k_proj` and `v_proj` make G heads."""

    def __init__(self, config: XGLMGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = float(config.attention_dropout)
        self.make_projections(bias=True)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.out_proj(attended)
        return projected


class XGLMGQADecoderLayer(XGLMBackboneLayer):
    """One layer with this attention."""

    attention_class = XGLMGQAAttention


class XGLMGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = XGLMGQAConfig
    base_model_prefix = "model"
    _no_split_modules: Any = ["XGLMGQADecoderLayer"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": XGLMGQADecoderLayer, "attentions": XGLMGQAAttention}  # noqa: RUF012


class XGLMGQAModel(XGLMGQAPreTrainedModel, XGLMBackbone, XGLMModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = XGLMGQADecoderLayer
    forward = answers_like(XGLMModel.forward)(plain_forward)


XGLMGQAPreTrainedModel.base_class = XGLMGQAModel


class XGLMGQAForCausalLM(LanguageHead, XGLMGQAPreTrainedModel, XGLMForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(XGLMForCausalLM.forward)(XGLMForCausalLM.forward)


__all__ = ["XGLMGQAForCausalLM", "XGLMGQAModel"]
