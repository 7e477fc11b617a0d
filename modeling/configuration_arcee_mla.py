"""Configuration of Arcee with multi-head latent attention."""

from transformers import ArceeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class ArceeMLAConfig(LatentAttentionFields, ArceeConfig):
    """ArceeConfig plus the sizes of the latent attention."""

    model_type = "arcee_mla"


__all__ = ["ArceeMLAConfig"]
