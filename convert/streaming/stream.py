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
from convert_attn.convert.streaming.skeleton import Skeleton
from convert_attn.convert.weights.functional import Rule

Attend = Callable[[Tensor], Tensor]
"""The block's input after the norm [B, T, D] -> the attention's output [B, T, D]."""

_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def _as_it_is(states: Tensor) -> Tensor:
    return states


@dataclass(kw_only=True)
class Block:
    """One block with its weights in memory.

    Attributes:
        mlp_output: the projection that ends its MLP, None where there is no single one.
        rule: how its scores become probabilities.
        adds: the attention's output is added to the residual stream as it is, without a norm or a factor in between.
        apart: the output projection, where it is not inside the attention.
        adds_stream: the attention is given what its output is added to, and adds it by itself.
    """

    module: nn.Module
    norm: nn.Module
    attention: nn.Module
    mlp_output: nn.Module | None
    rule: Rule
    adds: bool = True
    apart: nn.Module | None = None
    adds_stream: bool = False

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
        self._arch, self._sizes = arch, sizes
        self.device, self.hidden_size = device, sizes.hidden_size
        self._skeleton = Skeleton(source, device)

    def embed(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the states that enter the first block: token ids [B, T] -> [B, T, D], batch by batch."""
        return self._skeleton.embed(batches)

    def _module(self, layer: int) -> nn.Module:
        module: nn.Module = self._skeleton.model.get_submodule(self._arch.block.format(layer=layer).rstrip("."))
        return module

    @contextmanager
    def block(self, layer: int) -> Iterator[Block]:
        """Give one block; its attention's own projections are not read, as `Block.run` never uses them."""
        stem = self._arch.block.format(layer=layer)
        skipped = {f"{stem}{name}" for name in self._arch.tensors}
        names = self._skeleton.names(lambda name: name.startswith(stem) and name not in skipped)
        module = self._module(layer)
        attention, *apart = (module.get_submodule(part) for part in self._arch.parts)
        with self._skeleton.filled(names):
            norm = nn.Identity() if self._arch.norm is None else module.get_submodule(self._arch.norm.name)
            mlp = self._arch.mlp_output
            yield Block(
                module=module,
                norm=norm,
                attention=attention,
                mlp_output=None if mlp is None else module.get_submodule(mlp),
                rule=self._sizes.block(layer).rule(),
                adds=not (self._arch.after or self._arch.scaled_residual),
                apart=apart[0] if apart else None,
                adds_stream=self._arch.adds_stream,
            )
