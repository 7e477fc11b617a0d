"""Configuration of Falcon with multi-head latent attention."""

from transformers import FalconConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class FalconMLAConfig(LatentAttentionFields, FalconConfig):
    """FalconConfig plus the sizes of the latent attention."""

    model_type = "falcon_mla"


__all__ = ["FalconMLAConfig"]
