"""What a method is, and what it may know of a layer beyond its weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from convert_attn.convert.maths.moments import Moments
from convert_attn.convert.maths.rotary import Offsets, RotaryPlanes
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.head_norm import HeadNorm
from convert_attn.convert.weights.latent import LatentSizes, LatentWeights

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """All that a method sees of a layer apart from the weights.

    Attributes:
        moments: of the block's input, a token's as good as another's.
        keys: of the tokens that are looked at, each counted by the attention it gets; `moments` where not known.
        attended: of what the values meet, a = sum_t p_t x_t, averaged over heads; `moments` where not known.
        rotary: the rotation of q and k, or None without rotary position.
        offsets: how far back the heads look (used under rotary position only).
        generator: seeded; the only source of randomness.
        score_share: MLA: how much errors of scores count against errors of outputs, both relative (lambda).
        fixed_order: query heads must stay in their places, as something of theirs (ALiBi's slopes) does not move.
        norm: what a norm on queries and keys computes, where the weights have its gains.
        capped: scores stay below a size, so that what is added to all of a query counts.
        epsilon: the spacing of the numbers the result is stored in, relative (`torch.finfo(dtype).eps`).
        sweeps: of alternating least squares, at most; a few do where sizes are only compared.
        kept: see `once`.
    """

    moments: Moments
    rotary: RotaryPlanes | None
    offsets: Offsets
    generator: torch.Generator
    keys: Moments | None = None
    attended: Moments | None = None
    score_share: float = 1.0
    epsilon: float = torch.finfo(torch.float32).eps
    fixed_order: bool = False
    norm: HeadNorm | None = None
    capped: bool = False
    sweeps: int = 20
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """Give what `make` gives, made once for this layer: a step that several sizes of a result share."""
        if name not in self.kept:
            self.kept[name] = make()
        found: Made = self.kept[name]
        return found

    @property
    def key_moments(self) -> Moments:
        """What an error of the keys is to be weighed by."""
        return self.moments if self.keys is None else self.keys

    @property
    def value_moments(self) -> Moments:
        """What an error of the values is to be weighed by."""
        return self.moments if self.attended is None else self.attended


CompressLatent = Callable[[AttentionWeights, LatentSizes, LayerContext], LatentWeights]
ShareHeads = Callable[[AttentionWeights, int, LayerContext], AttentionWeights]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named way to convert.

    Attributes:
        name: as typed after --method.
        summary: one line for `convert-attn methods`.
        source: where it is described.
        share: weights with K heads -> weights with G heads (GQA, MQA); computed in float64, given back in the
            weights' own dtype.
        chooses_sizes: MLA by a share of the cache: the split and a rank for each layer are chosen on text.
        calibration: "none", "optional" or "needed": whether text is used.
        literal: a baseline of the literature: its weights stay what it says, and are not balanced.
        draws: it takes random numbers, which come in the order of the layers.
        refit: where there is text, the output projections are solved anew unless the user says otherwise.
        experiments: values of --to beside those of `share` and `compress`, which leave the weights as they are.
    """

    name: str
    summary: str
    source: str
    share: ShareHeads | None = None
    compress: CompressLatent | None = None
    chooses_sizes: bool = False
    calibration: str = "none"
    literal: bool = False
    draws: bool = False
    refit: bool = False
    experiments: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The values of --to that this method serves."""
        return (("gqa", "mqa") if self.share else ()) + (("mla",) if self.compress else ()) + self.experiments
