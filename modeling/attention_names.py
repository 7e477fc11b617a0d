"""The attention function that this package offers to transformers, by its name."""

from typing import Any

PACKED = "convert_attn_packed"  # of grouped_attention.py


def attention_name(config: Any) -> str:
    """Give the name of the attention function that a config asks for, "sdpa" in place of PACKED.

    For classes that do by themselves, wherever SDPA is asked for, what the packed function does for others.
    """
    name: str = config._attn_implementation
    return "sdpa" if name == PACKED else name


__all__ = ["PACKED", "attention_name"]
