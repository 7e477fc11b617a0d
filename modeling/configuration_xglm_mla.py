"""Configuration of XGLM with multi-head latent attention."""

from transformers import XGLMConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class XGLMMLAConfig(LatentAttentionFields, XGLMConfig):
    """XGLMConfig plus the sizes of the latent attention."""

    model_type = "xglm_mla"


__all__ = ["XGLMMLAConfig"]
