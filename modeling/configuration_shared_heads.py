"""What the config of a class with shared key/value heads has besides its family's: sizes, checked for all families.

A family's config declares the three fields, since a config class has no others, and calls `check_shared_heads`.
"""

from typing import Any


def check_shared_heads(config: Any) -> None:
    """Fill in and check num_key_value_heads, num_key_value_heads_per_layer and head_dim.

    num_key_value_heads: how many key/value heads there are; the default, one for each query head, is the family's own
        attention and 1 is multi-query attention. Query head i reads key/value head i // (heads // key/value heads).
    num_key_value_heads_per_layer: one for each layer, where layers differ; num_key_value_heads is then the largest.
    head_dim: hidden size / heads. Written out because static caches and serving engines read it from the config.

    Raises: ValueError for numbers that do not fit each other.
    """
    heads, by_layer = config.num_attention_heads, config.num_key_value_heads_per_layer
    if config.num_key_value_heads is None:
        config.num_key_value_heads = max(by_layer or [heads])
    if config.head_dim is None:
        config.head_dim = config.hidden_size // heads
    if config.head_dim * heads != config.hidden_size:
        raise ValueError(
            f"head_dim times heads must be the hidden size, got {config.head_dim} * {heads} != {config.hidden_size}: "
            "leave head_dim out, and choose a number of heads that divides the hidden size"
        )
    numbers = [config.num_key_value_heads] if by_layer is None else list(by_layer)
    if any(number < 1 or heads % number for number in numbers):
        raise ValueError(f"num_key_value_heads must divide the {heads} query heads, got {numbers}")
    if by_layer is not None and (
        len(by_layer) != config.num_hidden_layers or max(by_layer) != config.num_key_value_heads
    ):
        raise ValueError(
            f"num_key_value_heads_per_layer must hold {config.num_hidden_layers} numbers, the largest "
            f"num_key_value_heads={config.num_key_value_heads}, got {by_layer}"
        )


def key_value_heads(config: Any, layer: int) -> int:
    """Give the key/value heads of a layer."""
    by_layer = config.num_key_value_heads_per_layer
    number: int = config.num_key_value_heads if by_layer is None else by_layer[layer]
    return number


__all__ = ["check_shared_heads", "key_value_heads"]
