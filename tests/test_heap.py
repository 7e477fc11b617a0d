"""The heap that keeps large blocks: the pages of a freed one are there for the next."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import ctypes, resource
from convert_attn.convert.heap import keep_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = libc.malloc(48_000_000)  # 11719 pages
        ctypes.memset(block, 1, 48_000_000)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, set = faults(), keep_large_blocks()
faults()
print(int(set), first, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_freed_blocks_pages_are_there_for_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    is_set, before, after = map(int, done.stdout.split())
    if not is_set:
        pytest.skip("another C library")
    assert after < 1000 < before
