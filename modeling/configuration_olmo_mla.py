"""Configuration of OLMo with multi-head latent attention."""

from transformers import OlmoConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class OlmoMLAConfig(LatentAttentionFields, OlmoConfig):
    """OlmoConfig plus the sizes of the latent attention."""

    model_type = "olmo_mla"


__all__ = ["OlmoMLAConfig"]
