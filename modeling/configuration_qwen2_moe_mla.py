"""Configuration of Qwen2 with experts and multi-head latent attention."""

from transformers import Qwen2MoeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Qwen2MoeMLAConfig(LatentAttentionFields, Qwen2MoeConfig):
    """Qwen2MoeConfig plus the sizes of the latent attention."""

    model_type = "qwen2_moe_mla"


__all__ = ["Qwen2MoeMLAConfig"]
