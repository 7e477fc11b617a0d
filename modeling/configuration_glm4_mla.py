"""Configuration of GLM-4 with multi-head latent attention."""

from transformers import Glm4Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Glm4MLAConfig(LatentAttentionFields, Glm4Config):
    """Glm4Config plus the sizes of the latent attention."""

    model_type = "glm4_mla"


__all__ = ["Glm4MLAConfig"]
