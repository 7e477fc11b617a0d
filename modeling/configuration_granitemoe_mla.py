"""Configuration of Granite with experts and multi-head latent attention."""

from transformers import GraniteMoeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class GraniteMoeMLAConfig(LatentAttentionFields, GraniteMoeConfig):
    """GraniteMoeConfig plus the sizes of the latent attention."""

    model_type = "granitemoe_mla"


__all__ = ["GraniteMoeMLAConfig"]
