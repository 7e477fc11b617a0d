"""Configuration of StarCoder 2 with multi-head latent attention."""

from transformers import Starcoder2Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Starcoder2MLAConfig(LatentAttentionFields, Starcoder2Config):
    """Starcoder2Config plus the sizes of the latent attention."""

    model_type = "starcoder2_mla"


__all__ = ["Starcoder2MLAConfig"]
