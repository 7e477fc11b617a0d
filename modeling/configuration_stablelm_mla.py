"""Configuration of StableLM with multi-head latent attention."""

from transformers import StableLmConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class StableLmMLAConfig(LatentAttentionFields, StableLmConfig):
    """StableLmConfig plus the sizes of the latent attention."""

    model_type = "stablelm_mla"


__all__ = ["StableLmMLAConfig"]
