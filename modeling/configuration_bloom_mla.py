"""Configuration of Bloom with multi-head latent attention."""

from transformers import BloomConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class BloomMLAConfig(LatentAttentionFields, BloomConfig):
    """BloomConfig plus the sizes of the latent attention, and its slopes."""

    model_type = "bloom_mla"


__all__ = ["BloomMLAConfig"]
