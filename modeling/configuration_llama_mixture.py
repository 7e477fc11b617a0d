"""Configuration of Llama with a gate over its layers."""

from transformers import LlamaConfig


class LlamaMixtureConfig(LlamaConfig):
    """LlamaConfig: the gate has no settings of its own."""

    model_type = "llama_mixture"


__all__ = ["LlamaMixtureConfig"]
