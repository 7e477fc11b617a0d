"""The original model run block by block: one block's weights in memory, the states of all windows between blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.attention_call import EnoughError
from convert_attn.convert.streaming.rules import layer_rule
from convert_attn.convert.streaming.skeleton import Skeleton, adding_nothing, attention_output
from convert_attn.convert.text.pair_windows import asked, both_sides, is_filled, readable
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import Attention, OtherSide, Rule
from convert_attn.convert.weights.latent import LatentWeights

Attend = Callable[[Tensor], Tensor]
"""The block's input after the norm [B, T, D] -> the attention's output [B, T, D]."""

Weights = AttentionWeights | LatentWeights

_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def _as_it_is(states: Tensor) -> Tensor:
    return states


@dataclass(frozen=True, kw_only=True)
class Half:
    """One of a decoder block's two attentions, run with all that is up to the other, or to the block's end.

    Attributes:
        first: it is the self-attention.
        own: the module of the self-attention.
        between: the norm that the second attention reads.
    """

    arch: Architecture
    first: bool
    own: nn.Module
    between: nn.Module

    def run(self, module: nn.Module, attention: nn.Module, states: Tensor, attend: Attend) -> Tensor:
        """As `Block.run`."""
        arch = self.arch
        post_norm = arch.cross is not None and arch.cross.post_norm
        caught: list[Tensor] = []

        def answer(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            return attention_output(attend(hidden_states), arch, kwargs)

        def stop(norm: nn.Module, args: Any, out: Any = None) -> None:
            caught.append(args[0] if out is None else out)
            raise EnoughError

        handles: list[Any] = []
        self.own.forward = adding_nothing(arch)
        attention.forward = answer
        if self.first:
            hook = self.between.register_forward_hook if post_norm else self.between.register_forward_pre_hook
            handles.append(hook(stop))
        elif post_norm:
            self.between.forward = _as_it_is
        try:
            out = module(states, encoder_hidden_states=states[:, :1])  # which is there, and not read
        except EnoughError:
            return caught.pop()
        finally:
            for handle in handles:
                handle.remove()
            vars(self.between).pop("forward", None)  # the class's own shows again
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


@dataclass(kw_only=True)
class Block:
    """One block with its weights in memory.

    Attributes:
        mlp_output: the projection that ends its MLP, None where there is no single one.
        rule: how its scores become probabilities.
        adds: the attention's output is added to the residual stream as it is, without a norm or a factor in between.
        apart: the output projection, where it is not inside the attention.
        half: of a block with two attentions, which of them this is: then states are those between the two, too.
        adds_stream: the attention is given what its output is added to, and adds it by itself.
    """

    module: nn.Module
    norm: nn.Module
    attention: nn.Module
    mlp_output: nn.Module | None
    rule: Rule
    adds: bool = True
    apart: nn.Module | None = None
    half: Half | None = None
    adds_stream: bool = False

    def computed(self, weights: Weights, x: Tensor, side: OtherSide | None = None) -> Attention:
        """Give its attention with these weights on x [B, T, D].

        Args:
            side: of an encoder-decoder.
        """
        return Attention(weights, x, self.rule, None if side is None else side.to(x.device))

    def joined(self, states: Tensor) -> Tensor:
        """Tell what the attention's output is added to before anything reads it: the stream, or nothing."""
        return states if self.adds else torch.zeros_like(states)

    def normalised(self, states: Tensor) -> Tensor:
        """Tell what the attention reads, [B, T, D]."""
        out: Tensor = self.norm(states)
        return out

    def run(self, states: Tensor, attend: Attend) -> Tensor:
        """Give the block's output [B, T, D], with `attend` in place of its attention and its output projection."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            attended = attend(hidden_states)
            return (attended + args[0] if self.adds_stream else attended), None

        if self.half is not None:
            return self.half.run(self.module, self.attention, states, attend)
        self.attention.forward = forward
        if self.apart is not None:
            self.apart.forward = _as_it_is
        # what else a block must be given is for its attention
        _, *others = signature(self.module.forward).parameters.values()
        wanted = [other.name for other in others if other.default is other.empty and other.kind in _BY_NAME]
        out = self.module(states, **dict.fromkeys(wanted))
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


class Stream:
    """A checkpoint's base model without weights, filled block by block.

    Args:
        source: whose weights are read.
        device: where blocks run; in float32.
    """

    def __init__(self, source: Source, arch: Architecture, sizes: Geometry, device: str = "cpu") -> None:
        self._source, self._arch, self._sizes = source, arch, sizes
        self.device, self.hidden_size = device, sizes.hidden_size
        self._skeleton = Skeleton(source, device, stack=arch.stack, hands_on=arch.hands_on)

    @property
    def across(self) -> bool:
        """Whether windows are sources and targets, of which an encoder reads the sources."""
        return self._arch.cross is not None

    def reads(self, layer: int) -> bool:
        """Tell whether a text goes through a layer."""
        return layer not in self._sizes.seeing

    def length(self, windows: Tensor) -> int:
        """Tell how many tokens of a window [N, T] the blocks read."""
        return self.targets(windows).shape[1]

    def targets(self, windows: Tensor) -> Tensor:
        """Give of windows [N, T] what the blocks read: all, or the targets."""
        return both_sides(windows)[1] if self.across else windows

    @torch.no_grad()
    def encode(self, windows: Tensor, place: Tensor, size: int) -> None:
        """Put what the encoder gives for the sources of windows [N, T] into a place [N, M, D], block by block.

        Sources of one length go together, so that nothing has to be hidden from the encoder; what fills up the others
        gets zeros.

        Args:
            size: windows in a batch.
        """
        cross = self._arch.cross
        if cross is None:
            raise ValueError("this model has no encoder apart")
        skeleton = Skeleton(self._source, self.device, stack=cross.encoder, hands_on=cross.hands_on)
        sources, parts = both_sides(windows)[0], list[tuple[Tensor, int]]()
        lengths = (sources >= 0).sum(1)
        for length in lengths.unique().tolist():
            parts += [(which, length) for which in (lengths == length).nonzero()[:, 0].split(size)]
        batches = [sources[which, :length] for which, length in parts]
        place.zero_()
        for (which, length), states in zip(parts, skeleton.embed(batches), strict=True):
            place[which, :length] = states.to(place.device)
        shapes = {batch.shape: batch for batch in batches}
        calls = dict(zip(shapes, skeleton.calls_of(shapes.values()), strict=True))
        handed: dict[torch.Size, tuple[Any, ...]] = {}
        for number in range(len(skeleton.blocks)):
            stem = f"{skeleton.stem}{number}."
            with skeleton.filled(skeleton.names(lambda name, stem=stem: name.startswith(stem))):  # type: ignore[misc]
                for (which, length), batch in zip(parts, batches, strict=True):
                    states = place[which, :length].to(self.device)
                    made = skeleton.run(number, states, calls[batch.shape][number], handed)
                    place[which, :length] = made.to(place.device)
        last = (place[which, :length].to(self.device) for which, length in parts)
        for (which, length), made in zip(parts, skeleton.finish(zip(batches, last, strict=True)), strict=True):
            place[which, :length] = made.to(place.device)

    def side(self, windows: Tensor, states: Tensor) -> OtherSide | None:
        """Give what the decoder meets for windows [N, T], of the encoder's states [N, M, D]; None without one."""
        if not self.across:
            return None
        if not is_filled(windows):
            return OtherSide(states)
        sources, targets = both_sides(windows)
        return OtherSide(states, sources >= 0, asked(targets))

    def source_length(self, windows: Tensor) -> int:
        """Tell how many tokens of a window [N, T] the encoder reads."""
        return both_sides(windows)[0].shape[1] if self.across else 0

    def embed(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the states that enter the first block: windows [B, T] -> [B, T, D], or of targets; by batch."""
        return self._skeleton.embed(readable(self.targets(batch)) for batch in batches)

    def _module(self, layer: int) -> nn.Module:
        module: nn.Module = self._skeleton.model.get_submodule(self._arch.stem(layer).rstrip("."))
        return module

    @contextmanager
    def block(self, layer: int) -> Iterator[Block]:
        """Give one block; its attention's own projections are not read, as `Block.run` never uses them."""
        stem, arch = self._arch.stem(layer), self._arch.at(layer)
        own = (self._arch.at(site).tensors for site in range(self._arch.attentions))
        skipped = {f"{stem}{name}" for name in frozenset().union(*own) | {f"{self._arch.table}.weight"}}
        names = self._skeleton.names(lambda name: name.startswith(stem) and name not in skipped)
        module = self._module(layer)
        attention, *apart = (module.get_submodule(part) for part in arch.parts)
        half, stream_is_normed = None, arch.norm is None
        if self._arch.cross is not None:
            cross = self._arch.cross
            own_module, between = (module.get_submodule(name) for name in (self._arch.mixer, cross.norm.name))
            half = Half(arch=self._arch, first=arch is self._arch, own=own_module, between=between)
            stream_is_normed |= cross.post_norm
        with self._skeleton.filled(names):
            named = "" if stream_is_normed or arch.norm is None else arch.norm.name
            norm = module.get_submodule(named) if named else nn.Identity()
            mlp = self._arch.mlp_output
            yield Block(
                module=module,
                norm=norm,
                attention=attention,
                mlp_output=None if mlp is None else module.get_submodule(mlp),
                rule=layer_rule(self._source, self._arch, self._sizes, layer),
                adds=not (self._arch.after or self._arch.scaled_residual),
                apart=apart[0] if apart else None,
                half=half,
                adds_stream=self._arch.adds_stream,
            )
