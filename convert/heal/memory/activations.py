"""What a decoder block keeps for its backward pass, found by running one: what a class's attention keeps is its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from convert_attn.convert.archs import architectures
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.heal.state.pair import learns, without_dropout
from convert_attn.convert.streaming.skeleton import Skeleton

_LENGTHS = (64, 128, 256)  # windows that a block is tried on; longer ones by the parabola through these


@dataclass(frozen=True)
class Activations:
    """Of one block, in bytes.

    Attributes:
        fixed: whatever the number of windows: weights in the arithmetic's dtype.
        window: for each window.
    """

    fixed: int
    window: int

    def of(self, windows: int) -> int:
        """For so many windows at once."""
        return self.fixed + windows * self.window


def measure_block(accelerator: Accelerator, source: Source, learned: str, length: int) -> Activations:
    """Run the first block of a checkpoint on short windows.

    Args:
        learned: "attention" or "all".
        length: tokens per window, as it will be trained on.

    Raises:
        ConvertAttnError: its class cannot be made.
    """
    arch = architectures().get(source.config["model_type"])
    two_stacks = arch is not None and arch.cross is not None
    stack, hands_on = ("", ()) if arch is None else (arch.stack, arch.hands_on)
    device = str(accelerator.device)
    skeleton = Skeleton(source, device=device, attention="sdpa", stack=stack, hands_on=hands_on)
    without_dropout(skeleton.model)
    stem = f"{skeleton.stem}0."
    lengths = _LENGTHS if length > _LENGTHS[-1] else (length,)
    # what a decoder's block meets of a source belongs to its windows
    calls = {
        (windows, tokens): skeleton.calls(
            torch.zeros(windows if two_stacks else 1, tokens, dtype=torch.int64),
            _met(skeleton, two_stacks, windows, tokens),
        )[0]
        for tokens in lengths
        for windows in ((1, 2) if len(lengths) == 1 else (1,))
    }
    kept: dict[tuple[int, int], int] = {}
    with skeleton.filled(skeleton.names(lambda name: name.startswith(stem))):
        for name, parameter in skeleton.blocks[0].named_parameters():
            parameter.requires_grad_(learns(stem + name, learned))
        for (windows, tokens), call in calls.items():
            with accelerator.autocast():
                kept[windows, tokens] = _kept(skeleton, call, windows, tokens)
    if len(lengths) == 1:
        each = kept[2, length] - kept[1, length]
        return Activations(max(0, kept[1, length] - each), each)
    square, linear, fixed = np.polyfit(lengths, [kept[1, tokens] for tokens in lengths], 2)
    return Activations(max(0, round(fixed)), round(linear * length + max(0.0, square) * length**2))


def _met(skeleton: Skeleton, two_stacks: bool, windows: int, tokens: int) -> dict[str, Tensor]:
    """What a decoder is given besides its tokens: states of as many of a source."""
    if not two_stacks:
        return {}
    states = torch.randn(windows, tokens, skeleton.model.config.hidden_size, device=skeleton.device)
    return {"encoder_hidden_states": states}


def _kept(skeleton: Skeleton, call: Any, windows: int, tokens: int) -> int:
    """Bytes of all that is saved for the backward pass, parameters aside."""
    block = skeleton.blocks[0]
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    states = torch.randn(windows, tokens, skeleton.model.config.hidden_size, device=skeleton.device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(states.requires_grad_(True), *call.args, **call.kwargs)
    total = sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own)
    del out
    return total
