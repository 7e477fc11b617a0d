"""Whether numbers are finite, seen while they are in memory anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from convert_attn.convert.checkpoint.safetensors_format import DTYPES, FLOATS, TensorInfo
from convert_attn.convert.errors import ConvertAttnError


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor has no NaN and no infinity."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    # one pass, and no tensor of its size: the least and the largest number are NaN where any is
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def finite_chunks(info: TensorInfo, chunks: Iterable[memoryview]) -> Iterator[memoryview]:
    """Pass a tensor's bytes on, piece by piece, each when its numbers have been looked at.

    Raises:
        ConvertAttnError: one that is not finite.
    """
    for chunk in chunks:
        if info.dtype in FLOATS and not is_finite(torch.frombuffer(chunk, dtype=DTYPES[info.dtype])):
            raise ConvertAttnError(
                f"tensor '{info.name}' has values that are NaN or infinite: the source checkpoint is broken "
                f"(download it again) or its numbers do not fit {info.dtype} (give another --dtype)"
            )
        yield chunk
