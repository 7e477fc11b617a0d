"""Configuration of Cohere with multi-head latent attention."""

from transformers import CohereConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class CohereMLAConfig(LatentAttentionFields, CohereConfig):
    """CohereConfig plus the sizes of the latent attention."""

    model_type = "cohere_mla"


__all__ = ["CohereMLAConfig"]
