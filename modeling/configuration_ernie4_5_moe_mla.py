"""Configuration of ERNIE 4.5 with experts and multi-head latent attention."""

from transformers import Ernie4_5_MoeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Ernie45MoeMLAConfig(LatentAttentionFields, Ernie4_5_MoeConfig):
    """Ernie4_5_MoeConfig plus the sizes of the latent attention."""

    model_type = "ernie4_5_moe_mla"


__all__ = ["Ernie45MoeMLAConfig"]
