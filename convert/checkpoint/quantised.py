"""Quantised checkpoints, told by what their tensors are; and what configs say of quantisation on plain weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from convert_attn.convert.checkpoint.safetensors_format import FLOATS, TensorInfo
from convert_attn.convert.errors import UsageError

# what packages that quantise call their settings
_KEYS = frozenset({"quantization_config", "compression_config", "quant_config", "sparsity_config"})
_MLX = "quantization"  # its block has `bits`
SETTINGS = frozenset(
    {
        "quantize_config.json",
        "quant_config.json",
        "quantization_config.json",
        "quant_strategy.json",
        "hf_quant_config.json",
    }
)
# the tensors that they put in the place of a weight, or beside it
_PACKED = re.compile(
    r"(^|[._])(qweight|qzeros|qscales|g_idx|SCB|absmax|quant_map|quant_state\b.*|W_q|codebooks|scale_inv"
    r"|weight_(packed|scale|scales|scale_inv|scale_2|global_scale|zero_point|format|qdata)"
    r"|weight\._(data|scale|shift)|proj_blocks|proj_scales)$"
)
# integers that belong to plain checkpoints: masks and positions
_BUFFERS = re.compile(r"(^|[._])(bias|mask|masked_bias|position_ids|token_type_ids|num_batches_tracked)$")


class QuantisedError(UsageError):
    """The weights are quantised, so that they cannot be a source."""


def without_leftovers(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a config.json without what it says of quantisation, at any depth.

    Returns:
        the config, and what was taken out by the path of its key ("text_config.quantization_config").
    """
    kept: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for key, value in config.items():
        if value and (key in _KEYS or (key == _MLX and isinstance(value, dict) and "bits" in value)):
            found[key] = value
            continue
        if isinstance(value, dict):
            value, below = without_leftovers(value)
            found |= {f"{key}.{path}": entry for path, entry in below.items()}
        kept[key] = value
    return kept, found


def method_of(leftovers: dict[str, Any]) -> str | None:
    """Give the name of the method that a config says it was quantised by."""
    for value in leftovers.values():
        if isinstance(value, dict) and isinstance(named := value.get("quant_method"), str):
            return named
    return None


def evidence(infos: Iterable[TensorInfo]) -> str | None:
    """Tell what shows that the tensors of a checkpoint are quantised, None where they are plain."""
    for info in infos:
        if info.dtype.startswith("F8_"):
            return f"tensor '{info.name}' has dtype {info.dtype}"
        if _PACKED.search(info.name):
            return f"it has a tensor '{info.name}'"
        matrix = len(info.shape) >= 2 and info.dtype not in (*FLOATS, "BOOL")
        if matrix and not _BUFFERS.search(info.name):
            return f"tensor '{info.name}' has dtype {info.dtype}"
    return None


def check_plain(name: str, infos: Iterable[TensorInfo], leftovers: dict[str, Any]) -> None:
    """Refuse quantised weights.

    Raises:
        QuantisedError: they are.
    """
    if found := evidence(infos):
        method = method_of(leftovers)
        how = f"{method}: {found}" if method else found
        raise QuantisedError(
            f"'{name}' is quantised ({how}): convert the original in fp32, fp16 or bf16 and quantise the result"
        )


def leftover_warning(leftovers: dict[str, Any], plain: bool) -> str:
    """Tell what to say of a config that speaks of quantisation.

    Args:
        plain: the weights were seen and are not quantised.
    """
    method, keys = method_of(leftovers), ", ".join(leftovers)
    named = f"{keys} ({method})" if method else keys
    if plain:
        return f"config.json has {named}, but the weights are plain: they are taken as they are and the key is left out"
    return f"config.json has {named}; whether the weights are quantised, which cannot be converted, was not seen"
