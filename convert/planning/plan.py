"""The whole conversion decided and checked from config and headers, before a single weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads, span
from convert_attn.convert.archs.class_reading import class_biases, facts_of
from convert_attn.convert.archs.geometry import Geometry, geometry
from convert_attn.convert.checkpoint.names import check_names_of_blocks
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import UsageError
from convert_attn.convert.methods import DEFAULT, methods
from convert_attn.convert.methods.base import Method
from convert_attn.convert.planning.calibration_text import calibration_text
from convert_attn.convert.planning.class_config import class_config
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.outputs import OutputTensor, result_tensors
from convert_attn.convert.planning.own_tensors import check_attention
from convert_attn.convert.planning.request import DTYPE_OPTIONS, EXPERIMENTS, Request, To
from convert_attn.convert.planning.sizes import choose_form
from convert_attn.convert.stored_numbers import DTYPES
from convert_attn.convert.targets import choose, choose_experiment, fitting, result_arch
from convert_attn.convert.targets.base import Blueprint, Target


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything the run needs to know.

    Attributes:
        blueprint: what the target is told.
        outputs: every tensor to be written.
        dropped: tensors of the source that no class reads.
        output: the folder to make.
        text: what layers are fitted on, as `calibration_windows` takes it; None: from weights alone.
        warnings: sentences for the user, without their full stop.
    """

    request: Request
    source: Source
    blueprint: Blueprint
    method: Method
    target: Target
    outputs: tuple[OutputTensor, ...]
    dropped: tuple[str, ...]
    output: Path
    text: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def arch(self) -> Architecture:
        """The source's facts."""
        return self.blueprint.arch

    @property
    def geometry(self) -> Geometry:
        """The source's sizes."""
        return self.blueprint.sizes

    @property
    def form(self) -> Form:
        """What the cache becomes."""
        return self.blueprint.form

    @property
    def result_type(self) -> str:
        """The result's model_type."""
        return self.target.becomes or self.arch.model_type

    @property
    def experimental(self) -> str:
        """What an experimental target makes of the model, "" where the target is none."""
        experiment = self.target.experiment
        return "" if experiment is None else experiment.told(self.blueprint)

    @property
    def most_tokens(self) -> int | None:
        """Tokens that the cache holds, however many there were; None: all."""
        experiment = self.target.experiment
        return None if experiment is None else experiment.tokens(self.blueprint)

    @property
    def label(self) -> str:
        """The result's attention in a word."""
        experiment = self.target.experiment
        return self.form.label(self.geometry.num_heads) if experiment is None else experiment.label(self.blueprint)

    @property
    def unchanged(self) -> bool:
        """As many groups as the source has: every tensor is copied."""
        return self.form == SharedHeads(self.geometry.kv_by_layer)

    @property
    def balanced(self) -> bool:
        """Whether sizes are evened out by what changes nothing else."""
        return not self.unchanged and not self.method.literal

    @property
    def refit(self) -> bool:
        """Whether the attention is solved anew on calibration text."""
        asked = self.request.refit
        return self.text is not None and bool(self.method.refit if asked is None else asked)

    @property
    def refit_mlp(self) -> bool:
        """Whether the projections that end the MLPs are solved anew too."""
        return self.refit and self.request.refit == "mlp"

    @property
    def cache_dtype(self) -> str:
        """The dtype of the result's attention projections, which is the cache's."""
        first = self.source.names.stored(self.parameter(0, f"{self.arch.output}.weight"))[0]
        return DTYPE_OPTIONS.get(self.request.dtype, self.source.weights.infos[first].dtype)

    @property
    def run_dtypes(self) -> set[torch.dtype]:
        """The dtype that the result is stored in, and that which config.json names and loaders go by."""
        typed = typed_config(self.source.whole, self.source.origin.name)
        named = str(typed.dtype if self.request.dtype == "auto" else self.request.dtype).removeprefix("torch.")
        stored = DTYPES[self.cache_dtype]
        return {stored, DTYPES.get(DTYPE_OPTIONS.get(named, ""), stored)}

    @property
    def epsilon(self) -> float:
        """The spacing, relative, of the coarsest numbers that the result is run in."""
        return max(torch.finfo(dtype).eps for dtype in self.run_dtypes)

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """KV cache in bytes per token, before and after, of an encoder-decoder of both sides; none of an encoder."""
        if not self.geometry.causal:
            return 0, 0
        sizes, itemsize = self.geometry, DTYPES[self.cache_dtype].itemsize
        after = self.form.cache_numbers(sizes) + sizes.num_layers * self.target.extra_latent
        facts = 0 if self.target.experiment is None else self.target.experiment.fact_bytes(self.form)
        return SharedHeads(sizes.kv_by_layer).cache_numbers(sizes) * itemsize, after * itemsize + facts

    @property
    def cached_of(self) -> str:
        """What `cache_bytes` are the bytes of."""
        one = self.geometry.cached_of
        return one if one == "token" else f"{one}, together"

    @property
    def parameters(self) -> tuple[int, int]:
        """How many numbers the weights hold, before and after."""
        before = sum(math.prod(info.shape) for info in self.source.weights.infos.values())
        return before, sum(math.prod(output.info.shape) for output in self.outputs)

    def parameter(self, layer: int, local: str) -> str:
        """Give the name in the source's class of what is called `local` below a block."""
        return self.source.names.base + self.arch.stem(layer) + local

    def ends_mlp(self, output: OutputTensor) -> bool:
        """Tell whether a tensor of the result is the projection that ends the MLP of a block that reads text."""
        ends = self.arch.mlp_output is not None and output.local.rpartition(".")[0] == self.arch.mlp_output
        return ends and output.layer not in self.geometry.seeing


def choose_method(name: str, to: To) -> Method:
    """Give the method of a name.

    Raises:
        UsageError: not known, or not for this target.
    """
    known = methods()
    if name == DEFAULT and to in EXPERIMENTS:
        return next(method for method in known.values() if to in method.targets)
    if name not in known:
        raise UsageError(f"method '{name}' is not known; choose one of {', '.join(known)}")
    if to not in known[name].targets:
        raise UsageError(f"method '{name}' does not serve --to {to}; see `convert-attn methods`")
    return known[name]


def default_output(source: Source, request: Request, form: Form) -> Path:
    """./<name>-gqa4 (-gqa2-4 where layers differ), ./<name>-mqa, ./<name>-mla256, or by an experiment's name."""
    to = request.to
    if to in EXPERIMENTS:
        return Path(f"{source.origin.short_name}-{to}{request.slots or ''}")
    size = "" if to == "mqa" else form.rank if isinstance(form, LatentCache) else span(form.groups).replace("..", "-")
    slots = "" if request.slots is None else f"-slots{request.slots}"
    return Path(f"{source.origin.short_name}-{to}{size}{slots}")


def make_plan(source: Source, request: Request) -> Plan:
    """Check a request against a checkpoint, from its config and headers only.

    Raises:
        UsageError: what was asked for cannot be had.
        ConvertAttnError: the checkpoint is broken.
    """
    if request.dtype not in ("auto", *DTYPE_OPTIONS):
        raise UsageError(f"dtype '{request.dtype}' is not known; choose one of auto, {', '.join(DTYPE_OPTIONS)}")
    if request.jobs < 1:
        raise UsageError(f"--jobs {request.jobs} converts no layer: give 1 or more")
    arch = architecture(source.config["model_type"]).of(typed_config(source.config, source.origin.name))
    method = choose_method(request.method, request.to)
    if request.refit == "mlp" and arch.cross is not None:
        raise UsageError(
            f"--refit mlp solves what follows a block's one attention, and {arch.model_type} has two; give --refit"
        )
    if request.refit == "mlp" and arch.mlp_output is None:
        raise UsageError(
            f"--refit mlp solves the projection that ends an MLP, and no single one does in {arch.model_type}: its MLP "
            "is of experts, or has a norm behind it; give --refit"
        )
    text, unread = calibration_text(request, method, source)
    sizes = geometry(arch, source.config, source.origin.name)
    form = choose_form(request, arch, sizes)
    target = _target(source, arch, sizes, form, request)
    result_classes(target, source)
    check_names_of_blocks(arch, source)
    facts = facts_of(arch, source.config, source.origin.name)
    check_attention(arch, facts, source)
    blueprint = Blueprint(
        arch=arch,
        result_arch=result_arch(target, arch),
        config=source.config,
        sizes=sizes,
        form=form,
        biases=class_biases(arch, facts),
        inv_freq=form.no_planes if isinstance(form, LatentCache) else (),
        slots=request.slots,
    )
    _check_key_bias(blueprint)
    outputs, dropped = result_tensors(source, blueprint, target, request.dtype)
    plan = Plan(
        request=request,
        source=source,
        blueprint=blueprint,
        method=method,
        target=target,
        outputs=outputs,
        dropped=dropped,
        output=request.output or default_output(source, request, form),
        text=text,
    )
    unread = () if plan.unchanged else unread
    reads = not plan.unchanged or request.slots is not None  # how slots are merged is chosen on it
    return replace(plan, text=text if reads else None, warnings=_warnings(plan) + unread)


def _check_key_bias(blueprint: Blueprint) -> None:
    """Refuse a latent of keys whose bias counts: elsewhere it adds the same to all scores of a query.

    Raises:
        UsageError: see above.
    """
    sizes = blueprint.sizes
    if isinstance(blueprint.form, LatentCache) and "k" in blueprint.biases and (sizes.norm or sizes.softcapped):
        where = "behind which is a norm" if sizes.norm else "whose scores are capped"
        raise UsageError(
            f"this model has a bias on its keys, {where}, and no class with a latent has one there; use --to gqa or mqa"
        )


def _target(source: Source, arch: Architecture, sizes: Geometry, form: Form, request: Request) -> Target:
    """Give the class of the result.

    Raises:
        UsageError: there is none.
    """
    if request.to not in EXPERIMENTS:
        if source.within is not None:
            return _in_place(source, arch, sizes, form)
        plain = choose(arch, sizes, form, request.layout)
        if request.slots is None:
            return plain
    if source.within is not None:
        raise UsageError(
            f"--to {request.to} is experimental and takes language models alone: that of '{source.origin.name}' is "
            f"inside a {source.whole['model_type']}"
        )
    return choose_experiment(arch, sizes, request.to, request.layout)


def _in_place(source: Source, arch: Architecture, sizes: Geometry, form: Form) -> Target:
    """Give the target for a language model inside a larger one: its own class, which the larger one makes.

    Raises:
        UsageError: that has no such cache.
    """
    found = [target for target in fitting(arch, sizes, form) if target.becomes is None]
    if found:
        return found[0]
    of = f"the language model of '{source.origin.name}' is a {arch.model_type} inside a {source.whole['model_type']}"
    if isinstance(form, LatentCache):
        raise UsageError(
            f"{of}, whose class makes it: it stays in its own class, which has no latent; use --to gqa or --to mqa"
        )
    raise UsageError(
        f"{of}, whose class makes it: it stays in its own class, which has no fewer K/V heads than query heads, or "
        "one number of them for all layers"
    )


def _warnings(plan: Plan) -> tuple[str, ...]:
    """What the user should know of a plan that can be carried out."""
    before, after = plan.cache_bytes
    warnings = plan.source.warnings() + class_config(plan.target, plan.blueprint, plan.source.origin.name)[1]
    if plan.target.experiment is not None:
        return (*warnings, f"{plan.target.experiment.asked} is experimental: {plan.experimental}")
    if plan.geometry.seeing and not plan.unchanged:
        warnings = (*warnings, _unseen(plan.geometry))
    if after <= before:
        return warnings
    return (
        *warnings,
        f"this MLA's cache is larger than the source's: {after:,} bytes per token, {before:,} before; give a smaller "
        "--rank or --rope-dim, or --cache-ratio",
    )


def _unseen(sizes: Geometry) -> str:
    """What is not known of layers that look at images."""
    layers = ", ".join(map(str, sizes.seeing))
    return (
        f"the attention of layer {layers} looks at images alone, and no text goes through it: its heads are shared by "
        "what the weights say, which ruins those of real models, and what that costs is in no measurement here; try "
        "the result on images of yours"
    )


def replan(plan: Plan, form: Form) -> Plan:
    """Give the same plan with other sizes, as the calibration text has shown them to be better."""
    blueprint = replace(plan.blueprint, form=form)
    if isinstance(form, LatentCache):
        blueprint = replace(blueprint, inv_freq=form.no_planes)
    outputs, dropped = result_tensors(plan.source, blueprint, plan.target, plan.request.dtype)
    return replace(plan, blueprint=blueprint, outputs=outputs, dropped=dropped)


def result_classes(target: Target, source: Source) -> list[str]:
    """Give the result's `architectures`.

    Raises:
        UsageError: the source's class has no counterpart in the target.
    """
    classes = source.whole.get("architectures") or []
    if not target.classes:
        return list(classes)
    missing = [name for name in classes if name not in target.classes]
    if missing:
        known = ", ".join(sorted(target.classes))
        raise UsageError(f"class {missing[0]} has no counterpart in {target.name}; it can hold {known}")
    return [target.classes[name] for name in classes]
