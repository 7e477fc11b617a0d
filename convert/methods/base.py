"""What a method is, and what it may know of a layer beyond its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.rotary import Offsets, Rotary


@dataclass(frozen=True)
class Moments:
    """First and second moment of the attention block's input x [D] (after the norm).

    Attributes:
        second: [D, D], E[x x^T].
        mean: [D], E[x].
    """

    second: Tensor
    mean: Tensor


def moments_from_norm(gain: Tensor, bias: Tensor | None) -> Moments:
    """The guess without data: a normalised vector has unit second moments, so C = diag(gain^2) + bias bias^T.

    Args:
        gain: [D] the norm's weight.
        bias: [D] or None (RMSNorm).
    """
    gain = gain.to(torch.float64)
    mean = torch.zeros_like(gain) if bias is None else bias.to(torch.float64)
    return Moments(torch.diag(gain**2) + torch.outer(mean, mean), mean)


@dataclass(frozen=True)
class LayerContext:
    """All that a method sees of a layer apart from the weights.

    Attributes:
        moments: of the block's input.
        rotary: the rotation of q and k, or None without rotary position.
        offsets: how far back the heads look (used under rotary position only).
        generator: seeded; the only source of randomness.
    """

    moments: Moments
    rotary: Rotary | None
    offsets: Offsets
    generator: torch.Generator


ShareHeads = Callable[[AttentionWeights, int, LayerContext], AttentionWeights]


@dataclass(frozen=True)
class Method:
    """A named way to convert.

    Attributes:
        name: as typed after --method.
        summary: one line for `convert-attn methods`.
        source: where it is described.
        share: weights with K heads -> weights with G heads (GQA, MQA), computed in the weights' dtype.
        calibration: "none", "optional" or "needed": whether text is used.
    """

    name: str
    summary: str
    source: str
    share: ShareHeads
    calibration: str = "none"

    @property
    def targets(self) -> tuple[str, ...]:
        """The values of --to that this method serves."""
        return ("gqa", "mqa")
