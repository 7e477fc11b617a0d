"""Configuration of GLM-4.5 with multi-head latent attention."""

from transformers import Glm4MoeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Glm4MoeMLAConfig(LatentAttentionFields, Glm4MoeConfig):
    """Glm4MoeConfig plus the sizes of the latent attention."""

    model_type = "glm4_moe_mla"


__all__ = ["Glm4MoeMLAConfig"]
