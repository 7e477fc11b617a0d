"""What a method is, and what it may know of a layer beyond its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.latent import LatentSizes, LatentWeights
from convert_attn.convert.moments import Moments
from convert_attn.convert.rotary import Offsets, Rotary


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


CompressLatent = Callable[[AttentionWeights, LatentSizes, LayerContext], LatentWeights]
ShareHeads = Callable[[AttentionWeights, int, LayerContext], AttentionWeights]


@dataclass(frozen=True)
class Method:
    """A named way to convert.

    Attributes:
        name: as typed after --method.
        summary: one line for `convert-attn methods`.
        source: where it is described.
        share: weights with K heads -> weights with G heads (GQA, MQA); computed in float64, given back in the
            weights' own dtype.
        calibration: "none", "optional" or "needed": whether text is used.
    """

    name: str
    summary: str
    source: str
    share: ShareHeads | None = None
    compress: CompressLatent | None = None
    calibration: str = "none"

    @property
    def targets(self) -> tuple[str, ...]:
        """The values of --to that this method serves."""
        return (("gqa", "mqa") if self.share else ()) + (("mla",) if self.compress else ())
