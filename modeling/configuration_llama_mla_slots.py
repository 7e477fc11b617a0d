"""Configuration of Llama with multi-head latent attention and a cache of fixed length."""

from .configuration_latent_sequence import LatentSequenceFields  # noqa: TID251 - beside this file in a checkpoint
from .configuration_llama_mla import LlamaMLAConfig  # noqa: TID251


class LlamaMLASlotsConfig(LatentSequenceFields, LlamaMLAConfig):
    """LlamaMLAConfig plus the sizes of the cache."""

    model_type = "llama_mla_slots"


__all__ = ["LlamaMLASlotsConfig"]
