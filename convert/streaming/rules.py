"""How the scores of a layer become probabilities, with what of that is stored among the weights."""

from __future__ import annotations

from dataclasses import replace

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.weights.functional import Rule


def layer_rule(source: Source, arch: Architecture, sizes: Geometry, layer: int) -> Rule:
    """Give a layer's rule; a table of what scores gain is its own, or the first layer's where it has none."""
    rule, table = sizes.block(layer).rule(), arch.at(layer).table
    if not table:
        return rule
    named = (f"{source.names.base}{arch.stem(site)}{table}.weight" for site in (layer, 0))
    stored = next(name for name in named if source.names.stored(name))
    return replace(rule, table=source.names.read(stored, source.weights.read).float().T)
