"""How many tokens a model can read, as its config has it."""

from __future__ import annotations

from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs import architectures


def longest_input(config: PreTrainedConfig) -> int | None:
    """Give the longest input in tokens; None where the config names none."""
    arch = architectures().get(config.model_type)
    if arch is None:  # of a class with a latent, or unknown
        return getattr(config, "max_position_embeddings", None)
    limit = arch.of(config).longest(config)
    return None if limit is None else int(limit) - arch.first_position
