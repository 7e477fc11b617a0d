"""Original and conversion run side by side over text, layer by layer; what can be made good is solved anew on the way.

At every layer the converted attention reads what the layers before it, converted already, have made of the text. Its
queries, keys and values are solved for against what the original's attention does (`attention_refit`), then its output
projection, so that the sum of the residual stream and the attention's output comes as near as it can to the original's
(`output_ridge`); and, where that is asked for, the projection that ends the MLP (`mlp_refit`). What comes out is kept
where it does better on the selection text. The held-out text only looks on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.calibration.calibrate import batches, spool
from convert_attn.convert.fitting.attention_refit import LayerRefit
from convert_attn.convert.fitting.attention_sample import (
    Batch,
    Sample,
    sample_original,
    sampled_windows,
    windows_at_once,
)
from convert_attn.convert.fitting.mlp_refit import MlpOutput, solve_mlp
from convert_attn.convert.maths.output_ridge import Regression, solve
from convert_attn.convert.methods.base import LayerContext
from convert_attn.convert.streaming.stream import Block, Stream
from convert_attn.convert.targets.base import Converted
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import Attention, OtherSide, batched
from convert_attn.convert.weights.relative_error import relative_error

Watch = Callable[[Attention], Tensor]
"""The original's attention on a batch -> its output [B, T, D]; may count what it sees."""
Given = tuple[Tensor, Tensor, Tensor, OtherSide | None]
"""Of a batch: the stream, where the attention's output and the stream after it go, and what an encoder gives."""


def single(weights: Converted) -> Converted:
    """In float32, to compute with."""
    return _as(weights, torch.float32)


def rounded(weights: Converted, dtype: torch.dtype) -> Converted:
    """As they are when they have been stored in a dtype, in float32."""
    return single(_as(weights, dtype))


def _as(weights: Converted, dtype: torch.dtype) -> Converted:
    changed: dict[str, Any] = {
        name: value.to(dtype) for name, value in vars(weights).items() if isinstance(value, Tensor)
    }
    if "inv_freq" in changed:  # no weight: config.json holds it
        changed["inv_freq"] = vars(weights)["inv_freq"]
    return replace(weights, **changed)


@dataclass(frozen=True)
class NewLayer:
    """A layer's new form: its attention, and the projection that ends its MLP where that was solved anew."""

    attention: Converted
    mlp: MlpOutput | None = None


@dataclass(kw_only=True)
class _Text:
    """The same windows in the original and in the conversion, [n, T, D] each.

    Attributes:
        original, converted: the residual streams between two blocks.
        own: what the original's attention gave at the layer; None where nothing is fitted or chosen.
        attended: the original's residual stream after it.
        heads: [n, T, H, a] what the output projection read when it was solved anew at the layer; None where it was not.
        side: what the decoder of an encoder-decoder meets, the same in both; None without one.
    """

    original: Tensor
    converted: Tensor
    own: Tensor | None = None
    attended: Tensor | None = None
    heads: Tensor | None = None
    side: OtherSide | None = None

    def met(self, size: int) -> list[OtherSide | None]:
        """Give batches of what the decoder meets; of None without an encoder."""
        return batched(self.side, len(self.original), size)

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give batches of both streams."""
        return zip(self.original.split(size), self.converted.split(size), strict=True)

    def heads_of(self, size: int) -> list[Tensor] | list[None]:
        """Give batches of `heads`."""
        if self.heads is None:
            return [None] * len(self.converted.split(size))
        return list(self.heads.split(size))

    def targets(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, OtherSide | None]]:
        """Give batches of the conversion's stream, of what the original's attention made, and of `met`."""
        if self.own is None or self.attended is None:
            raise ValueError("this text only looks on")
        streams = (part.split(size) for part in (self.converted, self.own, self.attended))
        return zip(*streams, self.met(size), strict=True)


class SideBySide:
    """The original and its conversion at the same layer. A context manager: states may live in files.

    Args:
        stream: the original.
        fit: [N, T] token ids to solve on; None: nothing is solved, both only run.
        selection: [M, T] token ids to choose on; None as above.
        held: [K, T'] token ids that only look on, None where nothing is measured.
        heads: H, for the size of batches.
        dtype: that the conversion is stored in: the layers after it read what rounded weights make.
        mlp: the projections that end the MLPs are solved anew too.
    """

    def __init__(
        self,
        stream: Stream,
        fit: Tensor | None,
        selection: Tensor | None,
        held: Tensor | None,
        *,
        heads: int,
        dtype: torch.dtype,
        mlp: bool = False,
    ) -> None:
        self._stream, self._dtype, self._heads, self._mlp = stream, dtype, heads, mlp
        self._tokens = {"fit": fit, "selection": selection, "held": held}
        self._stack = ExitStack()
        self._texts: dict[str, _Text] = {}
        self._sizes: dict[str, int] = {}
        self._rooms: dict[str, Tensor] = {}

    def __enter__(self) -> SideBySide:
        for name, tokens in self._tokens.items():
            if tokens is None:
                continue
            shape = (len(tokens), self._stream.length(tokens), self._stream.hidden_size)
            original, converted, *more = (
                self._stack.enter_context(spool(shape)) for _ in range(2 if name == "held" else 4)
            )
            text = _Text(original=original, converted=converted)
            if more:
                text.own, text.attended = more
            self._sizes[name] = len(batches(tokens, self._heads)[0])
            others = self._stack.enter_context(spool((len(tokens), self._stream.source_length(tokens), shape[2])))
            if self._stream.across:
                self._stream.encode(tokens, others, self._sizes[name])
            text.side = self._stream.side(tokens, others)
            embedded = self._stream.embed(tokens.split(self._sizes[name]))
            for (original, converted), states in zip(text.parts(self._sizes[name]), embedded, strict=True):
                original.copy_(states)
                converted.copy_(states)
            self._texts[name] = text
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def solves(self) -> bool:
        """Whether anything is solved anew."""
        return "fit" in self._texts

    @property
    def runs(self) -> bool:
        """Whether there is any text."""
        return bool(self._texts)

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """The held-out text's states [K, T', D] in the original and in the conversion."""
        return self._texts["held"].original, self._texts["held"].converted

    def settle(
        self,
        layer: int,
        weights: AttentionWeights,
        convert: Callable[[], tuple[Converted, LayerContext]],
        watch: Watch | None = None,
    ) -> NewLayer:
        """Give the converted layer, solved anew where there is text for it; both runs move on a layer.

        Args:
            weights: the original's.
            convert: gives the layer's new form and what was known for it; called when the original has moved on. A
                layer that it gives back as it was stays so.
            watch: sees the original's attention on the text of the fit.
        """
        with self._stream.block(layer) as block:
            inputs = self._inputs(block) if self.solves else []
            self._advance_original(block, weights, watch)
            converted, context = convert()
            mlp = None
            if self.solves:
                if converted is not weights:
                    converted = self._solved(block, weights, converted, context, inputs)
                mlp = self._solved_mlp(block, converted) if self._mlp else None
            self._advance_converted(block, converted)
        return NewLayer(converted, mlp)

    def _sampled(self) -> tuple[Tensor, ...]:
        """Which windows of the fitting text are sampled, by batch."""
        count, length, _ = self._texts["fit"].original.shape
        chosen = sampled_windows(count, length, self._heads)
        return tuple(chosen.split(windows_at_once(length, self._heads)))

    def _inputs(self, block: Block) -> list[tuple[Tensor, Tensor, OtherSide | None]]:
        """Of sampled windows: what both attentions read, and what of an encoder there is beside."""
        text, device = self._texts["fit"], self._stream.device
        found = []
        for part in self._sampled():
            original, converted = (block.normalised(of[part].to(device)) for of in (text.original, text.converted))
            found.append((original, converted, None if text.side is None else text.side.at(part).to(device)))
        return found

    def _advance_original(self, block: Block, weights: AttentionWeights, watch: Watch | None) -> None:
        of_layer = single(weights)
        for name, text in self._texts.items():
            size = self._sizes[name]
            own = text.original.split(size) if text.own is None else text.own.split(size)
            attended = own if text.attended is None else text.attended.split(size)
            places = zip(text.original.split(size), own, attended, text.met(size), strict=True)
            for original, out_place, after, met in places:
                states = original.to(self._stream.device)

                given = (states, out_place, after, met)

                def attend(x: Tensor, name: str = name, given: Given = given) -> Tensor:
                    before, out_place, after, met = given
                    attention = block.computed(of_layer, x, met)
                    out = watch(attention) if watch is not None and name == "fit" else attention.output()
                    if name != "held":
                        out_place.copy_(out)
                        after.copy_(block.joined(before) + out)
                    return out

                original.copy_(block.run(states, attend))

    def _advance_converted(self, block: Block, converted: Converted) -> None:
        weights, device = rounded(converted, self._dtype), self._stream.device
        for name, text in self._texts.items():
            size = self._sizes[name]
            for states, met, heads in zip(text.converted.split(size), text.met(size), text.heads_of(size), strict=True):
                read = None if heads is None else heads.to(device)
                moved = block.run(
                    states.to(device),
                    lambda x, met=met, read=read: block.computed(weights, x, met).output(read),  # type: ignore[misc]
                )
                states.copy_(moved)
            text.heads = None

    def _solved(
        self,
        block: Block,
        weights: AttentionWeights,
        converted: Converted,
        context: LayerContext,
        inputs: list[tuple[Tensor, Tensor, OtherSide | None]],
    ) -> Converted:
        """The layer with its queries, keys, values and output projection solved anew, in its own dtype."""
        plain = single(converted)
        order = getattr(converted, "order", ()) or tuple(range(weights.num_heads))
        original = single(weights)
        assert isinstance(original, AttentionWeights)
        text = self._texts["fit"]
        assert text.own is not None
        assert text.attended is not None
        device = self._stream.device
        batches = [
            Batch(
                original=read,
                converted=ours,
                output=text.own[part].to(device),
                attended=text.attended[part].to(device),
                side=side,
            )
            for part, (read, ours, side) in zip(self._sampled(), inputs, strict=True)
        ]
        sample: Sample = sample_original(original, batches, block.rule, order)
        solved = LayerRefit(
            weights=plain,
            sample=sample,
            rule=block.rule,
            tokens=context.moments.matrix(),
            key_tokens=context.key_moments.matrix(),
            value_tokens=context.value_moments.matrix(),
        ).run()
        best = min((plain, solved), key=lambda candidate: self._error(block, candidate))
        return self._with_output(block, best)

    def _solved_mlp(self, block: Block, converted: Converted) -> MlpOutput:
        """The projection that ends the MLP, from now on in the block, as it is stored."""
        weights, device = rounded(converted, self._dtype), self._stream.device
        assert block.mlp_output is not None

        def states(name: str) -> Iterator[tuple[Tensor, ...]]:
            text = self._texts[name]
            assert text.attended is not None
            parts = (part.split(self._sizes[name]) for part in (text.converted, text.attended, text.original))
            for batch in zip(*parts, strict=True):
                yield tuple(part.to(device) for part in batch)

        found = solve_mlp(
            block, lambda x: Attention(weights, x, block.rule).output(), states("fit"), states("selection")
        )
        assert block.mlp_output is not None
        found.rounded(self._dtype).put(block.mlp_output)
        return found

    def _misses(self, name: str, block: Block, weights: Converted, *, kept: bool) -> Iterator[tuple[Tensor, ...]]:
        """Head outputs [n, H a], what the attention and the stream before it lack, the stream [n, D]; by batch.

        Args:
            kept: head outputs stay with the text.
        """
        text, size = self._texts[name], self._sizes[name]
        if kept:
            text.heads = self._room(name, weights.o)
        for (states, own, attended, met), place in zip(text.targets(size), text.heads_of(size), strict=True):
            read, own, attended = (part.to(self._stream.device) for part in (states, own, attended))
            attention = block.computed(weights, block.normalised(read), met)
            heads = attention.head_outputs()
            if place is not None:
                place.copy_(heads)
            lost = own - attention.output(heads)
            inherited = attended - own - block.joined(read)
            parts, asked = (heads.flatten(2), lost, inherited, attended), attention.asked
            yield tuple(part.flatten(0, 1) if asked is None else part[asked] for part in parts)

    def _room(self, name: str, o: Tensor) -> Tensor:
        """[n, T, H, a] for what an output projection [H, D, a] reads of a text."""
        shape = (*self._texts[name].converted.shape[:2], o.shape[0], o.shape[2])
        if name not in self._rooms or self._rooms[name].shape != shape:
            self._rooms[name] = self._stack.enter_context(spool(shape))
        return self._rooms[name]

    def _error(self, block: Block, converted: Converted) -> float:
        """What the attention's output lacks on the selection text, relative to the stream: at most 1 for a token."""
        total = 0.0
        for _, lost, _, stream in self._misses("selection", block, converted, kept=False):
            error = relative_error(lost.square().sum(-1), stream.square().sum(-1))
            total += float(error.sum(dtype=torch.float64))
        return total if total == total else float("inf")

    def _with_output(self, block: Block, converted: Converted) -> Converted:
        """The output projection by ridge regression on the texts, which are kept as it reads them."""
        converted = replace(rounded(converted, self._dtype), o=converted.o, o_bias=converted.o_bias)
        o, bias = converted.o, converted.o_bias
        sums = {name: Regression() for name in ("fit", "selection")}
        for name, regression in sums.items():
            for heads, own, inherited, stream in self._misses(name, block, converted, kept=True):
                regression.add(heads, own, inherited, stream, bias is not None)
        rows = o.shape[0] * o.shape[2]
        change = solve(sums["fit"], sums["selection"], rows)
        moved = o.double() + change[:rows].unflatten(0, (o.shape[0], o.shape[2])).mT
        if bias is None:
            return replace(converted, o=moved.to(o.dtype))
        return replace(converted, o=moved.to(o.dtype), o_bias=(bias.double() + change[rows]).to(bias.dtype))
