"""The heap that keeps large blocks: the pages of a freed tensor are there for the next."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from convert_attn.convert.heap import keep_large_blocks

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(12_000_000)  # 48 MB, 11719 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, set = faults(), keep_large_blocks()
faults()
print(int(set), first, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_freed_tensors_pages_are_there_for_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    is_set, before, after = map(int, done.stdout.split())
    if not is_set:
        pytest.skip("another C library")
    assert after < 1000 < before
