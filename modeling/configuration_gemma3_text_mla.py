"""Configuration of Gemma 3 with multi-head latent attention."""

from transformers import Gemma3TextConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Gemma3MLAConfig(LatentAttentionFields, Gemma3TextConfig):
    """Gemma3TextConfig plus the sizes of the latent attention."""

    model_type = "gemma3_text_mla"


__all__ = ["Gemma3MLAConfig"]
