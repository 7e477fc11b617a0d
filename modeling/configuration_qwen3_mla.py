"""Configuration of Qwen3 with multi-head latent attention."""

from transformers import Qwen3Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Qwen3MLAConfig(LatentAttentionFields, Qwen3Config):
    """Qwen3Config plus the sizes of the latent attention."""

    model_type = "qwen3_mla"


__all__ = ["Qwen3MLAConfig"]
