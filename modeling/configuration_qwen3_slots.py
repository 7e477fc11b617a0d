"""Configuration of Qwen3 with a cache of fixed length."""

from transformers import Qwen3Config

from .configuration_latent_sequence import LatentSequenceFields  # noqa: TID251 - beside this file in a checkpoint


class Qwen3SlotsConfig(LatentSequenceFields, Qwen3Config):
    """Qwen3Config plus the sizes of the cache."""

    model_type = "qwen3_slots"


__all__ = ["Qwen3SlotsConfig"]
