"""Matrix products that may be rough, in bfloat16 where the processor multiplies it faster than float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

_ROUGH: ContextVar[bool] = ContextVar("_ROUGH", default=False)


@contextmanager
def rough() -> Iterator[None]:
    """Let `product` round what it multiplies to eight bits; it sums in float32 still."""
    token = _ROUGH.set(True)
    try:
        yield
    finally:
        _ROUGH.reset(token)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Give left @ right, in the dtype of the left one."""
    if not _ROUGH.get() or left.dtype != torch.float32 or not _multiplies_bfloat16(left.device.type):
        return left @ right
    return (left.bfloat16() @ right.bfloat16()).float()


@cache
def _multiplies_bfloat16(device: str) -> bool:
    """Whether the device has instructions for products of bfloat16: without them they are slower than float32's."""
    if device == "cpu":
        # a private name, there from torch 2.6 on: without it products stay exact
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
