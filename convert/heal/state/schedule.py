"""How many steps a run has and how fast each learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


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

    def optimizer(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
        """Make what learns by this schedule; one pass over the numbers where torch has that for their device."""
        trained = [*parameters]
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
        return torch.optim.AdamW(
            trained, lr=self.rate, weight_decay=weight_decay, betas=(0.9, 0.95), fused=fused or None
        )

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Give an optimizer the rate of a step, which is handed back."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def at(self, step: int) -> float:
        """Give the rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        return self.rate * (self.steps - step) / (self.steps - self.warmup + 1)
