"""Configuration of Mixtral with multi-head latent attention."""

from transformers import MixtralConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class MixtralMLAConfig(LatentAttentionFields, MixtralConfig):
    """MixtralConfig plus the sizes of the latent attention."""

    model_type = "mixtral_mla"


__all__ = ["MixtralMLAConfig"]
