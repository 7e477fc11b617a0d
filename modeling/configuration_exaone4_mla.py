"""Configuration of EXAONE 4 with multi-head latent attention."""

from transformers import Exaone4Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Exaone4MLAConfig(LatentAttentionFields, Exaone4Config):
    """Exaone4Config plus the sizes of the latent attention."""

    model_type = "exaone4_mla"


__all__ = ["Exaone4MLAConfig"]
