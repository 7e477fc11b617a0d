"""Configuration of CodeGen with multi-head latent attention."""

from transformers import CodeGenConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class CodeGenMLAConfig(LatentAttentionFields, CodeGenConfig):
    """CodeGenConfig plus the sizes of the latent attention."""

    model_type = "codegen_mla"


__all__ = ["CodeGenMLAConfig"]
