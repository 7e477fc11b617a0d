"""Attention alone: one new token behind a cache, every number of K/V heads, by stock SDPA and packed, and MLA.

Letters in shapes: B batch, H query heads, G K/V heads, T tokens held, d size of a head, r + R of a latent entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from convert_attn.eval.measures.timing import Spread, Timed, take_turns
from convert_attn.modeling.grouped_attention import packed_attention
from convert_attn.modeling.latent_kernel_plain import run_plain
from convert_attn.modeling.latent_kernel_triton import run_triton
from convert_attn.modeling.latent_kernels import mix

SQUARE = 1024  # rows and columns of the product that shows what the processor can
FACTOR = 1.5  # of the share of the cache that a step may take of MHA's time


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is measured: heads and their size, the K/V heads of the grouped form, and the latent."""

    heads: int = 32
    head_dim: int = 128
    groups: int = 8
    rank: int = 512
    rope_dim: int = 64

    @property
    def forms(self) -> dict[str, int]:
        """K/V heads by the name of the form."""
        return {"MHA": self.heads, f"GQA-{self.groups}": self.groups, "MQA": 1}

    @property
    def latent(self) -> str:
        """Name of the latent form."""
        return f"MLA({self.rank}+{self.rope_dim})"


class _Caller(torch.nn.Module):
    """What attention functions read of the module that calls them."""

    def __init__(self, per_group: int, head_dim: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.head_dim, self.is_causal = per_group, head_dim, True


def _grouped(shape: Shape, groups: int, cache: torch.Tensor, query: torch.Tensor) -> dict[str, Callable[[], object]]:
    """cache [2, B, G, T, d], query [B, H, 1, d] -> calls by the name of the function."""
    layer = _Caller(shape.heads // groups, shape.head_dim)
    key, value = cache
    scale = shape.head_dim**-0.5
    functions: dict[str, Any] = {"stock": sdpa_attention_forward, "packed": packed_attention}
    return {
        name: partial(function, layer, query, key, value, None, scaling=scale) for name, function in functions.items()
    }


def _latent(shape: Shape, entries: torch.Tensor, query: torch.Tensor) -> dict[str, Callable[[], object]]:
    """entries [B, 1, T, r + R], query [B, H, 1, r + R] -> calls: the kernel that is taken here; on GPUs, each."""
    options: dict[str, Any] = {"mask": None, "scaling": 0.1, "causal": False, "dropout": 0.0}
    if entries.is_cuda:
        return {
            "plain": lambda: run_plain(query, entries, **options),
            "triton": lambda: run_triton(query, entries, **options),
        }
    return {"packed": lambda: mix(query, entries, training=False, weights=False, **options)}


def _calls(
    shape: Shape, context: int, batch: int, dtype: torch.dtype, device: torch.device
) -> dict[tuple[str, str], tuple[int, Callable[[], object]]]:
    """(form, function) -> bytes of its cache, and the call."""
    made: dict[tuple[str, str], tuple[int, Callable[[], object]]] = {}
    for form, groups in shape.forms.items():
        cache = torch.randn(2, batch, groups, context, shape.head_dim, device=device, dtype=dtype)
        query = torch.randn(batch, shape.heads, 1, shape.head_dim, device=device, dtype=dtype)
        for name, call in _grouped(shape, groups, cache, query).items():
            made[form, name] = cache.nbytes, call
    width = shape.rank + shape.rope_dim
    entries = torch.randn(batch, 1, context, width, device=device, dtype=dtype)
    query = torch.randn(batch, shape.heads, 1, width, device=device, dtype=dtype)
    for name, call in _latent(shape, entries, query).items():
        made[shape.latent, name] = entries.nbytes, call
    return made


def _row(labels: dict[str, Any], nbytes: int, found: Spread, whole: Spread, all_bytes: int) -> dict[str, Any]:
    share = nbytes / all_bytes
    allowed = FACTOR * share * whole.median_ms
    target = {} if share == 1 else {"allowed_ms": allowed, "met": found.median_ms <= allowed}
    speed = {"gigabytes_per_second": nbytes / found.median_ms / 1e6}
    return labels | {"cache_bytes": nbytes, "share": share, "step": asdict(found)} | target | speed


@torch.inference_mode()
def arithmetic_rows(
    shape: Shape, context: int, *, dtype: torch.dtype, device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """What the processor reaches in plain products: those two of MQA and of the latent alone, and a square one.

    The time that is left for a form's arithmetic at the square product's speed is a floor that no kernel gets below.
    """
    made: dict[str, tuple[float, Callable[[], object]]] = {}
    for form, width in (("MQA", shape.head_dim), (shape.latent, shape.rank + shape.rope_dim)):
        entries = torch.randn(context, width, device=device, dtype=dtype)
        query = torch.randn(shape.heads, width, device=device, dtype=dtype)
        weights = torch.rand(shape.heads, context, device=device, dtype=dtype)
        operations = 4.0 * shape.heads * context * width
        made[form] = operations, partial(_two_products, query, weights, entries)
    square = torch.randn(SQUARE, SQUARE, device=device, dtype=dtype)
    made["square"] = 2.0 * SQUARE**3, partial(torch.mm, square, square)
    times = take_turns({name: Timed(call) for name, (_, call) in made.items()}, repeats, device)
    labels = {"dtype": str(dtype).removeprefix("torch."), "context": context}
    best = made["square"][0] / times["square"].median_ms
    return [
        labels
        | {"form": name, "operations": operations, "step": asdict(times[name])}
        | {"gigaflops": operations / times[name].median_ms / 1e6, "floor_ms": operations / best}
        for name, (operations, _) in made.items()
    ]


def _two_products(query: torch.Tensor, weights: torch.Tensor, entries: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return query @ entries.mT, weights @ entries


@torch.inference_mode()
def attention_rows(
    shape: Shape, context: int, batch: int, *, dtype: torch.dtype, device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """A row for each form and function; allowed is FACTOR times its share of MHA's bytes, of MHA's stock time."""
    calls = _calls(shape, context, batch, dtype, device)
    times = take_turns({f"{form} {name}": Timed(call) for (form, name), (_, call) in calls.items()}, repeats, device)
    whole, all_bytes = times["MHA stock"], calls["MHA", "stock"][0]
    labels = {"dtype": str(dtype).removeprefix("torch."), "context": context, "batch": batch}
    return [
        _row(labels | {"form": form, "function": name}, nbytes, times[f"{form} {name}"], whole, all_bytes)
        for (form, name), (nbytes, _) in calls.items()
    ]
