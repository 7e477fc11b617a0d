"""The C library's heap, told to give large tensors back when they are freed."""

from __future__ import annotations

import ctypes
import sys

_THRESHOLD, _BYTES = -3, 2**20  # M_MMAP_THRESHOLD of malloc.h


def return_large_blocks() -> bool:
    """Let glibc map every block of 1 MB or more by itself; False where there is no glibc.

    By default the size from which it does so grows to 32 MB with what is freed: activations then lie in a heap whose
    holes are kept. Pages mapped anew for every tensor are zeroed anew: steps of SmolLM2-135M take a third longer.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_THRESHOLD, _BYTES))
    except (OSError, AttributeError):  # another C library
        return False
