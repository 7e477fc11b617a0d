"""What a target is: the class that holds the result, and how config and tensors are written for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.geometry import Geometry

Config = dict[str, Any]


def _same(weights: AttentionWeights, layer: int, config: Config) -> AttentionWeights:
    return weights


@dataclass(frozen=True)
class Target:
    """One home for converted checkpoints.

    Attributes:
        name: for messages and the card.
        layout: "native" (a class that transformers ships) or "custom" (one of our modeling files).
        sources: model types it can hold; empty: every architecture that has a key for K/V heads.
        becomes: the result's model_type, None: the source's own.
        configure: (config.json of the source, sizes, groups) -> the keys that change.
        holds: (heads, groups) -> whether the class can have that many K/V heads.
        classes: class name in `architectures` -> class name of the result; empty: the same class.
        adapt: last change to a layer's weights, for what the class does differently.
        removed: config keys the result's class does not know.
    """

    name: str
    layout: Literal["native", "custom"]
    sources: frozenset[str]
    becomes: str | None
    configure: Callable[[Config, Geometry, int], Config]
    holds: Callable[[int, int], bool]
    classes: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[AttentionWeights, int, Config], AttentionWeights] = _same
    removed: frozenset[str] = frozenset()
