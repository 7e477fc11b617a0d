"""A block of a class called on the meta device, without weights: what its attention gives to what computes scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "convert_attn_watch"  # of the attention implementation that only looks


class EnoughError(Exception):
    """Raised to stop a forward pass where enough was seen."""


class Passed(Tensor):
    """States that a block hands on, for models that take them as they are or as the first of a tuple."""

    # what is computed of them is an ordinary tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        plain = self.as_subclass(Tensor)
        return plain if isinstance(key, int) and key == 0 else plain[key]


def passed(states: Tensor) -> Passed:
    """Give [B, T, D] as a block hands them on."""
    return states.as_subclass(Passed)


def handed_on(states: Tensor, args: tuple[Any, ...], numbers: tuple[int, ...]) -> Any:
    """Give states as a block hands them on, with what else of its arguments it gives back.

    Args:
        args: what it is called with besides the states.
        numbers: which of all its arguments, the states being number 0.
    """
    if not numbers:
        return passed(states)
    return (states, *(args[number - 1] for number in numbers))


@dataclass(frozen=True)
class BlockCall:
    """What a block is called with besides the states of so many tokens."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tokens: int

    @property
    def values(self) -> list[Any]:
        """All of it."""
        return [*self.args, *self.kwargs.values()]

    @property
    def tables(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines, where there are such."""
        return next((value for value in self.values if _is_tables(value)), None)


@dataclass(frozen=True)
class Seen:
    """What was seen of one layer.

    Attributes:
        turns: queries depend on the tables of cosines and sines.
        softcap: the size that scores stay below, None: any.
    """

    turns: bool
    softcap: float | None = None


def watch(model: Any, block: nn.Module, attention: nn.Module, call: BlockCall) -> Seen:
    """Run a block as its class has it, up to the scores of its attention.

    Args:
        model: on the meta device, whose parameters want no gradient: what depends on the tables is asked of autograd.
        call: what the block was called with; a class that cannot run so is taken to use what it was given.
    """
    found = Seen(turns=call.tables is not None)

    def look(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> None:
        nonlocal found
        cap = kwargs.get("softcap")
        found = Seen(turns=query.requires_grad, softcap=float(cap) if cap else None)
        raise EnoughError

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal found
        found = Seen(turns=(out[0] if isinstance(out, tuple) else out).requires_grad)
        raise EnoughError

    handle, own = attention.register_forward_hook(leave), model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[_NAME] = look
    model.config._attn_implementation = _NAME
    try:
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has turned off
            hidden = torch.zeros(1, call.tokens, model.config.hidden_size, device="meta")
            kwargs = {key: _on_meta(value) for key, value in call.kwargs.items()}
            block(hidden, *(_on_meta(value) for value in call.args), **kwargs)
    except Exception:  # enough was seen, or the class cannot run without numbers: its attention is run on some later
        return found
    finally:
        handle.remove()
        model.config._attn_implementation = own
        del ALL_ATTENTION_FUNCTIONS[_NAME]
    return found


def _is_tables(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)


def _on_meta(value: Any) -> Any:
    """The value without numbers; tables are what autograd looks for."""
    if _is_tables(value):
        return tuple(part.detach().to("meta").requires_grad_() for part in value)
    return value.to("meta") if isinstance(value, Tensor) else value
