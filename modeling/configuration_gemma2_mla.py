"""Configuration of Gemma 2 with multi-head latent attention."""

from transformers import Gemma2Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Gemma2MLAConfig(LatentAttentionFields, Gemma2Config):
    """Gemma2Config plus the sizes of the latent attention."""

    model_type = "gemma2_mla"


__all__ = ["Gemma2MLAConfig"]
