"""Configuration of Qwen3 with experts and multi-head latent attention."""

from transformers import Qwen3MoeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class Qwen3MoeMLAConfig(LatentAttentionFields, Qwen3MoeConfig):
    """Qwen3MoeConfig plus the sizes of the latent attention."""

    model_type = "qwen3_moe_mla"


__all__ = ["Qwen3MoeMLAConfig"]
