"""The original model run block by block: one block's weights in memory, the states of all windows between blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn
from transformers import AutoModel

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.functional import Rule
from convert_attn.convert.geometry import Geometry, typed_config
from convert_attn.convert.source import Source

Attend = Callable[[Tensor], Tensor]
"""The block's input after the norm [B, T, D] -> the attention's output [B, T, D]."""


class _EnoughError(Exception):
    """Raised to stop a forward pass before its first block."""


@dataclass
class Block:
    """One decoder block with its weights in memory.

    Attributes:
        rule: how its scores become probabilities.
    """

    module: nn.Module
    norm: nn.Module
    attention: nn.Module
    rule: Rule

    def normalised(self, states: Tensor) -> Tensor:
        """What the attention reads, [B, T, D]."""
        out: Tensor = self.norm(states)
        return out

    def run(self, states: Tensor, attend: Attend) -> Tensor:
        """The block's output [B, T, D], with `attend` in place of its attention."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            return attend(hidden_states), None

        self.attention.forward = forward
        out = self.module(states)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


class Stream:
    """A checkpoint's base model without weights, filled block by block.

    Args:
        source: whose weights are read.
        prefix: what names of the base model's tensors start with in the checkpoint.
        device: where blocks run; in float32.
    """

    def __init__(self, source: Source, arch: Architecture, sizes: Geometry, prefix: str, device: str = "cpu") -> None:
        self._source, self._arch, self._sizes, self._prefix = source, arch, sizes, prefix
        self.device, self.hidden_size = device, sizes.hidden_size
        config = typed_config(source.config, source.origin.name)
        with init_empty_weights(include_buffers=False):
            self._model = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        self._model.requires_grad_(False)

    def _fill(self, names: list[str]) -> None:
        for name in names:
            value = self._source.weights.read(self._prefix + name)
            set_module_tensor_to_device(self._model, name, self.device, value=value, dtype=torch.float32)

    def _empty(self, names: list[str]) -> None:
        for name in names:
            set_module_tensor_to_device(self._model, name, "meta")

    def _names(self, inside: Callable[[str], bool]) -> list[str]:
        present = self._source.weights.infos
        return [name for name, _ in self._model.named_parameters() if inside(name) and self._prefix + name in present]

    def embed(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The states that enter the first block: token ids [B, T] -> [B, T, D], batch by batch."""
        stem = self._arch.block.partition("{layer}")[0]
        names = self._names(lambda name: not name.startswith(stem))
        self._fill(names)
        caught: list[Tensor] = []

        def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _EnoughError

        handle = self._module(0).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            for batch in batches:
                try:
                    self._model(input_ids=batch.to(self.device), use_cache=False)
                except _EnoughError:
                    yield caught.pop()
        finally:
            handle.remove()
            self._empty(names)

    def _module(self, layer: int) -> nn.Module:
        module: nn.Module = self._model.get_submodule(self._arch.block.format(layer=layer).rstrip("."))
        return module

    def _window(self, layer: int) -> int | None:
        """How many tokens back the layer sees; layers without a window may stand among others."""
        kinds = getattr(self._model.config, "layer_types", None)
        return None if kinds and kinds[layer] == "full_attention" else self._sizes.window

    @contextmanager
    def block(self, layer: int) -> Iterator[Block]:
        """One block; its attention's own projections are not read, as `Block.run` never uses them."""
        stem = self._arch.block.format(layer=layer)
        skipped = tuple(f"{stem}{name}." for name in self._arch.projections)
        names = self._names(lambda name: name.startswith(stem) and not name.startswith(skipped))
        self._fill(names)
        module = self._module(layer)
        attention = module.get_submodule(self._arch.output.rpartition(".")[0])
        rotary = self._sizes.plane_frequencies() if self._arch.position == "rope" else None
        rule = Rule(
            scale=float(attention.scaling),  # type: ignore[arg-type]
            inv_freq=rotary,
            rotary_scale=float(getattr(getattr(self._model, "rotary_emb", None), "attention_scaling", 1.0)),
            window=self._window(layer),
        )
        try:
            yield Block(module, module.get_submodule(self._arch.norm.name), attention, rule)
        finally:
            self._empty(names)
