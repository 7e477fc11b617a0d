"""Configuration of Llama with a cache of fixed length."""

from transformers import LlamaConfig

from .configuration_latent_sequence import LatentSequenceFields  # noqa: TID251 - beside this file in a checkpoint


class LlamaSlotsConfig(LatentSequenceFields, LlamaConfig):
    """LlamaConfig plus the sizes of the cache."""

    model_type = "llama_slots"


__all__ = ["LlamaSlotsConfig"]
