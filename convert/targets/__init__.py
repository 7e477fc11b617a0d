"""Targets: every module here that defines TARGET is one."""

from __future__ import annotations

from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads, numbers_of
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.discovery import discover
from convert_attn.convert.errors import UsageError
from convert_attn.convert.targets.base import Target


def targets() -> list[Target]:
    """Give all targets, native ones first."""
    return sorted(discover(__name__, "TARGET", Target), key=lambda target: (target.layout != "native", target.name))


def plain_targets() -> list[Target]:
    """Give the targets that are no experiments."""
    return [target for target in targets() if target.experiment is None]


def result_arch(target: Target, arch: Architecture) -> Architecture:
    """Give the facts of the class that a target makes of a family's: the family's own where the class stays."""
    return arch if target.becomes is None else architectures().get(target.becomes, arch)


def _accepts(target: Target, arch: Architecture, own_classes: frozenset[str]) -> bool:
    """Whether a target takes this architecture in some form."""
    if target.sources:
        return arch.model_type in target.sources and target.takes(arch)
    return arch.config_kv_heads is not None and arch.model_type not in own_classes


def _own_classes() -> frozenset[str]:
    """What only comes out of a conversion, as a class that some target makes."""
    return frozenset(target.becomes for target in targets() if target.becomes)


def fitting(arch: Architecture, sizes: Geometry, form: Form) -> list[Target]:
    """Give the targets that can hold this architecture in this form, native ones first."""
    return [target for target in _of_kind(arch, form) if form.varied <= target.by_layer and target.holds(sizes, form)]


def _of_kind(arch: Architecture, form: Form) -> list[Target]:
    """The targets for this architecture with this kind of cache, of whatever sizes."""
    own = _own_classes()
    return [target for target in plain_targets() if isinstance(form, target.form) and _accepts(target, arch, own)]


def latent_targets(arch: Architecture) -> list[Target]:
    """Give the classes with a latent that take this architecture, of whatever sizes."""
    own = _own_classes()
    return [target for target in plain_targets() if target.form is LatentCache and _accepts(target, arch, own)]


def experiments(arch: Architecture) -> list[Target]:
    """Give the experimental targets that take this architecture."""
    own = _own_classes()
    return [target for target in targets() if target.experiment is not None and _accepts(target, arch, own)]


def choose_experiment(arch: Architecture, sizes: Geometry, to: str, layout: str) -> Target:
    """Give the experimental target that a value of `--to` means.

    Raises:
        UsageError: there is none for this family, these sizes, or this layout.
    """
    kind = [(target, one) for target in targets() if (one := target.experiment) is not None and one.to == to]
    asked, known = kind[0][1].asked, experiments(arch)
    found, experiment = next(((target, one) for target, one in kind if target in known), (None, None))
    if found is None or experiment is None:
        taken = ", ".join(sorted({source for target, _ in kind for source in target.sources}))
        raise UsageError(f"{asked} is experimental and has no class for {arch.model_type}; there is one for {taken}")
    if layout not in ("auto", found.layout):
        raise UsageError(f"{asked} needs our class, {found.becomes}: drop --layout {layout}")
    reason = experiment.refused(sizes)
    if reason:
        raise UsageError(f"{asked} cannot hold this {arch.model_type}: {reason}")
    return found


def convertible() -> list[str]:
    """Give the model types that some target holds, sorted: what a user may give."""
    known, own = targets(), _own_classes()
    return sorted(
        arch.model_type for arch in architectures().values() if any(_accepts(target, arch, own) for target in known)
    )


def choose(arch: Architecture, sizes: Geometry, form: Form, layout: str) -> Target:
    """Give the target for a request.

    Args:
        layout: "native", "custom", or "auto": for shared heads native where one fits, for a latent custom (the class
            that works on the latent itself; those of transformers expand it at every step).

    Raises:
        UsageError: nothing fits.
    """
    candidates = fitting(arch, sizes, form)
    if layout == "auto" and isinstance(form, LatentCache):
        candidates.sort(key=lambda target: target.layout != "custom")
    for target in candidates:
        if layout in ("auto", target.layout):
            return target
    _check_alike(arch, form, layout)
    if isinstance(form, LatentCache) and not latent_targets(arch):
        raise UsageError(
            f"no class with a latent has the blocks of {arch.model_type} (its norms, or its MLP): use --to gqa or mqa"
        )
    have = ", ".join(f"{target.name} ({target.layout})" for target in candidates) or "none"
    groups = numbers_of(form.groups) if isinstance(form, SharedHeads) else ""
    what = f"{groups} of {sizes.num_heads} K/V heads" if groups else "this latent cache"
    kind = "" if layout == "auto" else f"{layout} "
    raise UsageError(
        f"no {kind}class holds {arch.model_type} with {what} (what fits: {have}); choose another --layout or size"
    )


def _check_alike(arch: Architecture, form: Form, layout: str) -> None:
    """Sizes that differ by layer are for a class that has a number for each.

    Raises:
        UsageError: none of this layout has.
    """
    known = _of_kind(arch, form)
    asked = [target for target in known if layout in ("auto", target.layout)]
    if not asked or any(form.varied <= target.by_layer for target in asked):
        return
    option = min(form.varied - frozenset().union(*(target.by_layer for target in asked)) or form.varied)
    classes = " and ".join(target.becomes or f"the class of {arch.model_type}" for target in asked)
    others = [target for target in known if form.varied <= target.by_layer]
    instead = "".join(f", or --layout {target.layout}, whose {target.becomes} takes one for each" for target in others)
    flag = "--" + option.replace("_", "-")
    raise UsageError(
        f"{flag} {numbers_of(form.numbers(option))} differs by layer, and {classes} takes one number for all layers: "
        f"give one ({flag} {max(form.numbers(option))}){instead}"
    )
