"""A plan whose result a serving engine takes: sizes and layout are chosen by its rules, or the request is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.archs.geometry import Geometry, geometry
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.errors import UsageError
from convert_attn.convert.inspection.serving import named, takes, verdict
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.plan import Plan, make_plan
from convert_attn.convert.planning.request import Request
from convert_attn.convert.planning.sizes import choose_latent, common_heads, divisors
from convert_attn.convert.publish.result_config import result_config
from convert_attn.convert.serving_rules import Engine, KernelSizes
from convert_attn.convert.targets import plain_targets
from convert_attn.convert.targets.base import Target


def plan_for(source: Source, request: Request) -> Plan:
    """Give the plan of a request; where it names an engine, one whose result the engine loads and keeps small.

    The sizes and the layout that were chosen are part of the plan's request, as if they had been typed.

    Raises:
        UsageError: what was asked for cannot be had, or not in a form that the engine takes.
        ConvertAttnError: the checkpoint is broken.
    """
    if request.engine is None:
        return make_plan(source, request)
    engine = named(request.engine)
    _check_latent(source, request, engine)
    if request.to == "mla" and not _keeps_latents(engine):
        request = _smallest(source, request)  # whatever sizes were typed: the engine is what is in the way
    elif request.to == "mla" and engine.latents:
        request = _sized(source, request, engine)
    plan = make_plan(source, request)
    reason = _refusal(engine, plan)
    if reason is not None and request.layout == "auto" and plan.target.layout != "native":
        try:
            native = make_plan(source, replace(request, layout="native"))
        except UsageError:  # no native class holds it: the reason stays
            pass
        else:
            plan, reason = native, _refusal(engine, native)
    if reason is not None:
        raise UsageError(f"--for {engine.option}: {reason}")
    return plan


def _check_latent(source: Source, request: Request, engine: Engine) -> None:
    """Refuse a latent of a model that no class at all holds one of.

    Raises:
        UsageError: saying why.
    """
    if request.to != "mla":
        return
    try:
        make_plan(source, replace(_smallest(source, request), layout="auto", latent_norm=False))
    except UsageError as error:
        raise UsageError(f"--for {engine.option}: there is nothing for {engine.name} to serve: {error}") from None


def _keeps_latents(engine: Engine) -> bool:
    """Whether an engine keeps any latent that a conversion makes."""
    made = {target.becomes for target in plain_targets() if target.form is LatentCache}
    return any(rule.kept and rule.types & made for rule in engine.rules)


def _smallest(source: Source, request: Request) -> Request:
    """The request with the smallest latent, which every model can have."""
    rotary = geometry(architecture(source.config["model_type"]), source.config, source.origin.name).turns
    return replace(request, rank=(1,), rope_dim=(2,) if rotary else None, cache_ratio=None)


def _refusal(engine: Engine, plan: Plan) -> str | None:
    """Why an engine does not take a plan's result and what to do instead; None where it does."""
    config = result_config(plan)
    rule = verdict(engine, config)
    if rule is None:
        return f"there is no rule for what {engine.name} makes of {plan.result_type}"
    if takes(engine, config):
        return None
    if rule.kept:
        return (
            f"{engine.name} has no class of its own for {plan.result_type} ({rule.change}); without --for it is made "
            f"all the same{_or_instead(engine, plan.source, plan.request)}"
        )
    if rule.loads == "not known":
        return f"it is not known whether {engine.name} serves {plan.result_type} with a small cache: {rule.change}"
    return f"{engine.name} does not serve {plan.result_type} with a small cache: {rule.change}"


def _or_instead(engine: Engine, source: Source, request: Request) -> str:
    """ ", or ..." with another target that the engine takes, "" where there is none."""
    arch = architecture(source.config["model_type"])
    smaller = divisors(common_heads(geometry(arch, source.config, source.origin.name)))[:-1]
    grouped = Request(to="gqa", groups=tuple(smaller[-1:]) or None, dtype=request.dtype, output=request.output)
    for other in [grouped, replace(grouped, to="mqa", groups=None)] if smaller else []:
        try:
            plan = make_plan(source, other)
        except UsageError:
            continue
        if takes(engine, result_config(plan)):
            return f"; --to {other.to} works, which ends in {plan.result_type}"
    return ""


def _sized(source: Source, request: Request, engine: Engine) -> Request:
    """The request with a native latent of sizes that the engine's kernels take.

    Raises:
        UsageError: the model cannot have any of them, or other ones were asked for.
    """
    arch = architecture(source.config["model_type"])
    sizes = geometry(arch, source.config, source.origin.name)
    if request.rank is not None or request.cache_ratio is not None:
        choose_latent(request, arch, sizes)  # what is wrong with any engine
    target = _native_latent(arch)
    reason = _unheld(request, arch, target, sizes)
    if target is not None and reason is None:
        for latent in _as_asked(request, engine, target):
            reason = _misfit(request, latent, target, sizes)
            if reason is None:
                rank, rope_dim = latent.rank - target.extra_latent, latent.rope_dim
                return replace(request, rank=(rank,), rope_dim=(rope_dim,), cache_ratio=None, layout="native")
    raise UsageError(
        f"--for {engine.option}: {engine.name} cannot keep a latent of this model, as {reason}"
        f"{_elsewhere(engine, arch, sizes)}{_or_instead(engine, source, request)}"
    )


def _elsewhere(engine: Engine, arch: Architecture, sizes: Geometry) -> str:
    """A clause with the machines on which the engine keeps a latent of the model, "" where there are none."""
    others = (other for other in engine.options().values() if other.option != engine.option)
    fit = [other.option for other in others if latent_forms(other, arch, sizes)]
    return "".join(f"; --for {option} works" for option in fit)


def latent_forms(engine: Engine, arch: Architecture, sizes: Geometry) -> list[LatentCache]:
    """Give the latents that a model can have of those that an engine's kernels take; none where they take any."""
    request, target = Request(to="mla"), _native_latent(arch)
    if target is None or _unheld(request, arch, target, sizes) is not None:
        return []
    fit = (latent for latent in engine.latents if _misfit(request, latent, target, sizes) is None)
    return [LatentCache.of(one.rank - target.extra_latent, one.rope_dim, sizes.num_layers) for one in fit]


def _native_latent(arch: Architecture) -> Target | None:
    """The class with a latent that engines ship too."""
    fit = (
        t for t in plain_targets() if t.form is LatentCache and t.layout == "native" and arch.model_type in t.sources
    )
    return next(fit, None)


def _unheld(request: Request, arch: Architecture, target: Target | None, sizes: Geometry) -> str | None:
    """Why no native class holds the model's attention, whatever the latent's size."""
    if target is None:
        return f"no class that it ships holds a latent of {arch.model_type}"
    if request.layout == "custom":
        return "it keeps none in our own class: drop --layout custom"
    if request.latent_norm:
        return "it ships no class that has a --latent-norm and nothing in its place: drop that"
    if target.holds(sizes, LatentCache.of(1, 2, sizes.num_layers)):
        return None
    if sizes.window is not None:
        return f"{target.name} has no sliding window, and this model's layers see {sizes.window} tokens back"
    return f"{target.name} has plain rotary frequencies, and this model's are of type '{sizes.rope_type}'"


def _as_asked(request: Request, engine: Engine, target: Target) -> list[KernelSizes]:
    """The sizes that agree with those that were typed.

    Raises:
        UsageError: none do.
    """
    typed = {latent: (latent.rank - target.extra_latent, latent.rope_dim) for latent in engine.latents}
    asked = (request.rank, request.rope_dim)
    fit = [
        latent
        for latent, given in typed.items()
        if all(numbers is None or set(numbers) == {size} for numbers, size in zip(asked, given, strict=True))
    ]
    if not fit:
        taken = " or ".join(f"--rank {rank} --rope-dim {rope_dim}" for rank, rope_dim in typed.values())
        raise UsageError(
            f"--for {engine.option}: {engine.name}'s kernels take {taken} (its kv_lora_rank is {target.extra_latent} "
            "more than --rank): give one of these, or no sizes"
        )
    return fit


def _misfit(request: Request, latent: KernelSizes, target: Target, sizes: Geometry) -> str | None:
    """Why a model cannot have a latent of these sizes; None where it can."""
    return next(_misfits(request, latent, target, sizes), None)


def _misfits(request: Request, latent: KernelSizes, target: Target, sizes: Geometry) -> Iterator[str]:
    keys, cached = min(sizes.kv_by_layer) * sizes.head_dim, latent.rank + latent.rope_dim
    whole = 2 * keys
    if latent.head_dim not in (None, sizes.head_dim):
        yield f"its kernels take heads of {latent.head_dim}, and this model's are of {sizes.head_dim}"
    if latent.rank - target.extra_latent > sizes.hidden_size:
        yield f"its kernels take a latent of {latent.rank}, and this model's hidden size is {sizes.hidden_size}"
    if latent.rope_dim > keys:
        yield f"its kernels take a rotary key of {latent.rope_dim}, and this model's keys have {keys} numbers"
    if request.cache_ratio is not None and cached > whole * request.cache_ratio + 1e-9:
        yield f"{latent} numbers are more than --cache-ratio {request.cache_ratio:g} of the model's {whole}"
    if request.rank is None and cached >= whole:
        yield f"the {latent} numbers that its kernels take are no less than the {whole} of this model's cache"
