"""Configuration of Cohere 2 with multi-head latent attention."""

from transformers import Cohere2Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Cohere2MLAConfig(LatentAttentionFields, Cohere2Config):
    """Cohere2Config plus the sizes of the latent attention."""

    model_type = "cohere2_mla"


__all__ = ["Cohere2MLAConfig"]
