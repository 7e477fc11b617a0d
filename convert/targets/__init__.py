"""Targets: every module here that defines TARGET is one."""

from __future__ import annotations

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.discovery import discover
from convert_attn.convert.errors import UsageError
from convert_attn.convert.targets.base import Target


def targets() -> list[Target]:
    """All targets, native ones first."""
    return sorted(discover(__name__, "TARGET", Target), key=lambda target: (target.layout != "native", target.name))


def fitting(arch: Architecture, heads: int, groups: int) -> list[Target]:
    """The targets that can hold `groups` K/V heads of this architecture, native ones first."""

    def accepts(target: Target) -> bool:
        if target.sources:
            return arch.model_type in target.sources
        own_classes = {t.becomes for t in targets() if t.becomes}
        return arch.config_kv_heads is not None and arch.model_type not in own_classes

    return [target for target in targets() if accepts(target) and target.holds(heads, groups)]


def choose(arch: Architecture, heads: int, groups: int, layout: str) -> Target:
    """The target for a request.

    Args:
        layout: "auto" (native where one fits), "native" or "custom".

    Raises:
        UsageError: nothing fits.
    """
    candidates = fitting(arch, heads, groups)
    for target in candidates:
        if layout in ("auto", target.layout):
            return target
    have = ", ".join(f"{target.name} ({target.layout})" for target in candidates) or "none"
    raise UsageError(
        f"no {layout} class holds {arch.model_type} with {groups} of {heads} K/V heads (what fits: {have}); "
        "choose another --layout or number of groups"
    )
