"""A checkpoint's base model without weights: its tensors are read when a block needs them, and let go after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.attention_call import passed
from convert_attn.convert.classes.auto_classes import attention_for
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, first_line


class _EnoughError(Exception):
    """Raised to stop a forward pass where enough was seen."""


@dataclass
class Call:
    """What a block is called with besides the states: masks, positions, rotations."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Find the decoder blocks of a base model, and their name: the first list of modules, the outermost first."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    return min(lists, key=lambda found: found[0].count("."), default=None)


class Skeleton:
    """A base model on the meta device, float32.

    Args:
        source: whose weights are read.
        device: where tensors go.
        attention: `attn_implementation`, where the class has it.
        config: of the class; None: the source's own.

    Attributes:
        model: the base model.
        base: what its names start with in the class of the checkpoint ("model.").
        stem: what names of block tensors start with in it ("layers.", "h.").
        blocks: its blocks.
    """

    def __init__(
        self,
        source: Source,
        device: str = "cpu",
        attention: str = "eager",
        config: PreTrainedConfig | None = None,
    ) -> None:
        self._source, self.device = source, device
        config = config or typed_config(source.config, source.origin.name)
        try:
            with init_empty_weights(include_buffers=False):
                fitting = attention_for(config, attention)
                self.model = AutoModel.from_config(config, attn_implementation=fitting, dtype=torch.float32).eval()
        except Exception as error:  # the class decides what it raises, and what has to be installed for it
            raise ConvertAttnError(
                f"the class of '{source.origin.name}' cannot be made in transformers: {first_line(error)}"
            ) from None
        self.model.requires_grad_(False)
        found = decoder_blocks(self.model)
        if found is None:
            raise ConvertAttnError(f"'{source.origin.name}' has no list of blocks in its class")
        self.stem, self.blocks = f"{found[0]}.", found[1]
        self.base = source.names.base

    def names(self, inside: Callable[[str], bool]) -> list[str]:
        """Give the parameters whose names (within the base model) fit and that the checkpoint has."""
        known = self._source.names
        return [name for name, _ in self.model.named_parameters() if inside(name) and known.stored(self.base + name)]

    def fill(self, names: list[str], dtype: torch.dtype = torch.float32) -> None:
        """Read parameters."""
        source = self._source
        for name, value in source.names.read_all([self.base + name for name in names], source.weights.read):
            self._put(name.removeprefix(self.base), value.to(self.device, dtype))

    def empty(self, names: list[str]) -> None:
        """Let parameters go."""
        for name in names:
            self._put(name, self.model.get_parameter(name).to("meta"))

    def _put(self, name: str, value: Tensor) -> None:
        # not accelerate's set_module_tensor_to_device, which trips over plain tensors where FSDP is on
        parent, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(parent), own, nn.Parameter(value, requires_grad=False))

    @contextmanager
    def filled(self, names: list[str], dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Parameters read for as long as the block lasts."""
        self.fill(names, dtype)
        try:
            yield
        finally:
            self.empty(names)

    def _outside(self) -> list[str]:
        """What belongs to no decoder block: embeddings and the last norm."""
        return self.names(lambda name: not name.startswith(self.stem))

    def embed(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the states that enter the first block: token ids [B, T] -> [B, T, D], batch by batch."""
        caught: list[Tensor] = []

        def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _EnoughError

        handle = self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with self.filled(self._outside()):
                for batch in batches:
                    try:
                        self.model(input_ids=batch.to(self.device), use_cache=False)
                    except _EnoughError:
                        yield caught.pop()
        finally:
            handle.remove()

    @contextmanager
    def passing_before(self, layer: int) -> Iterator[None]:
        """Blocks in front of a layer hand on what they are given."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return passed(hidden_states)

        try:
            for block in self.blocks[:layer]:
                block.forward = forward
            yield
        finally:
            for block in self.blocks[:layer]:
                vars(block).pop("forward", None)  # the class's own shows again

    def calls(self, batch: Tensor) -> list[Call]:
        """Tell what each block is called with for windows [B, T] of this shape; no block runs."""
        found = [Call() for _ in self.blocks]

        def passing(number: int) -> Callable[..., Tensor]:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                found[number] = Call(args, kwargs)
                if number + 1 == len(self.blocks):  # what follows may have weights that the checkpoint has not
                    raise _EnoughError
                return passed(hidden_states)

            return forward

        try:
            for number, block in enumerate(self.blocks):
                block.forward = passing(number)
            with self.filled(self._outside()), suppress(_EnoughError):
                self.model(input_ids=batch.to(self.device), use_cache=False)
        finally:
            for block in self.blocks:
                vars(block).pop("forward", None)  # the class's own shows again
        return found
