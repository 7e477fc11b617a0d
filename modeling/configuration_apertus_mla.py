"""Configuration of Apertus with multi-head latent attention."""

from transformers import ApertusConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class ApertusMLAConfig(LatentAttentionFields, ApertusConfig):
    """ApertusConfig plus the sizes of the latent attention."""

    model_type = "apertus_mla"


__all__ = ["ApertusMLAConfig"]
