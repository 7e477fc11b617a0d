"""Configuration of GPT-NeoX (Pythia) whose query heads share key and value heads in groups."""

from typing import Any

from transformers import GPTNeoXConfig

from .configuration_shared_heads import check_shared_heads  # noqa: TID251 - beside this file in a checkpoint, too


class GPTNeoXGQAConfig(GPTNeoXConfig):
    """GPTNeoXConfig plus the numbers that shared heads need: see `check_shared_heads`."""

    model_type = "gpt_neox_gqa"
    # the stock plan cuts the rows of q, k and v between heads, of which there may be fewer than devices
    base_model_tp_plan = None  # type: ignore[assignment]

    num_key_value_heads: int | None = None
    num_key_value_heads_per_layer: list[int] | None = None
    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_shared_heads(self)


__all__ = ["GPTNeoXGQAConfig"]
