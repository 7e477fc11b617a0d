"""Configuration of Qwen2 with a cache of fixed length."""

from transformers import Qwen2Config

from .configuration_latent_sequence import LatentSequenceFields  # noqa: TID251 - beside this file in a checkpoint


class Qwen2SlotsConfig(LatentSequenceFields, Qwen2Config):
    """Qwen2Config plus the sizes of the cache."""

    model_type = "qwen2_slots"


__all__ = ["Qwen2SlotsConfig"]
