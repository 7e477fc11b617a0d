"""What one block's attention is: sizes, scale, and how it knows where a token stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from convert_attn.convert.weights.functional import Rule
from convert_attn.convert.weights.head_norm import HeadNorm


@dataclass(frozen=True)
class Added:
    """Positions are added to the model's input, or there are none: attention itself knows of no place.

    Attributes:
        kind: as `inspect` prints it.
    """

    kind: str = "learned"


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys turn with the position (Su et al., arXiv:2104.09864).

    Attributes:
        inv_freq: frequencies of the planes in radians per token; with partial rotary they turn the first
            2 * len(inv_freq) of the head's numbers.
        interleaved: plane p is (2 p, 2 p + 1) of the head; else (p, p + len(inv_freq)).
        formula: transformers' name for how they come about, "default" for the plain one.
        scale: what the turned numbers of queries and keys are multiplied by, besides.
    """

    inv_freq: tuple[float, ...]
    formula: str = "default"
    scale: float = 1.0
    interleaved: bool = False
    kind: str = "rope"


@dataclass(frozen=True)
class Alibi:
    """Scores fall with the distance, at a slope of each query head's own (Press et al., arXiv:2108.12409).

    Attributes:
        slopes: [H], per token of distance.
        coarse: slopes, and their products with a token's place, are rounded to bfloat16, and multiplied by the scale as
            scores are.
    """

    slopes: tuple[float, ...]
    coarse: bool = False
    kind: str = "alibi"


@dataclass(frozen=True, kw_only=True)
class Relative:
    """Scores gain a number of each query head's own for the distance (Raffel et al., arXiv:1910.10683, section 2.1).

    Attributes:
        buckets: how many numbers a head has: half of them for one distance each, the others for ranges that grow.
        farthest: the distance from which on the last one holds.
    """

    buckets: int
    farthest: int
    kind: str = "relative"


Position = Added | Rotary | Alibi | Relative


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Give the slopes of the paper for H heads: powers of 2^(-8 / H), for other numbers those of two powers of two."""
    whole = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (n + 1) / whole) for n in range(whole)]
    between = [2 ** (-4 * (2 * n + 1) / whole) for n in range(heads - whole)]
    return tuple(first + between)


@dataclass(frozen=True)
class QueryKeyNorm:
    """Norms on queries and keys after their projection, before they turn.

    Attributes:
        computes: what the norm does to them.
        weights: "shared", [d] for every head; "own", [n, d]; or "flat", [n d].
    """

    computes: HeadNorm
    weights: Literal["shared", "own", "flat"]

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it stores: a weight, and a bias of the same shape where it has one."""
        return ("weight", "bias") if self.computes.biased else ("weight",)

    def shape(self, heads: int, head_dim: int) -> tuple[int, ...]:
        """Of the stored weight."""
        shapes = {"shared": (head_dim,), "own": (heads, head_dim), "flat": (heads * head_dim,)}
        return shapes[self.weights]

    def read(self, stored: Tensor, heads: int) -> Tensor:
        """Give [n, d] of the stored weight."""
        return stored.expand(heads, -1) if self.weights == "shared" else stored.reshape(heads, -1)

    def write(self, gain: Tensor) -> Tensor:
        """Give the stored weight of [n, d], whose rows are equal where one is stored for all."""
        return {"shared": gain[0], "own": gain, "flat": gain.flatten()}[self.weights]


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """One block's attention, as the class that config.json names has it.

    Attributes:
        scale: what scores are multiplied by.
        window: how many tokens back a token sees, itself included; None: all.
        softcap: the size that scores stay below; None: any.
        norm: on queries and keys.
        sinks: every query head may look at something besides its tokens.
        causal: a token sees itself and those before it; else all.
        across: keys and values come from another text than queries.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    scale: float
    position: Position
    window: int | None = None
    softcap: float | None = None
    norm: QueryKeyNorm | None = None
    sinks: bool = False
    causal: bool = True
    across: bool = False

    @property
    def turns(self) -> bool:
        """Whether queries and keys turn with the position."""
        return isinstance(self.position, Rotary)

    @property
    def fixed_order(self) -> bool:
        """Whether a query head has something that does not travel with it: its number in the class counts."""
        return isinstance(self.position, Alibi | Relative)

    @property
    def _interleaved(self) -> bool:
        return isinstance(self.position, Rotary) and self.position.interleaved

    def rule(self) -> Rule:
        """Tell how scores become probabilities."""
        position = self.position
        return Rule(
            scale=self.scale,
            inv_freq=self.plane_frequencies() if isinstance(position, Rotary) else None,
            rotary_scale=position.scale if isinstance(position, Rotary) else 1.0,
            window=self.window,
            slopes=torch.tensor(position.slopes) if isinstance(position, Alibi) else None,
            coarse_slopes=isinstance(position, Alibi) and position.coarse,
            softcap=self.softcap,
            norm=None if self.norm is None else self.norm.computes,
            causal=self.causal,
            across=self.across,
            farthest=position.farthest if isinstance(position, Relative) else 0,
        )

    def plane_frequencies(self) -> Tensor:
        """Give [P] frequency of every plane in the order of `head_order`, 0 for planes that do not turn."""
        frequencies = torch.zeros(self.head_dim // 2, dtype=torch.float64)
        if isinstance(self.position, Rotary):
            turning = torch.tensor(self.position.inv_freq, dtype=torch.float64)
            frequencies[: len(turning)] = turning
        return frequencies

    def head_order(self) -> Tensor:
        """Give [d] positions of a head's numbers such that plane p is (p, p + d/2); identity where they are so."""
        half = len(self.position.inv_freq) if isinstance(self.position, Rotary) else 0
        order = torch.arange(self.head_dim)
        if not half:
            return order
        turning, rest = order[: 2 * half], order[2 * half :]
        first, second = (turning[::2], turning[1::2]) if self._interleaved else (turning[:half], turning[half:])
        middle = len(rest) // 2
        return torch.cat([first, rest[:middle], second, rest[middle:]])
