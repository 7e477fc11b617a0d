"""The C library's heap: told to give large tensors back when they are freed, or to keep them for the next."""

from __future__ import annotations

import ctypes
import sys

_MAP_FROM, _TRIM_FROM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
_RETURNED = 2**20  # bytes
_KEPT = 2**28


def return_large_blocks() -> bool:
    """Let glibc map every block of 1 MB or more by itself; False where there is no glibc.

    By default the size from which it does so grows to 32 MB with what is freed: activations then lie in a heap whose
    holes are kept. Pages mapped anew for every tensor are zeroed anew: steps of SmolLM2-135M take a third longer.
    """
    return _set(_MAP_FROM, _RETURNED)


def keep_large_blocks() -> bool:
    """Let glibc keep freed blocks of up to 256 MB for the next of their size; False where there is no glibc.

    By default blocks of 32 MB and more are mapped anew each time, and their pages zeroed anew, one fault for each 4 KB:
    a conversion whose layers need the same few tensors again and again spends most of its time in the kernel. A tensor
    of torch, which is aligned, fits into the room of one of its own size only where there is some more beside it.
    """
    return _set(_MAP_FROM, _KEPT) and _set(_TRIM_FROM, _KEPT)


def _set(parameter: int, nbytes: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(parameter, nbytes))
    except (OSError, AttributeError):  # another C library
        return False
