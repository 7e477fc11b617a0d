"""Latent attention of one new token on a GPU by a kernel in Triton: one pass over the cache. See latent_kernel.py.

As flash-decoding does (Dao et al., 2023), the context is cut into parts that are worked on at once: each gives weighted
sums, the largest score and the sum of the weights of its own, which a second kernel puts together. An entry of the
cache is loaded once for up to 32 heads, as key and as value.

Letters in shapes besides those of latent_attention.py: W = r + R, P parts of the context.

It runs where CONVERT_ATTN_TRITON=1 is set: its numbers are tested by Triton's interpreter, its speed is not measured.
"""

import os
from typing import Any

import torch

from .latent_kernel import Kernel  # noqa: TID251 - beside this file, too

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

SWITCH = "CONVERT_ATTN_TRITON"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LEAST_PART = 256  # tokens

if triton is not None:

    @triton.jit
    def _sum_parts(  # type: ignore[no-untyped-def]  # Triton reads the annotations
        query, entries, mask, sums, peaks, totals, scale, heads, keys, part, query_b, query_h, entries_b, entries_t,
        mask_b, mask_h, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr,
        KEYS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ):  # fmt: skip
        """One part of the context for ROWS heads of a sequence; columns are FIRST, a power of two, and the rest."""
        b, place, parts = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
        h = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        first = tl.arange(0, FIRST)
        real = h < heads
        query_at = query + b * query_b + h[:, None] * query_h
        q_first = tl.load(query_at + first[None, :], mask=real[:, None], other=0.0)
        q_first = q_first.to(tl.float32) if WIDEN else q_first
        sum_first = tl.zeros([ROWS, FIRST], tl.float32)
        if REST > 0:
            rest = FIRST + tl.arange(0, REST)
            q_rest = tl.load(query_at + rest[None, :], mask=real[:, None] & (rest < WIDTH)[None, :], other=0.0)
            q_rest = q_rest.to(tl.float32) if WIDEN else q_rest
            sum_rest = tl.zeros([ROWS, REST], tl.float32)
        peak = tl.full([ROWS], -3.4028234e38, tl.float32)  # not infinite: nothing seen yet is no NaN
        total = tl.zeros([ROWS], tl.float32)
        end = tl.minimum(keys, (place + 1) * part)
        for start in range(place * part, end, KEYS):
            t = start + tl.arange(0, KEYS)
            inside = t < end
            entries_at = entries + b * entries_b + t[:, None].to(tl.int64) * entries_t
            e_first = tl.load(entries_at + first[None, :], mask=inside[:, None], other=0.0)
            e_first = e_first.to(tl.float32) if WIDEN else e_first
            scores = tl.dot(q_first, tl.trans(e_first), input_precision=PRECISION)
            if REST > 0:
                e_rest = tl.load(entries_at + rest[None, :], mask=inside[:, None] & (rest < WIDTH)[None, :], other=0.0)
                e_rest = e_rest.to(tl.float32) if WIDEN else e_rest
                scores += tl.dot(q_rest, tl.trans(e_rest), input_precision=PRECISION)
            scores *= scale
            if MASKED:
                mask_at = mask + b * mask_b + h[:, None] * mask_h + t[None, :]
                scores += tl.load(mask_at, mask=real[:, None] & inside[None, :], other=0.0)
            scores = tl.where(inside[None, :], scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            shrunk = tl.exp(peak - higher)
            weights = tl.exp(scores - higher[:, None])
            total = total * shrunk + tl.sum(weights, 1)
            weights = weights.to(e_first.dtype)
            sum_first = sum_first * shrunk[:, None] + tl.dot(weights, e_first, input_precision=PRECISION)
            if REST > 0:
                sum_rest = sum_rest * shrunk[:, None] + tl.dot(weights, e_rest, input_precision=PRECISION)
            peak = higher
        own = (b * heads + h) * parts + place
        tl.store(peaks + own, peak, mask=real)
        tl.store(totals + own, total, mask=real)
        tl.store(sums + own[:, None] * WIDTH + first[None, :], sum_first, mask=real[:, None])
        if REST > 0:
            tl.store(
                sums + own[:, None] * WIDTH + rest[None, :], sum_rest, mask=real[:, None] & (rest < WIDTH)[None, :]
            )

    @triton.jit
    def _join_parts(  # type: ignore[no-untyped-def]
        sums, peaks, totals, output, parts, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
    ):
        """The parts of one head: weighted sums of the whole context, WIDTH columns of it."""
        head = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, COLUMNS)
        peak = tl.full([], -3.4028234e38, tl.float32)
        total = tl.zeros([], tl.float32)
        joined = tl.zeros([COLUMNS], tl.float32)
        for part in range(parts):
            own = head * parts + part
            found = tl.load(peaks + own)
            higher = tl.maximum(peak, found)
            shrunk, share = tl.exp(peak - higher), tl.exp(found - higher)
            total = total * shrunk + tl.load(totals + own) * share
            values = tl.load(sums + own * WIDTH + column, mask=column < WIDTH, other=0.0)
            joined = joined * shrunk + values * share
            peak = higher
        tl.store(output + head * WIDTH + column, joined / total, mask=column < WIDTH)


def _applies(query: torch.Tensor, training: bool, weights: bool) -> bool:
    """Whether it can run, and is asked for."""
    if triton is None or os.environ.get(SWITCH) != "1" or weights or training or torch.compiler.is_compiling():
        return False
    fits = query.shape[2] == 1 and query.shape[3] % 16 == 0 and query.dtype in _DTYPES
    return fits and query.is_cuda and not query.requires_grad


def _parts(query: torch.Tensor, blocks: int, keys: int) -> int:
    """How many parts give each multiprocessor two programs, and each program enough to do."""
    if not query.is_cuda:  # by the interpreter
        return min(4, keys)
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    return max(1, min(-(-2 * processors // (query.shape[0] * blocks)), -(-keys // _LEAST_PART)))


def _added(mask: torch.Tensor | None, heads: int) -> torch.Tensor | None:
    """[B, 1 or H, 1, T] -> what is added to scores, [B, H, T] in fp32, without a copy for each head."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        hidden = torch.finfo(torch.float32).min
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, hidden)
    return mask.float().contiguous()[:, :, 0].expand(-1, heads, -1)


def _sizes(query: torch.Tensor) -> dict[str, Any]:
    """Blocks: columns in two pieces that are powers of two, heads and keys by what the registers hold."""
    heads, width = query.shape[1], query.shape[3]
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    exact = query.dtype == torch.float32
    return {
        "WIDTH": width,
        "FIRST": first,
        "REST": max(16, triton.next_power_of_2(rest)) if rest else 0,
        "ROWS": min(16 if exact else 32, max(16, triton.next_power_of_2(heads))),
        "KEYS": 16 if exact else 32,
        "PRECISION": "ieee" if exact or not query.is_cuda else None,
        "WIDEN": not query.is_cuda and query.dtype == torch.bfloat16,  # the interpreter multiplies no bf16
    }


def run_triton(
    query: torch.Tensor,
    entries: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float,
    causal: bool,
    dropout: float,
) -> tuple[torch.Tensor, None]:
    """For one new token, all of whose keys come before it; parts are kept in fp32."""
    batch, heads, _, width = query.shape
    keys = entries.shape[2]
    query = query.contiguous()
    if entries.stride(-1) != 1:
        entries = entries.contiguous()
    sizes = _sizes(query)
    blocks = -(-heads // sizes["ROWS"])
    parts = _parts(query, blocks, keys)
    part = -(-keys // parts)
    part = -(-part // sizes["KEYS"]) * sizes["KEYS"]
    parts = -(-keys // part)
    added = _added(mask, heads)
    sums = query.new_empty(batch, heads, parts, width, dtype=torch.float32)
    peaks, totals = sums.new_empty(2, batch, heads, parts)
    output = torch.empty_like(query)
    _sum_parts[(batch, blocks, parts)](
        query, entries, added, sums, peaks, totals, scaling, heads, keys, part,
        query.stride(0), query.stride(1), entries.stride(0), entries.stride(2),
        0 if added is None else added.stride(0), 0 if added is None else added.stride(1),
        MASKED=added is not None, num_warps=8, num_stages=2, **sizes,
    )  # fmt: skip
    columns = triton.next_power_of_2(width)
    _join_parts[(batch * heads,)](sums, peaks, totals, output, parts, WIDTH=width, COLUMNS=columns)
    return output, None


TRITON = Kernel(_applies, run_triton)

__all__ = ["SWITCH", "TRITON", "run_triton"]
