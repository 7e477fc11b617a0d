"""What one block's attention is: sizes, scale, and how it knows where a token stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.weights.functional import Rule


@dataclass(frozen=True)
class Added:
    """Positions are added to the model's input, or there are none: attention itself knows of no place.

    Attributes:
        kind: as `inspect` prints it.
    """

    kind: str = "learned"


@dataclass(frozen=True)
class Rotary:
    """Queries and keys turn with the position (Su et al., arXiv:2104.09864).

    Attributes:
        inv_freq: frequencies of the planes in radians per token; with partial rotary they turn the first
            2 * len(inv_freq) of the head's numbers.
        formula: transformers' name for how they come about, "default" for the plain one.
        scale: what the turned numbers of queries and keys are multiplied by, besides.
    """

    inv_freq: tuple[float, ...]
    formula: str = "default"
    scale: float = 1.0
    kind: str = "rope"


@dataclass(frozen=True)
class Alibi:
    """Scores fall with the distance, at a slope of each query head's own (Press et al., arXiv:2108.12409).

    Attributes:
        slopes: [H], per token of distance.
    """

    slopes: tuple[float, ...]
    kind: str = "alibi"


Position = Added | Rotary | Alibi


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Give the slopes of the paper for H heads: powers of 2^(-8 / H), for other numbers those of two powers of two."""
    whole = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (n + 1) / whole) for n in range(whole)]
    between = [2 ** (-4 * (2 * n + 1) / whole) for n in range(heads - whole)]
    return tuple(first + between)


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """One block's attention, as the class that config.json names has it.

    Attributes:
        scale: what scores are multiplied by.
        window: how many tokens back a token sees, itself included; None: all.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    scale: float
    position: Position
    window: int | None = None

    @property
    def turns(self) -> bool:
        """Whether queries and keys turn with the position."""
        return isinstance(self.position, Rotary)

    @property
    def fixed_order(self) -> bool:
        """Whether a query head has something that does not travel with it: its number in the class counts."""
        return isinstance(self.position, Alibi)

    def rule(self) -> Rule:
        """How scores become probabilities."""
        position = self.position
        return Rule(
            scale=self.scale,
            inv_freq=self.plane_frequencies() if isinstance(position, Rotary) else None,
            rotary_scale=position.scale if isinstance(position, Rotary) else 1.0,
            window=self.window,
            slopes=torch.tensor(position.slopes) if isinstance(position, Alibi) else None,
        )

    def plane_frequencies(self) -> Tensor:
        """[P] frequency of every plane in the order of `head_order`, 0 for planes that do not turn."""
        frequencies = torch.zeros(self.head_dim // 2, dtype=torch.float64)
        if isinstance(self.position, Rotary):
            turning = torch.tensor(self.position.inv_freq, dtype=torch.float64)
            frequencies[: len(turning)] = turning
        return frequencies

    def head_order(self) -> Tensor:
        """[d] positions of a head's numbers such that plane p is (p, p + d/2); identity for full rotary."""
        half = len(self.position.inv_freq) if isinstance(self.position, Rotary) else 0
        order = torch.arange(self.head_dim)
        if not half:
            return order
        first, second, rest = order[:half], order[half : 2 * half], order[2 * half :]
        middle = len(rest) // 2
        return torch.cat([first, rest[:middle], second, rest[middle:]])
