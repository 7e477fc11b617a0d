"""The Triton kernel of latent attention against plain products: by Triton's interpreter, and on a GPU where one is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from convert_attn.modeling import latent_kernel_triton
from convert_attn.modeling.latent_kernel_triton import SWITCH, TRITON, run_triton
from convert_attn.modeling.latent_kernels import KERNELS, run_plain

SHAPES = [  # batch, heads, r + R, keys
    (2, 4, 32, 37),  # a power of two
    (1, 5, 48, 70),  # a rest
    (2, 20, 80, 129),  # more than one block of heads
    (1, 3, 576, 33),
    (1, 2, 16, 1),
]
ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def masks(batch: int, heads: int, keys: int) -> list[torch.Tensor | None]:
    """None, boolean for all heads, one of them seeing nothing but the last key, and added for each head."""
    seen = torch.rand(batch, 1, 1, keys) > 0.4
    seen[0, ..., :-1] = False
    seen[..., -1] = True
    return [None, seen, torch.randn(batch, heads, 1, keys)]


def compare(device: str) -> None:
    """Raise where the numbers differ by more than rounding; printed is the largest difference of each dtype."""
    torch.manual_seed(0)
    for dtype, allowed in ROUNDING.items():
        worst = 0.0
        for batch, heads, width, keys in SHAPES:
            query = torch.randn(batch, heads, 1, width, device=device).to(dtype)
            entries = torch.randn(batch, 1, keys + 3, width, device=device).to(dtype)[:, :, :keys]
            for mask in masks(batch, heads, keys):
                mask = None if mask is None else mask.to(device)
                options = {"mask": mask, "scaling": width**-0.5, "causal": False, "dropout": 0.0}
                exact = run_plain(query.double(), entries.double(), **options)[0]
                found = run_triton(query, entries, **options)[0]
                assert found.dtype == dtype
                worst = max(worst, (found.double() - exact).abs().max().item())
        print(dtype, worst)  # noqa: T201
        assert worst < allowed, (dtype, worst)


def test_numbers_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_numbers_on_a_gpu() -> None:
    pytest.importorskip("triton")
    compare("cuda")


def test_it_is_asked_for_by_name_and_runs_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    assert TRITON in KERNELS[:-1]
    assert not TRITON.applies(torch.zeros(1, 2, 1, 16), False, False)
    monkeypatch.setattr(latent_kernel_triton, "triton", object())
    with torch.device("meta"):
        query = torch.zeros(1, 2, 1, 16, dtype=torch.float16)
    assert not TRITON.applies(query, False, False)
    on_gpu = type("Query", (), {"shape": query.shape, "dtype": query.dtype, "is_cuda": True, "requires_grad": False})
    assert TRITON.applies(on_gpu, False, False)
    assert not TRITON.applies(on_gpu, True, False)
    assert not TRITON.applies(on_gpu, False, True)
    monkeypatch.delenv(SWITCH)
    assert not TRITON.applies(on_gpu, False, False)


if __name__ == "__main__":
    compare("cpu")
