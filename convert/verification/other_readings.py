"""Other readings of a layer's attention than its family's facts: the one that the class agrees with names the fault.

Only asked where the class disagrees with the facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from convert_attn.convert.archs.block_facts import Added, Rotary
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.planning.plan import Plan


def other_readings(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Give each as a sentence's end and a plan whose geometry says so."""
    sizes = plan.geometry
    for words, other in _others(sizes):
        yield words, _with(plan, other)
    config = typed_config(plan.source.config, plan.source.origin.name)
    for key, value in config.to_dict().items():
        if "softcap" in key and isinstance(value, float) and not sizes.softcapped:
            yield (
                f"its scores are capped at {key} {value:g}",
                _with(plan, replace(sizes, softcaps=(value,) * sizes.num_layers)),
            )


def _others(sizes: Geometry) -> Iterator[tuple[str, Geometry]]:
    if isinstance(sizes.position, Rotary):
        yield "queries and keys do not turn", replace(sizes, position=Added("none"), positions=())
        yield "every layer turns", replace(sizes, positions=())
        there = "(p, p + half)" if sizes.position.interleaved else "(2 p, 2 p + 1)"
        yield f"rotary planes are {there}", _repaired(sizes)
    if sizes.softcapped:
        yield "scores are not capped", replace(sizes, softcaps=())
    if sizes.norm is not None:
        yield "there is no norm on queries and keys", replace(sizes, norm=None)
    if sizes.sinks:
        yield "there are no sinks", replace(sizes, sinks=False)
    if any(sizes.windows):
        yield "there is no window", replace(sizes, windows=())
    yield "scores are multiplied by head_dim^-1/2", replace(sizes, scales=())
    yield "scores are multiplied by one", replace(sizes, scales=(1.0,) * sizes.num_layers)


def _repaired(sizes: Geometry) -> Geometry:
    """With rotary planes of the other kind, in every layer that turns."""
    flipped = [
        replace(position, interleaved=not position.interleaved) if isinstance(position, Rotary) else position
        for position in (sizes.position, *sizes.positions)
    ]
    return replace(sizes, position=flipped[0], positions=tuple(flipped[1:]))


def _with(plan: Plan, sizes: Geometry) -> Plan:
    return replace(plan, blueprint=replace(plan.blueprint, sizes=sizes))
