"""A checkpoint's base model without weights: its tensors are read when a block needs them, and let go after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.attention_call import EnoughError, handed_on
from convert_attn.convert.classes.auto_classes import attention_for
from convert_attn.convert.classes.base_model import make_base
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, first_line
from convert_attn.convert.text.sounds import Sounds

_TOKENS = "input_ids"  # what classes call them that read such


@dataclass
class Call:
    """What a block is called with besides the states: masks, positions, rotations."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Find the decoder blocks of a base model, and their name: the first list of modules, the outermost first."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    return min(lists, key=lambda found: found[0].count("."), default=None)


def adding_nothing(arch: Architecture) -> Callable[..., Any]:
    """Make the forward of an attention module that adds nothing to the residual stream."""
    return lambda hidden_states, *args, **kwargs: attention_output(torch.zeros_like(hidden_states), arch, kwargs)


def attention_output(states: Tensor, arch: Architecture, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give states [B, T, D] as an attention module gives them, with what it hands on."""
    handed = arch.cross is not None and bool(arch.cross.hands_on)
    return (states, kwargs.get("position_bias"), None) if handed else (states, None)


class Skeleton:
    """A base model on the meta device, float32.

    Args:
        source: whose weights are read.
        device: where tensors go.
        attention: `attn_implementation`, where the class has it.
        config: of the class; None: the source's own.
        stack: the module of the base model that has the blocks, of a model with two such; "": the base model itself.
        hands_on: what a block gives back beside the states: see `CrossAttention`.

    Attributes:
        model: the base model.
        stack: what is called: the base model, or that module of it.
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
        *,
        stack: str = "",
        hands_on: tuple[int, ...] = (),
    ) -> None:
        self._source, self.device = source, device
        config = config or typed_config(source.config, source.origin.name)
        try:
            with init_empty_weights(include_buffers=False):
                fitting = attention_for(config, attention)
                self.model = make_base(config, attn_implementation=fitting, dtype=torch.float32).eval()
        except Exception as error:  # the class decides what it raises, and what has to be installed for it
            raise ConvertAttnError(
                f"the class of '{source.origin.name}' cannot be made in transformers: {first_line(error)}"
            ) from None
        self.model.requires_grad_(False)
        self.stack: Any = self.model.get_submodule(stack)
        self._within, self._hands_on = f"{stack}." if stack else "", hands_on
        found = decoder_blocks(self.stack)
        if found is None:
            raise ConvertAttnError(f"'{source.origin.name}' has no list of blocks in its class")
        self.stem, self.blocks = f"{self._within}{found[0]}.", found[1]
        self.base = source.names.base

        self._make_own()

    def _make_own(self) -> None:
        """Fill in what the checkpoint has no tensor for because its class makes it."""
        known: Any = self._source.names
        self._own: list[str] = []
        for path, module in self.stack.named_modules():
            own = [f"{self.base}{self._within}{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if own and all(known.is_made(name) and not known.stored(name) for name in own):
                module.to_empty(device=self.device)
                self.model._init_weights(module)
                module.requires_grad_(False)
                self._own += [name.removeprefix(self.base) for name in own]

    def names(self, inside: Callable[[str], bool]) -> list[str]:
        """Give the parameters whose names (within the base model) fit and that the checkpoint has."""
        known = self._source.names
        return [name for name, _ in self.model.named_parameters() if inside(name) and known.stored(self.base + name)]

    def fill(self, names: list[str], dtype: torch.dtype = torch.float32) -> None:
        """Read parameters; what the class makes itself is there, in the same dtype."""
        source = self._source
        for name in self._own:
            self._put(name, self.model.get_parameter(name).to(dtype))
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

    def outside(self) -> list[str]:
        """What of the stack belongs to none of its blocks: embeddings and the last norm."""
        return self.names(lambda name: name.startswith(self._within) and not name.startswith(self.stem))

    def makes_first(self, layer: int) -> list[str]:
        """What the first block needs to make what all hand on, for a layer behind it."""
        return self.names(lambda name: name.startswith(f"{self.stem}0.")) if self._hands_on and layer else []

    def embed(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the states that enter the first block: token ids [B, T] -> [B, T, D], batch by batch."""
        caught: list[Tensor] = []

        def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise EnoughError

        handle = self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with self.filled(self.outside()):
                for batch in batches:
                    try:
                        self.stack(**self._read(batch), use_cache=False)
                    except EnoughError:
                        yield caught.pop()
        finally:
            handle.remove()

    def _read(self, batch: Tensor) -> dict[str, Tensor]:
        """What the stack is called with for token ids [B, T], or what stands for sounds."""
        name = getattr(self.stack, "main_input_name", _TOKENS)
        if name != _TOKENS:
            origin = self._source.origin
            sounds = Sounds.of(self.model.config, origin.folder, origin.name)
            batch = batch if sounds is None else sounds.features(batch)
        return {name: batch.to(self.device)}

    def run(self, number: int, states: Tensor, call: Call, handed: dict[torch.Size, tuple[Any, ...]]) -> Tensor:
        """Run one block on states [B, T, D], in order of the blocks.

        Args:
            call: see `calls`.
            handed: what blocks have handed on besides, by the shape of the batch; changed.
        """
        args = list(call.args)
        for place, value in zip(self._hands_on, handed.get(states.shape, ()), strict=False):
            args[place - 1] = value
        out = self.blocks[number](states, *args, **call.kwargs)
        if self._hands_on:
            handed[states.shape] = tuple(out[1:])
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def finish(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Give what the stack gives for token ids [B, T], whose last block has given states [B, T, D]; by batch."""
        with self.filled(self.outside()):
            for batch, states in batches:
                yield self._finish(batch, states)

    def _finish(self, batch: Tensor, states: Tensor) -> Tensor:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return handed_on(states, args, self._hands_on)

        try:
            for block in self.blocks:
                block.forward = forward
            found: Tensor = self.stack(**self._read(batch), use_cache=False)[0]
        finally:
            for block in self.blocks:
                vars(block).pop("forward", None)  # the class's own shows again
        return found.as_subclass(Tensor)

    @contextmanager
    def passing_before(self, layer: int) -> Iterator[None]:
        """Blocks in front of a layer hand on what they are given."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return handed_on(hidden_states, args, self._hands_on)

        # the first block makes what all of them hand on
        first = 1 if self._hands_on else 0
        try:
            for block in self.blocks[first:layer]:
                block.forward = forward
            yield
        finally:
            for block in self.blocks[first:layer]:
                vars(block).pop("forward", None)  # the class's own shows again

    def calls(self, batch: Tensor, given: Mapping[str, Any] | None = None) -> list[Call]:
        """Tell what each block is called with for windows [B, T] of this shape; no block runs.

        Args:
            given: what the stack is called with besides.
        """
        return next(self.calls_of([batch], given))

    def calls_of(self, batches: Iterable[Tensor], given: Mapping[str, Any] | None = None) -> Iterator[list[Call]]:
        """Give `calls` of one batch after the other; what stands outside the blocks is read once."""
        with self.filled(self.outside()):
            for batch in batches:
                yield self._calls(batch, given or {})

    def _calls(self, batch: Tensor, given: Mapping[str, Any]) -> list[Call]:
        found = [Call() for _ in self.blocks]

        def passing(number: int) -> Callable[..., Tensor]:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                found[number] = Call(args, kwargs)
                if number + 1 == len(self.blocks):  # what follows may have weights that the checkpoint has not
                    raise EnoughError
                return handed_on(hidden_states, args, self._hands_on)

            return forward

        try:
            for number, block in enumerate(self.blocks):
                block.forward = passing(number)
            with suppress(EnoughError):
                self.stack(**self._read(batch), use_cache=False, **given)
        finally:
            for block in self.blocks:
                vars(block).pop("forward", None)  # the class's own shows again
        return found
