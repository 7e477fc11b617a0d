"""Conversions against each other: which one dominates which."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import torch

from convert_attn.eval.measures.quality import Estimate, ratio

_CLEAR = 2.0  # standard errors


@dataclass(frozen=True, kw_only=True)
class Dominance:
    """One conversion is no worse than another in KL and in cache, and clearly better in one of them.

    Attributes:
        kl_difference: the better one's minus the other's, paired by cluster.
        decode_ratio: time of a decode step of the better one over the other's, each relative to the original in its
            own run, at the longest context and largest batch; None where speed was not measured.
    """

    better: str
    worse: str
    cache_bytes: tuple[float, float]
    kl: tuple[float, float]
    kl_difference: dict[str, float | None]
    decode_ratio: float | None

    def sentence(self) -> str:
        """For the reader."""
        error = self.kl_difference["error"]
        uncertain = "" if error is None else f" (paired difference {self.kl_difference['mean']:.2g} ± {error:.1g})"
        text = (
            f"{self.better} dominates {self.worse}: {self.cache_bytes[0]:,.0f} against {self.cache_bytes[1]:,.0f} "
            f"bytes of cache per token, KL {self.kl[0]:.4g} against {self.kl[1]:.4g} nats per token{uncertain}"
        )
        if self.decode_ratio is None:
            return f"{text}."
        return f"{text}. Its decode step takes {self.decode_ratio:.2f} times as long."


def kl_difference(first: dict[str, Any], second: dict[str, Any]) -> Estimate:
    """KL of the first minus KL of the second in nats per token, paired by document or window.

    Args:
        first, second: `quality` of two conversions of one original on the same text.
    """
    ours, theirs = first["per_cluster"], second["per_cluster"]
    sums = torch.tensor(ours["kl"], dtype=torch.float64) - torch.tensor(theirs["kl"], dtype=torch.float64)
    return ratio(sums, torch.tensor(ours["tokens"], dtype=torch.float64))


def dominances(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every pair in which one conversion dominates the other.

    Args:
        models: `models` of the document; those without quality or cache are left out.
    """
    measured = [model for model in models if model["quality"] and model["cache"]]
    found = []
    for first, second in permutations(measured, 2):
        difference = kl_difference(first["quality"], second["quality"])
        bytes_ = tuple(float(model["cache"]["bytes_per_token"]) for model in (first, second))
        clearly = difference.error is not None and difference.mean < -_CLEAR * difference.error
        if bytes_[0] <= bytes_[1] and difference.mean <= 0 and (bytes_[0] < bytes_[1] or clearly):
            kl = (first["quality"]["kl"]["mean"], second["quality"]["kl"]["mean"])
            one = Dominance(
                better=first["name"],
                worse=second["name"],
                cache_bytes=(bytes_[0], bytes_[1]),
                kl=kl,
                kl_difference=difference.as_dict(),
                decode_ratio=_decode(first, second),
            )
            found.append({**asdict(one), "sentence": one.sentence()})
    return found


def headline_row(model: dict[str, Any]) -> dict[str, Any] | None:
    """Give the speed at the longest context and the largest batch that was timed."""
    rows = [row for row in (model["speed"] or {}).get("rows", []) if "skipped" not in row]
    return max(rows, key=lambda row: (row["context"], row["batch_size"]), default=None)


def _decode(first: dict[str, Any], second: dict[str, Any]) -> float | None:
    ours, theirs = headline_row(first), headline_row(second)
    if ours is None or theirs is None:
        return None
    return float(theirs["decode"]["speedup"]["median"] / ours["decode"]["speedup"]["median"])
