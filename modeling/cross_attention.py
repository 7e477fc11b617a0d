"""Cross attention, which classes of ours have none of."""

from typing import Any


def refuse_cross_attention(config: Any) -> None:
    """Refuse a config that asks for it.

    Raises:
        ValueError: it does.
    """
    if config.add_cross_attention:
        raise ValueError(f"{config.model_type} has no cross attention: set add_cross_attention=False")


__all__ = ["refuse_cross_attention"]
