"""Configuration of OLMo 3 with multi-head latent attention."""

from transformers import Olmo3Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Olmo3MLAConfig(LatentAttentionFields, Olmo3Config):
    """Olmo3Config plus the sizes of the latent attention."""

    model_type = "olmo3_mla"


__all__ = ["Olmo3MLAConfig"]
