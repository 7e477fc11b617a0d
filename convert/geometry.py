"""The sizes of a checkpoint's attention, read from its config through transformers' own config class."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.errors import ConvertAttnError


@dataclass(frozen=True)
class Geometry:
    """Sizes of every attention block.

    Attributes:
        context: longest input in tokens (`max_position_embeddings`).
        inv_freq: frequencies of the rotary planes in radians per token; empty without rotary position. With
            partial rotary it covers the first 2 * len(inv_freq) of the head's dimensions.
        rope_type: transformers' name for how the frequencies come about, "default" for the plain formula.
        window: how many tokens back a token sees where that is limited, None otherwise.
        mixed_windows: some layers are limited to `window`, others are not.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    inv_freq: tuple[float, ...] = ()
    rope_type: str = "default"
    window: int | None = None
    mixed_windows: bool = False

    def head_order(self) -> Tensor:
        """[d] positions of a head's dimensions such that plane p is (p, p + d/2); identity for full rotary."""
        half = len(self.inv_freq)
        order = torch.arange(self.head_dim)
        if not half:
            return order
        first, second, rest = order[:half], order[half : 2 * half], order[2 * half :]
        middle = len(rest) // 2
        return torch.cat([first, rest[:middle], second, rest[middle:]])

    def plane_frequencies(self) -> Tensor:
        """[P] frequency of every plane in the order of `head_order`, 0 for planes that do not turn."""
        frequencies = torch.zeros(self.head_dim // 2, dtype=torch.float64)
        frequencies[: len(self.inv_freq)] = torch.tensor(self.inv_freq, dtype=torch.float64)
        return frequencies

    def cache_numbers(self, num_kv_heads: int) -> int:
        """Numbers cached per token over all layers: K and V of every K/V head."""
        return self.num_layers * 2 * num_kv_heads * self.head_dim


def typed_config(raw: dict[str, Any], name: str) -> PreTrainedConfig:
    """config.json through its transformers class, which fills in what the file leaves out.

    Raises:
        ConvertAttnError: values the class refuses.
    """
    # a copy: the class writes into the dicts it is given
    values = deepcopy({key: value for key, value in raw.items() if key not in ("model_type", "auto_map")})
    try:
        config = AutoConfig.for_model(raw["model_type"], **values)
    except Exception as error:  # the class decides what it raises: a ValueError, a TypeError, its own validation error
        first = " ".join(str(error).split())
        raise ConvertAttnError(f"config.json of '{name}' is refused by transformers: {first}") from None
    if not isinstance(config, PreTrainedConfig):
        raise ConvertAttnError(f"config.json of '{name}' gives no config class")
    return config


def _inverse_frequencies(config: PreTrainedConfig, head_dim: int) -> tuple[float, ...]:
    """As the model's rotary embedding computes them for inputs up to the trained length."""
    parameters = config.rope_parameters
    rope_type = parameters.get("rope_type", "default")
    if rope_type == "default":
        dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponent = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        return tuple((parameters["rope_theta"] ** -exponent).tolist())
    inv_freq, _ = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    return tuple(inv_freq.to(torch.float64).tolist())


def _checked_frequencies(config: PreTrainedConfig, head_dim: int, name: str) -> tuple[float, ...]:
    """`_inverse_frequencies` of a config that may say anything.

    Raises:
        ConvertAttnError: it gives no frequencies for heads of this size.
    """
    try:
        frequencies = _inverse_frequencies(config, head_dim)
        if len(frequencies) > head_dim // 2 or not all(math.isfinite(value) for value in frequencies):
            raise ValueError(f"{len(frequencies)} frequencies for heads of {head_dim}, or values that are not finite")
    except Exception as error:  # each rope type has parameters of its own
        raise ConvertAttnError(
            f"config.json of '{name}' has rope parameters {config.rope_parameters!r} that give no rotation ({error!r})"
        ) from None
    return frequencies


def sliding_window(config: PreTrainedConfig) -> int | None:
    """The sliding window, where some layer has it: a config may name one that none of its layers has."""
    if set(getattr(config, "layer_types", None) or []) == {"full_attention"}:
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _window(config: PreTrainedConfig) -> int | None:
    """The sliding window, where it is shorter than what the model can read at all."""
    window = sliding_window(config)
    return window if window is not None and window < config.max_position_embeddings else None


def geometry(arch: Architecture, raw: dict[str, Any], name: str) -> Geometry:
    """Sizes from config.json.

    Raises:
        ConvertAttnError: sizes that do not fit each other.
    """
    config = typed_config(raw, name)
    heads, hidden = config.num_attention_heads, config.hidden_size
    kv_heads = heads
    if arch.config_kv_heads is not None:
        kv_heads = getattr(config, arch.config_kv_heads, None) or heads
    for what, value in (
        ("num_attention_heads", heads),
        ("hidden_size", hidden),
        ("num_key_value_heads", kv_heads),
        ("num_hidden_layers", config.num_hidden_layers),
        ("max_position_embeddings", config.max_position_embeddings),
        ("head_dim", getattr(config, "head_dim", None) or 1),
        ("sliding_window", getattr(config, "sliding_window", None) or 1),
    ):
        if not isinstance(value, int) or value < 1:
            raise ConvertAttnError(f"config.json of '{name}' has {what} {value!r}, expected a positive number")
    if heads % kv_heads:
        raise ConvertAttnError(
            f"config.json of '{name}' has {heads} query heads and {kv_heads} K/V heads, expected a multiple"
        )
    head_dim = getattr(config, "head_dim", None) or hidden / heads
    if head_dim != int(head_dim):
        raise ConvertAttnError(
            f"config.json of '{name}' has hidden_size {hidden} and {heads} query heads, expected a multiple"
        )
    head_dim = int(head_dim)
    return Geometry(
        hidden_size=hidden,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=config.max_position_embeddings,
        inv_freq=_checked_frequencies(config, head_dim, name) if arch.position == "rope" else (),
        rope_type=config.rope_parameters.get("rope_type", "default") if arch.position == "rope" else "default",
        window=_window(config),
        mixed_windows=len(set(getattr(config, "layer_types", None) or [])) > 1,
    )
