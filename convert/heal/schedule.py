"""How many steps a run has and how fast each learns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then linear decay to zero ("Straight to Zero", arXiv:2502.15938).

    Attributes:
        steps: in all.
        warmup: how many of them the rate rises for.
        rate: the highest.
    """

    steps: int
    warmup: int
    rate: float

    @classmethod
    def of(cls, steps: int, share: float, rate: float) -> Schedule:
        """With a share of the steps for the warm-up."""
        return cls(steps, min(max(1, round(share * steps)), steps), rate)

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        return self.rate * (self.steps - step) / (self.steps - self.warmup + 1)
