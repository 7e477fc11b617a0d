"""Configuration of Persimmon whose query heads share key and value heads in groups."""

from typing import Any

from transformers import PersimmonConfig

from .configuration_shared_heads import check_shared_heads  # noqa: TID251 - beside this file in a checkpoint, too


class PersimmonGQAConfig(PersimmonConfig):
    """PersimmonConfig plus the numbers that shared heads need: see `check_shared_heads`."""

    model_type = "persimmon_gqa"

    num_key_value_heads: int | None = None
    num_key_value_heads_per_layer: list[int] | None = None
    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_shared_heads(self)


__all__ = ["PersimmonGQAConfig"]
