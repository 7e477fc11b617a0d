"""Configuration of BioGPT with multi-head latent attention."""

from transformers import BioGptConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class BioGptMLAConfig(LatentAttentionFields, BioGptConfig):
    """BioGptConfig plus the sizes of the latent attention."""

    model_type = "biogpt_mla"


__all__ = ["BioGptMLAConfig"]
