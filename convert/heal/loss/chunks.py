"""Sums over the rows of a batch, a few rows at a time, with gradients that never hold more than these rows' share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Score = Callable[[Tensor, int], Tensor]
"""Rows [n, D] and the first one's number -> k sums over them, differentiable."""

_ON_CPU, _ELSEWHERE = 2**23, 2**26  # numbers in a chunk's logits
_COPIES = 6  # of them, alive at a time: of teacher and student, their logarithms, shares, gradients


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Tell how many rows of logits are made at a time."""
    return max(16, (_ON_CPU if device.type == "cpu" else _ELSEWHERE) // vocabulary)


def chunk_bytes(vocabulary: int, rows: int, device: torch.device) -> int:
    """Tell what logits take at a time, of teacher and student, gradients included, in a batch of so many rows."""
    return _COPIES * 4 * vocabulary * min(rows, rows_per_chunk(vocabulary, device))


def summed(
    score: Score, rows: Tensor, size: int, weights: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Give sums over all rows, and their mean weighed.

    Args:
        score: what is summed; it may compute with `parameters`.
        rows: [N, D].
        size: rows at a time.
        weights: [k], of the sums.
        parameters: that get gradients besides the rows.

    Returns:
        weights . sums / N, differentiable, and the sums [k], not.
    """
    if torch.is_grad_enabled():
        goal, sums = _Summed.apply(score, size, weights, rows, *parameters)  # type: ignore[no-untyped-call]
        return goal, sums
    sums = torch.stack([score(part, number * size) for number, part in enumerate(rows.split(size))]).sum(0)
    return (weights * sums).sum() / len(rows), sums


class _Summed(torch.autograd.Function):
    """Gradients are computed with the values, chunk by chunk: no logits are kept, nor computed a second time."""

    @staticmethod
    def forward(ctx: Any, score: Score, size: int, weights: Tensor, rows: Tensor, *parameters: Tensor) -> Any:
        wanted = [tensor for tensor in parameters if tensor.requires_grad]
        ctx.rows = torch.empty_like(rows) if rows.requires_grad else None
        ctx.count, ctx.places = len(rows), [place for place, t in enumerate(parameters) if t.requires_grad]
        ctx.gradients = [None for _ in wanted]
        sums = torch.zeros_like(weights)
        for start in range(0, len(rows), size):
            part = rows[start : start + size].detach().requires_grad_(rows.requires_grad)
            with torch.enable_grad():
                found = score(part, start)
                goal = (weights * found).sum()
            sums += found.detach()
            # (arithmetic backwards is as wide as it was forwards, whatever the surroundings would choose)
            with torch.autocast(rows.device.type, enabled=False):
                inputs = [*([] if ctx.rows is None else [part]), *wanted]
                gradients = [*torch.autograd.grad(goal, inputs, allow_unused=True)]
            if ctx.rows is not None:
                ctx.rows[start : start + size] = gradients.pop(0)
            for place, gradient in enumerate(gradients):
                known = ctx.gradients[place]
                if gradient is not None:
                    ctx.gradients[place] = gradient if known is None else known.add_(gradient)
            del found, goal, gradients
        ctx.mark_non_differentiable(sums)
        return (weights * sums).sum() / len(rows), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> Any:
        # sums, not means, until here: numbers of half precision are as large as they can be
        factor = outer / ctx.count
        rows, gradients = ctx.rows, ctx.gradients
        ctx.rows = ctx.gradients = None  # so that who accumulates them may take them as they are
        found: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 4)
        while gradients:
            gradient = gradients.pop()
            found[ctx.places[len(gradients)]] = None if gradient is None else gradient.mul_(factor)
            del gradient
        return None, None, None, None if rows is None else rows.mul_(factor), *found
