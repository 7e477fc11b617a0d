"""Configuration of Granite with multi-head latent attention."""

from transformers import GraniteConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class GraniteMLAConfig(LatentAttentionFields, GraniteConfig):
    """GraniteConfig plus the sizes of the latent attention."""

    model_type = "granite_mla"


__all__ = ["GraniteMLAConfig"]
