"""Configuration of OLMo 2 with multi-head latent attention."""

from transformers import Olmo2Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Olmo2MLAConfig(LatentAttentionFields, Olmo2Config):
    """Olmo2Config plus the sizes of the latent attention."""

    model_type = "olmo2_mla"


__all__ = ["Olmo2MLAConfig"]
