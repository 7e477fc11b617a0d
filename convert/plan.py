"""The whole conversion decided and checked from config and headers, before a single weight is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from convert_attn.convert.archs import architecture, architectures
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.geometry import Geometry, geometry
from convert_attn.convert.layout import bias_shape, weight_shapes
from convert_attn.convert.methods import methods
from convert_attn.convert.methods.base import Method
from convert_attn.convert.source import Source
from convert_attn.convert.targets import choose
from convert_attn.convert.targets.base import Target
from convert_attn.convert.tensors import DTYPES, FLOATS, TensorInfo

DTYPE_OPTIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Request:
    """What the user asked for, as typed.

    Attributes:
        to: "gqa" or "mqa".
        groups: K/V heads of the result, None where `cache_ratio` or "mqa" says it.
        cache_ratio: share of the source's cache to keep.
        layout: "auto", "native" or "custom".
        output: the folder to make, None for the default name in the working directory.
        dtype: "auto" or a key of DTYPE_OPTIONS.
        device: where the arithmetic runs.
    """

    to: str
    groups: int | None = None
    cache_ratio: float | None = None
    method: str = "subspace"
    layout: str = "auto"
    output: Path | None = None
    dtype: str = "auto"
    device: str = "cpu"
    seed: int = 0
    overwrite: bool = False


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


@dataclass(frozen=True)
class Plan:
    """Everything the run needs to know.

    Attributes:
        groups: K/V heads of the result.
        result_arch: the facts of the result's class.
        prefix: what block names start with in this checkpoint ("model.", "" for a bare base model).
        outputs: every tensor to be written.
        dropped: tensors of the source that no class reads.
        output: the folder to make.
    """

    request: Request
    source: Source
    arch: Architecture
    geometry: Geometry
    method: Method
    target: Target
    result_arch: Architecture
    groups: int
    prefix: str
    outputs: tuple[OutputTensor, ...]
    dropped: tuple[str, ...]
    output: Path

    @property
    def unchanged(self) -> bool:
        """As many groups as the source has: every tensor is copied."""
        return self.groups == self.geometry.num_kv_heads

    @property
    def cache_dtype(self) -> str:
        """The dtype of the K projection's output in the result, which is the cache's."""
        cached = tuple(f"{self.block(0)}{stem}.weight" for stem in self.result_arch.projections[:-1])
        return next(out.info.dtype for out in self.outputs if out.info.name in cached)

    def cache_bytes(self, num_kv_heads: int) -> int:
        """KV cache in bytes per token."""
        return self.geometry.cache_numbers(num_kv_heads) * DTYPES[self.cache_dtype].itemsize

    def block(self, layer: int) -> str:
        """Prefix of a block's tensors."""
        return self.prefix + self.arch.block.format(layer=layer)


def divisors(n: int) -> list[int]:
    """The numbers of groups that n heads can form."""
    return [g for g in range(1, n + 1) if n % g == 0]


def choose_groups(request: Request, kv_heads: int) -> int:
    """The number of K/V heads of the result.

    Raises:
        UsageError: options that do not fit each other or the model.
    """
    allowed = ", ".join(map(str, divisors(kv_heads)))
    if request.groups is not None and request.cache_ratio is not None:
        raise UsageError("--groups and --cache-ratio both say how many heads to keep: give one of them")
    if request.to == "mqa":
        if request.groups not in (None, 1) or request.cache_ratio is not None:
            raise UsageError("--to mqa always keeps one K/V head: drop --groups / --cache-ratio, or use --to gqa")
        return 1
    if request.cache_ratio is not None:
        if not 0 < request.cache_ratio <= 1:
            raise UsageError(f"--cache-ratio is {request.cache_ratio}, expected a share above 0 and at most 1")
        fits = [g for g in divisors(kv_heads) if g <= kv_heads * request.cache_ratio + 1e-9]
        if not fits:
            raise UsageError(
                f"--cache-ratio {request.cache_ratio} is less than one of {kv_heads} K/V heads: "
                f"the smallest ratio is {1 / kv_heads:g}"
            )
        return fits[-1]
    if request.groups is None:
        raise UsageError(f"--to gqa needs --groups N (one of {allowed}) or --cache-ratio F")
    if request.groups < 1:
        raise UsageError(f"--groups is {request.groups}, expected at least 1; this model takes {allowed}")
    if request.groups > kv_heads:
        raise UsageError(
            f"--groups is {request.groups} but the model has {kv_heads} K/V heads: heads are shared, never added; "
            f"choose one of {allowed}"
        )
    if kv_heads % request.groups:
        raise UsageError(
            f"--groups {request.groups} does not divide the model's {kv_heads} K/V heads; choose one of {allowed}"
        )
    return request.groups


def choose_method(name: str, to: str) -> Method:
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


def _prefix(arch: Architecture, source: Source) -> str:
    """The base prefix if this checkpoint uses it, "" for a bare base model."""
    first = arch.block.format(layer=0) + arch.projections[0] + ".weight"
    for prefix in (arch.base, ""):
        if prefix + first in source.weights.infos:
            return prefix
    raise ConvertAttnError(
        f"'{source.origin.name}' has no tensor '{arch.base}{first}', which every {arch.model_type} checkpoint has; "
        "the checkpoint is incomplete or its model_type is wrong"
    )


def _check_attention(arch: Architecture, sizes: Geometry, prefix: str, source: Source) -> None:
    """Every projection of every block is there, floating point, and has the shape the config says."""
    expected = weight_shapes(arch, sizes, sizes.num_kv_heads)
    for layer in range(sizes.num_layers):
        for name, shape in expected.items():
            full = prefix + arch.block.format(layer=layer) + name
            _check_tensor(source, f"{full}.weight", shape)
            if f"{full}.bias" in source.weights.infos:
                _check_tensor(source, f"{full}.bias", bias_shape(arch, shape))
        _check_tensor(source, f"{prefix}{arch.block.format(layer=layer)}{arch.norm.name}.weight", (sizes.hidden_size,))


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


def default_output(source: Source, to: str, groups: int) -> Path:
    """./<name>-gqa4 or ./<name>-mqa."""
    return Path(f"{source.origin.short_name}-{'mqa' if to == 'mqa' else f'gqa{groups}'}")


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
    sizes = geometry(arch, source.config, source.origin.name)
    groups = choose_groups(request, sizes.num_kv_heads)
    target = choose(arch, sizes.num_heads, groups, request.layout)
    result_arch = architectures()[target.becomes or arch.model_type]
    result_classes(target, source)
    prefix = _prefix(arch, source)
    _check_attention(arch, sizes, prefix, source)
    outputs, dropped = _outputs(source, arch, result_arch, sizes, groups, prefix, request.dtype)
    return Plan(
        request=request,
        source=source,
        arch=arch,
        geometry=sizes,
        method=method,
        target=target,
        result_arch=result_arch,
        groups=groups,
        prefix=prefix,
        outputs=outputs,
        dropped=dropped,
        output=request.output or default_output(source, request.to, groups),
    )


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
    source: Source,
    arch: Architecture,
    result_arch: Architecture,
    sizes: Geometry,
    groups: int,
    prefix: str,
    dtype: str,
) -> tuple[tuple[OutputTensor, ...], tuple[str, ...]]:
    """Every tensor of the result, in the source's order, and the names that are dropped."""
    shapes = weight_shapes(result_arch, sizes, groups)
    turned = arch.transposed != result_arch.transposed
    outputs, dropped = [], []
    for info in source.weights.infos.values():
        layer, local = _locate(arch, sizes, prefix, info.name)
        stem, _, kind = local.rpartition(".")
        if layer is not None and local in arch.buffers:
            dropped.append(info.name)
            continue
        wanted = replace(info, dtype=DTYPE_OPTIONS.get(dtype, info.dtype) if info.dtype in FLOATS else info.dtype)
        attention = layer is not None and stem in shapes
        if attention and (groups != sizes.num_kv_heads or turned):
            shape = shapes[stem] if kind == "weight" else bias_shape(result_arch, shapes[stem])
            outputs.append(OutputTensor(replace(wanted, shape=shape), "attention", info.name, layer))
        elif turned and layer is not None and kind == "weight" and stem in arch.linears:
            flipped = replace(wanted, shape=info.shape[::-1])
            outputs.append(OutputTensor(flipped, "transpose", info.name, layer))
        else:
            outputs.append(OutputTensor(wanted, "copy", info.name, layer))
    return tuple(outputs), tuple(dropped)


def _locate(arch: Architecture, sizes: Geometry, prefix: str, name: str) -> tuple[int | None, str]:
    """The block a tensor belongs to and its name below the block; (None, name) outside the blocks."""
    head, _, tail = arch.block.partition("{layer}")
    if not name.startswith(prefix + head):
        return None, name
    number, dot, local = name.removeprefix(prefix + head).partition(tail)
    if not (dot and number.isdecimal() and int(number) < sizes.num_layers):
        return None, name
    return int(number), local
