"""The whole conversion decided and checked from config and headers, before a single weight is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads
from convert_attn.convert.archs.class_reading import class_biases, facts_of
from convert_attn.convert.archs.geometry import Geometry, geometry
from convert_attn.convert.checkpoint.names import block_prefix
from convert_attn.convert.checkpoint.safetensors_format import DTYPES, FLOATS, TensorInfo
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.class_facts import ClassFacts, typed_config
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.methods import methods
from convert_attn.convert.methods.base import Method
from convert_attn.convert.planning.class_config import class_config
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.request import DTYPE_OPTIONS, Request, To, choose_form
from convert_attn.convert.targets import choose
from convert_attn.convert.targets.base import Blueprint, Target
from convert_attn.convert.text.windows import AUTO, NONE, SAMPLE, check_calibration


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the result.

    Attributes:
        info: name, dtype, shape and shard in the output (the offset is the writer's business).
        origin: "copy" (bytes as they are, or cast), "transpose" (the same numbers in the other layout) or
            "attention" (computed).
        source: the source tensor's name; for "attention" the tensor that decides the dtype.
        layer: the block it belongs to, None outside the blocks.
    """

    info: TensorInfo
    origin: Literal["copy", "transpose", "attention"]
    source: str
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything the run needs to know.

    Attributes:
        blueprint: what the target is told.
        prefix: what block names start with in this checkpoint ("model.", "" for a bare base model).
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
    prefix: str
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
    def unchanged(self) -> bool:
        """As many groups as the source has: every tensor is copied."""
        return self.form == SharedHeads(self.geometry.num_kv_heads)

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
        stored = self.source.weights.infos[f"{self.block(0)}{self.arch.output}.weight"].dtype
        return DTYPE_OPTIONS.get(self.request.dtype, stored)

    @property
    def run_dtypes(self) -> set[torch.dtype]:
        """The dtype that the result is stored in, and that which config.json names and loaders go by."""
        typed = typed_config(self.source.config, self.source.origin.name)
        named = str(typed.dtype if self.request.dtype == "auto" else self.request.dtype).removeprefix("torch.")
        stored = DTYPES[self.cache_dtype]
        return {stored, DTYPES.get(DTYPE_OPTIONS.get(named, ""), stored)}

    @property
    def epsilon(self) -> float:
        """The spacing, relative, of the coarsest numbers that the result is run in."""
        return max(torch.finfo(dtype).eps for dtype in self.run_dtypes)

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """KV cache in bytes per token, before and after."""
        sizes, itemsize = self.geometry, DTYPES[self.cache_dtype].itemsize
        after = self.form.cache_numbers(sizes) + sizes.num_layers * self.target.extra_latent
        return sizes.cache_numbers(sizes.num_kv_heads) * itemsize, after * itemsize

    def block(self, layer: int) -> str:
        """Prefix of a block's tensors."""
        return self.prefix + self.arch.block.format(layer=layer)

    def ends_mlp(self, output: OutputTensor) -> bool:
        """Whether a tensor of the result is the projection that ends a block's MLP."""
        if output.layer is None or self.arch.mlp_output is None:
            return False
        stem = self.block(output.layer) + self.arch.mlp_output
        return output.info.name in (f"{stem}.weight", f"{stem}.bias")


def choose_method(name: str, to: To) -> Method:
    """The method of a name.

    Raises:
        UsageError: not known, or not for this target.
    """
    known = methods()
    if name not in known:
        raise UsageError(f"method '{name}' is not known; choose one of {', '.join(known)}")
    if to not in known[name].targets:
        raise UsageError(f"method '{name}' does not serve --to {to}; see `convert-attn methods`")
    return known[name]


def _calibration_text(request: Request, method: Method, source: Source) -> tuple[str | None, tuple[str, ...]]:
    """The text that layers are fitted on, None for none, and sentences on why there is none.

    Raises:
        UsageError: text that is not there or that nothing reads, or options for it that make sense without.
    """
    asked = NONE if request.calibration is None else request.calibration
    if asked == NONE:
        if request.calibration_tokens is not None or request.refit:
            option = "--refit" if request.refit else "--calibration-tokens"
            raise UsageError(f"{option} needs text: give --calibration auto, FILE, sample or self")
        if method.calibration == "needed":
            raise UsageError(f"method '{method.name}' needs text: give --calibration auto, FILE, sample or self")
        return None, (_FROM_WEIGHTS,) if method.refit else ()
    reads = method.calibration != "none" or bool(request.refit)
    if not reads and asked != AUTO:
        raise UsageError(
            f"method '{method.name}' reads no text: drop --calibration, or add --refit to solve its output "
            "projections on the text"
        )
    if request.calibration_tokens is not None and request.calibration_tokens < 2:
        raise UsageError(
            f"--calibration-tokens is {request.calibration_tokens}, expected at least 2: one token alone has "
            "nothing to attend to"
        )
    if asked != AUTO:
        check_calibration(asked)
        return asked, ()
    if not reads:
        return None, ()
    if source.has_tokenizer:
        return (SAMPLE if source.origin.name.startswith("sample:") else AUTO), ()
    if method.calibration == "needed":
        raise UsageError(f"method '{method.name}' needs text, and '{source.origin.name}' has no tokenizer for it")
    return None, (no_text(f"'{source.origin.name}' has no tokenizer"),)


_FROM_WEIGHTS = (
    "no text (--calibration none): errors are weighed by a guess from the norms alone, which does for small models and "
    "ruins real ones; give --calibration auto or a text like that which the model will see"
)


def no_text(reason: str) -> str:
    """What is to be known where text was wanted and cannot be had."""
    return f"{reason}, so that layers were fitted from the weights alone, which ruins real models: see the measurement"


def _check_attention(arch: Architecture, facts: ClassFacts, prefix: str, source: Source) -> None:
    """The attention tensors of the file are those of the class: all of them, of its shapes, and no others.

    Raises:
        ConvertAttnError: naming the first that is not.
    """
    infos = source.weights.infos
    for layer, module in enumerate(facts.modules):
        block = prefix + arch.block.format(layer=layer)
        expected = facts.attention(layer)
        for path, shape in expected.items():
            _check_tensor(source, prefix + path, shape)
        if arch.norm is not None:
            norm = f"{arch.block.format(layer=layer)}{arch.norm.name}.weight"
            _check_tensor(source, prefix + norm, facts.parameters[norm])
        for name in (name for name in infos if name.startswith(f"{prefix}{module}.")):
            path = name.removeprefix(prefix)
            if path not in expected and path not in facts.buffers and name.removeprefix(block) not in arch.buffers:
                raise ConvertAttnError(
                    f"tensor '{name}' in shard '{infos[name].file}' has no place in {facts.name} with this config: "
                    "transformers would leave it out, so the model is not what its weights say; give a config.json "
                    "that belongs to them, or remove the tensor"
                )


def _check_tensor(source: Source, name: str, shape: tuple[int, ...]) -> None:
    info = source.weights.infos.get(name)
    if info is None:
        raise ConvertAttnError(f"tensor '{name}' is missing from '{source.origin.name}'; download it again")
    if info.shape != shape:
        raise ConvertAttnError(
            f"tensor '{name}' in shard '{info.file}' has shape {list(info.shape)}, expected {list(shape)} "
            "from config.json; the two do not belong together"
        )
    if info.dtype not in FLOATS:
        raise UsageError(
            f"tensor '{name}' has dtype {info.dtype}: quantised weights cannot be converted; "
            "use the original in fp32, fp16 or bf16"
        )


def default_output(source: Source, to: To, form: Form) -> Path:
    """./<name>-gqa4, ./<name>-mqa or ./<name>-mla256."""
    size = {"mqa": "", "gqa": getattr(form, "groups", ""), "mla": getattr(form, "rank", "")}[to]
    return Path(f"{source.origin.short_name}-{to}{size}")


def make_plan(source: Source, request: Request) -> Plan:
    """Check a request against a checkpoint, from its config and headers only.

    Raises:
        UsageError: what was asked for cannot be had.
        ConvertAttnError: the checkpoint is broken.
    """
    if request.dtype not in ("auto", *DTYPE_OPTIONS):
        raise UsageError(f"dtype '{request.dtype}' is not known; choose one of auto, {', '.join(DTYPE_OPTIONS)}")
    arch = architecture(source.config["model_type"])
    method = choose_method(request.method, request.to)
    if request.refit == "mlp" and arch.mlp_output is None:
        raise UsageError(
            f"--refit mlp solves the projection that ends an MLP, and no single one does in {arch.model_type}: its MLP "
            "is of experts, or has a norm behind it; give --refit"
        )
    text, unread = _calibration_text(request, method, source)
    sizes = geometry(arch, source.config, source.origin.name)
    form = choose_form(request, arch, sizes)
    target = choose(arch, sizes, form, request.layout)
    result_classes(target, source)
    prefix = block_prefix(arch, source)
    facts = facts_of(arch, source.config, source.origin.name)
    _check_attention(arch, facts, prefix, source)
    blueprint = Blueprint(
        arch=arch,
        result_arch=architectures().get(target.becomes or arch.model_type, arch),
        config=source.config,
        sizes=sizes,
        form=form,
        biases=class_biases(arch, facts),
        inv_freq=((0.0,) * (form.rope_dim // 2),) * sizes.num_layers if isinstance(form, LatentCache) else (),
    )
    outputs, dropped = _outputs(source, blueprint, target, prefix, request.dtype)
    plan = Plan(
        request=request,
        source=source,
        blueprint=blueprint,
        method=method,
        target=target,
        prefix=prefix,
        outputs=outputs,
        dropped=dropped,
        output=request.output or default_output(source, request.to, form),
        text=text,
    )
    unread = () if plan.unchanged else unread
    return replace(plan, text=None if plan.unchanged else text, warnings=_warnings(plan) + unread)


def _warnings(plan: Plan) -> tuple[str, ...]:
    """What the user should know of a plan that can be carried out."""
    before, after = plan.cache_bytes
    warnings = plan.source.warnings() + class_config(plan.target, plan.blueprint, plan.source.origin.name)[1]
    if after <= before:
        return warnings
    return (
        *warnings,
        f"this MLA's cache is larger than the source's: {after:,} bytes per token, {before:,} before; give a smaller "
        "--rank or --rope-dim, or --cache-ratio",
    )


def replan(plan: Plan, form: Form) -> Plan:
    """The same plan with other sizes, as the calibration text has shown them to be better."""
    blueprint = replace(plan.blueprint, form=form)
    if isinstance(form, LatentCache):
        none_yet = ((0.0,) * (form.rope_dim // 2),) * plan.geometry.num_layers
        blueprint = replace(blueprint, inv_freq=none_yet)
    outputs, dropped = _outputs(plan.source, blueprint, plan.target, plan.prefix, plan.request.dtype)
    return replace(plan, blueprint=blueprint, outputs=outputs, dropped=dropped)


def result_classes(target: Target, source: Source) -> list[str]:
    """The result's `architectures`.

    Raises:
        UsageError: the source's class has no counterpart in the target.
    """
    classes = source.config.get("architectures") or []
    if not target.classes:
        return list(classes)
    missing = [name for name in classes if name not in target.classes]
    if missing:
        known = ", ".join(sorted(target.classes))
        raise UsageError(f"class {missing[0]} has no counterpart in {target.name}; it can hold {known}")
    return [target.classes[name] for name in classes]


def _outputs(
    source: Source, blueprint: Blueprint, target: Target, prefix: str, dtype: str
) -> tuple[tuple[OutputTensor, ...], tuple[str, ...]]:
    """Every tensor of the result, in the source's order, and the names that are dropped."""
    arch, sizes = blueprint.arch, blueprint.sizes
    turned = arch.transposed != blueprint.result_arch.transposed
    copied = blueprint.form == SharedHeads(sizes.num_kv_heads) and not turned
    shapes = [target.shapes(blueprint, layer) for layer in range(sizes.num_layers)]
    infos = source.weights.infos
    outputs, dropped = [], []
    for info in infos.values():
        layer, local = _locate(arch, sizes, prefix, info.name)
        stem, _, kind = local.rpartition(".")
        attention = local in arch.tensors or stem in arch.projections
        if layer is not None and local in arch.buffers:
            dropped.append(info.name)
            continue
        wanted = replace(info, dtype=DTYPE_OPTIONS.get(dtype, info.dtype) if info.dtype in FLOATS else info.dtype)
        if layer is not None and attention and not copied:
            if local in shapes[layer]:
                wanted = replace(wanted, shape=shapes[layer][local])
                outputs.append(OutputTensor(wanted, "attention", info.name, layer))
        elif turned and layer is not None and kind == "weight" and stem in arch.linears:
            flipped = replace(wanted, shape=info.shape[::-1])
            outputs.append(OutputTensor(flipped, "transpose", info.name, layer))
        else:
            outputs.append(OutputTensor(wanted, "copy", info.name, layer))
    written = {output.info.name for output in outputs}
    for layer in range(sizes.num_layers):  # names that the source does not have go beside its output projection
        block = prefix + arch.block.format(layer=layer)
        beside = infos[f"{block}{arch.output}.weight"]
        for local, shape in shapes[layer].items():
            if block + local not in written:
                info = replace(beside, name=block + local, shape=shape, dtype=DTYPE_OPTIONS.get(dtype, beside.dtype))
                outputs.append(OutputTensor(info, "attention", beside.name, layer))
    if target.unties:
        outputs += _untied(source, prefix, outputs)
    return tuple(outputs), tuple(dropped)


def _untied(source: Source, prefix: str, outputs: list[OutputTensor]) -> list[OutputTensor]:
    """The head or the embedding, whichever a tied checkpoint does not store, as a copy of the other."""
    classes = source.config.get("architectures") or ["ForCausalLM"]
    tied = typed_config(source.config, source.origin.name).tie_word_embeddings
    if not tied or not classes[0].endswith("ForCausalLM"):
        return []
    names = ("lm_head.weight", f"{prefix}embed_tokens.weight")
    stored = {output.info.name: output for output in outputs if output.info.name in names}
    missing = [name for name in names if name not in stored]
    if len(missing) != 1:
        return []
    (twin,) = stored.values()
    return [replace(twin, info=replace(twin.info, name=missing[0]))]


def _locate(arch: Architecture, sizes: Geometry, prefix: str, name: str) -> tuple[int | None, str]:
    """The block a tensor belongs to and its name below the block; (None, name) outside the blocks."""
    head, _, tail = arch.block.partition("{layer}")
    if not name.startswith(prefix + head):
        return None, name
    number, dot, local = name.removeprefix(prefix + head).partition(tail)
    if not (dot and number.isdecimal() and int(number) < sizes.num_layers):
        return None, name
    return int(number), local
