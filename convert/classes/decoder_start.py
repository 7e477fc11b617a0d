"""What an encoder-decoder's target begins with: as its config says, and as its class shifts a target to the right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.errors import ConvertAttnError, first_line

Shift = Callable[[list[int]], int]
"""The tokens of a target -> the token that stands in front of them when they are learned."""

_KEYS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def first_token(config: PreTrainedConfig) -> int:
    """Give the token that a text of no pair begins with, as a target."""
    found = (getattr(config, key, None) for key in _KEYS)
    return next((token for token in found if isinstance(token, int)), 0)


def shift_of(config: PreTrainedConfig, auto_class: str, name: str) -> Shift:
    """Give the shift of a class: what its decoder reads in front of a target, by its own forward with labels.

    Args:
        auto_class: of transformers, which makes it.
        name: for messages.
    """
    made: list[Any] = []

    def shift(target: list[int]) -> int:
        try:
            if not made:
                with torch.device("meta"):
                    made.append(getattr(transformers, auto_class).from_config(config))
            inputs = _shifted(made[0], torch.tensor([target], device="cpu"))
            first, *others = inputs[0].tolist()
        except Exception as error:  # the class decides what it raises
            raise ConvertAttnError(
                f"the class of '{name}' makes no input of its decoder from a target: {first_line(error)}"
            ) from None
        if others != target[:-1]:
            raise ConvertAttnError(
                f"the class of '{name}' makes the input of its decoder from a target in another way than by a shift by "
                "one token: it has no next token to be measured"
            )
        return int(first)

    return shift


def _shifted(model: Any, labels: Tensor) -> Tensor:
    """What the decoder reads for labels [1, T], by the class's method, or by the function of its file."""
    method = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if method is not None:
        inputs: Tensor = method(labels=labels)
        return inputs
    files = (sys.modules[kind.__module__] for kind in type(model).__mro__)
    shift = next(file.shift_tokens_right for file in files if hasattr(file, "shift_tokens_right"))
    found: Tensor = shift(labels, model.config.pad_token_id, model.config.decoder_start_token_id)
    return found
