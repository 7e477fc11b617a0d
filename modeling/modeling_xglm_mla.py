"""XGLM with multi-head latent attention (MLA): the backbone is in xglm_decoder.py."""

from typing import Any

from transformers import XGLMForCausalLM, XGLMModel

from .configuration_xglm_mla import XGLMMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .plain_decoder import PlainPreTrainedModel, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead  # noqa: TID251
from .plain_latent import LatentInitialisation  # noqa: TID251
from .stock_latent import StockLatentAttention  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251
from .xglm_decoder import XGLMBackbone, XGLMBackboneLayer  # noqa: TID251


class XGLMMLADecoderLayer(XGLMBackboneLayer):
    """One layer with latent attention."""

    attention_class = StockLatentAttention


class XGLMMLAPreTrainedModel(LatentInitialisation, PlainPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = XGLMMLAConfig
    base_model_prefix = "model"
    _no_split_modules: Any = ["XGLMMLADecoderLayer"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": XGLMMLADecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class XGLMMLAModel(XGLMMLAPreTrainedModel, XGLMBackbone, XGLMModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = XGLMMLADecoderLayer
    forward = answers_like(XGLMModel.forward)(plain_forward)


XGLMMLAPreTrainedModel.base_class = XGLMMLAModel


class XGLMMLAForCausalLM(LanguageHead, XGLMMLAPreTrainedModel, XGLMForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(XGLMForCausalLM.forward)(XGLMForCausalLM.forward)


__all__ = ["XGLMMLAForCausalLM", "XGLMMLAModel"]
