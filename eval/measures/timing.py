"""Timing of calls that take turns, so that what else the computer does falls on all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SLOW_SECONDS = 2.0  # calls that take longer are repeated SLOW_REPEATS times only
SLOW_REPEATS = 3


@dataclass(frozen=True)
class Timed:
    """A call to time, and what brings back the state it found; the latter is not timed."""

    call: Callable[[], object]
    reset: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Milliseconds of repeated calls: median, quartiles and the fastest."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    fastest_ms: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """From the seconds of every call."""
        times = 1e3 * torch.tensor(seconds, dtype=torch.float64)
        lower, median, upper = torch.quantile(times, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        return cls(
            median_ms=median,
            lower_quartile_ms=lower,
            upper_quartile_ms=upper,
            fastest_ms=times.min().item(),
            repeats=len(seconds),
        )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(timed: Timed, device: torch.device) -> float:
    """Seconds of one call, until the device is done with it."""
    _wait(device)
    begin = time.perf_counter()
    timed.call()
    _wait(device)
    seconds = time.perf_counter() - begin
    timed.reset()
    return seconds


def _repeats(timed: Timed, device: torch.device, repeats: int) -> int:
    """Warm up, and see how often this call can be afforded."""
    if clock(timed, device) > SLOW_SECONDS and clock(timed, device) > SLOW_SECONDS:
        return min(repeats, SLOW_REPEATS)
    clock(timed, device)
    return repeats


def take_turns(calls: Mapping[str, Timed], repeats: int, device: torch.device) -> dict[str, Spread]:
    """Time all calls in rounds, each round in an order of its own; two calls of each come first as warm-up.

    Args:
        repeats: rounds; slow calls take part in SLOW_REPEATS of them, spread evenly.
    """
    own = {name: _repeats(timed, device, repeats) for name, timed in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for turn in range(repeats):
        for name in order.sample(list(calls), len(calls)):
            if turn * own[name] // repeats != (turn - 1) * own[name] // repeats:
                seconds[name].append(clock(calls[name], device))
    return {name: Spread.of(times) for name, times in seconds.items()}
