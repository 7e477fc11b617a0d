"""Configuration of OLMoE with multi-head latent attention."""

from transformers import OlmoeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class OlmoeMLAConfig(LatentAttentionFields, OlmoeConfig):
    """OlmoeConfig plus the sizes of the latent attention."""

    model_type = "olmoe_mla"


__all__ = ["OlmoeMLAConfig"]
