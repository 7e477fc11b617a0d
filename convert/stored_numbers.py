"""Tensors as they are stored: dtypes by the names that safetensors has for them, bytes, numbers that are finite."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Give a tensor's bytes without a copy (it is made contiguous first)."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor has no NaN and no infinity."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    # one pass, and no tensor of its size: the least and the largest number are NaN where any is
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
