"""Closed-form refit: original and conversion run side by side over the calibration text, layer by layer.

At every layer the converted attention reads what the layers before it, converted already, have made of the text. Its
output projection (and bias, where there is one) is solved anew by ridge regression, so that the sum of the residual
stream and the attention's output comes as near as it can to the original's: what earlier layers have lost is
made good as far as this one can see it. The ridge pulls towards the projection that the method gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.calibrate import batches, spool
from convert_attn.convert.functional import Attention
from convert_attn.convert.progress import Progress
from convert_attn.convert.stream import Block, Stream
from convert_attn.convert.targets.base import Converted

RIDGE = 1e-2  # of the mean square of a head output's channels: what a narrow text does not say stays as it was

Candidate = Callable[[], Converted]


def single(weights: Converted) -> Converted:
    """In float32, to compute with."""
    changed: dict[str, Any] = {
        name: value.float() for name, value in vars(weights).items() if isinstance(value, Tensor)
    }
    return replace(weights, **changed)


@dataclass
class _Text:
    """The same windows in the original, after its attention, and in the conversion: [n, T, D] each."""

    original: Tensor
    attended: Tensor
    converted: Tensor

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of all three."""
        return zip(self.original.split(size), self.attended.split(size), self.converted.split(size), strict=True)


class SideBySide:
    """The original and its conversion at the same layer. A context manager: states may live in files.

    Args:
        stream: the original.
        fit: [N, T] token ids to solve on.
        selection: [M, T] token ids to choose on.
        heads: H, for the size of batches.
    """

    def __init__(self, stream: Stream, fit: Tensor, selection: Tensor, heads: int, progress: Progress) -> None:
        self._stream, self._tokens, self._progress = stream, (fit, selection), progress
        self._size = len(batches(fit, heads)[0])
        self._stack = ExitStack()

    def __enter__(self) -> SideBySide:
        texts = []
        for tokens in self._tokens:
            shape = (*tokens.shape, self._stream.hidden_size)
            text = _Text(*(self._stack.enter_context(spool(shape)) for _ in range(3)))
            embedded = self._stream.embed(tokens.split(self._size))
            for (original, _, converted), states in zip(text.parts(self._size), embedded, strict=True):
                original.copy_(states)
                converted.copy_(states)
            texts.append(text)
        self._fit, self._selection = texts
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def settle(self, layer: int, weights: AttentionWeights, candidates: Sequence[Candidate]) -> Converted:
        """The best candidate with its output projection refitted; both runs move on a layer.

        Args:
            weights: the original's.
            candidates: conversions of the layer; compared on the selection text where there are several.
        """
        with self._stream.block(layer) as block:
            self._advance_original(block, single(weights))
            if len(candidates) == 1:
                best = candidates[0]()
            else:
                best = min((candidate() for candidate in candidates), key=partial(self._error, block))
            chosen = self._refit(block, best)
            self._advance_converted(block, chosen)
        return chosen

    def _advance_original(self, block: Block, weights: Converted) -> None:
        for text in (self._fit, self._selection):
            for original, attended, _ in text.parts(self._size):
                states = original.to(self._stream.device)

                def attend(x: Tensor, before: Tensor = states, after: Tensor = attended) -> Tensor:
                    out = Attention(weights, x, block.rule).output()
                    after.copy_(before + out)
                    return out

                original.copy_(block.run(states, attend))

    def _advance_converted(self, block: Block, converted: Converted) -> None:
        weights = single(converted)
        for text in (self._fit, self._selection):
            for _, _, states in text.parts(self._size):
                moved = block.run(states.to(self._stream.device), lambda x: Attention(weights, x, block.rule).output())
                states.copy_(moved)

    def _misses(self, text: _Text, block: Block, weights: Converted) -> Iterator[tuple[Tensor, Tensor]]:
        """Head outputs [n, H a] and what the attention's output lacks [n, D], batch by batch."""
        for _, attended, converted in text.parts(self._size):
            states = converted.to(self._stream.device)
            attention = Attention(weights, block.normalised(states), block.rule)
            heads = attention.head_outputs()
            missing = attended.to(self._stream.device) - states - attention.output(heads)
            yield heads.flatten(2).flatten(0, 1), missing.flatten(0, 1)

    def _error(self, block: Block, converted: Converted) -> float:
        """Squared distance of the residual streams after attention, on the selection text."""
        misses = self._misses(self._selection, block, single(converted))
        return sum(float(missing.square().sum(dtype=torch.float64)) for _, missing in misses)

    def _refit(self, block: Block, converted: Converted) -> Converted:
        """The output projection by ridge regression on the fitting text."""
        o, bias = converted.o, converted.o_bias
        gram = cross = torch.zeros(0)
        for heads, missing in self._misses(self._fit, block, single(converted)):
            if bias is not None:
                heads = torch.cat([heads, torch.ones_like(heads[:, :1])], 1)
            left = heads.mT @ heads
            right = heads.mT @ missing
            gram = left.double() if not gram.numel() else gram.add_(left)
            cross = right.double() if not cross.numel() else cross.add_(right)
        rows = o.shape[0] * o.shape[2]
        ridge = torch.zeros(len(gram), dtype=gram.dtype, device=gram.device)
        ridge[:rows] = RIDGE * gram.diagonal()[:rows].mean()
        change = torch.linalg.solve(gram + torch.diag(ridge.clamp_min(1e-12)), cross)  # [H a (+ 1), D]
        moved = o.double() + change[:rows].unflatten(0, (o.shape[0], o.shape[2])).mT
        if bias is None:
            return replace(converted, o=moved.to(o.dtype))
        return replace(converted, o=moved.to(o.dtype), o_bias=(bias.double() + change[rows]).to(bias.dtype))
