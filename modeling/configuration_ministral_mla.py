"""Configuration of Ministral with multi-head latent attention."""

from transformers import MinistralConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class MinistralMLAConfig(LatentAttentionFields, MinistralConfig):
    """MinistralConfig plus the sizes of the latent attention."""

    model_type = "ministral_mla"


__all__ = ["MinistralMLAConfig"]
