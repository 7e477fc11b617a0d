"""Configuration of Phi with multi-head latent attention."""

from transformers import PhiConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class PhiMLAConfig(LatentAttentionFields, PhiConfig):
    """PhiConfig plus the sizes of the latent attention."""

    model_type = "phi_mla"


__all__ = ["PhiMLAConfig"]
