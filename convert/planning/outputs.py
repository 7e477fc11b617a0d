"""Every tensor of the result: its name, shape and dtype, and what it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import SharedHeads
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.checkpoint.safetensors_format import FLOATS, TensorInfo
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.planning.request import DTYPE_OPTIONS
from convert_attn.convert.targets.base import Blueprint, Shapes, Target


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    """One tensor of the result.

    Attributes:
        info: name, dtype, shape and shard in the output (the offset is the writer's business).
        origin: "copy" (bytes as they are, or cast), "transpose" (the same numbers in the other layout), "attention"
            (computed) or "zeros".
        source: the source tensor's name; for "attention" the tensor that decides the dtype.
        layer: the block it belongs to, None outside the blocks.
        local: its name below the block in the result's class, "" outside the blocks.
    """

    info: TensorInfo
    origin: Literal["copy", "transpose", "attention", "zeros"]
    source: str
    layer: int | None = None
    local: str = ""


def result_tensors(
    source: Source, blueprint: Blueprint, target: Target, dtype: str
) -> tuple[tuple[OutputTensor, ...], tuple[str, ...]]:
    """Give every tensor of the result, in the source's order, and the names that are dropped.

    What is stored keeps its stored name. Attention that is stored otherwise than in the class (joined, turned) is
    written as the result's class has it.
    """
    shapes = [target.shapes(blueprint, layer) for layer in range(blueprint.sizes.num_layers)]
    outputs: list[OutputTensor] = []
    dropped: list[str] = []
    for info in source.weights.infos.values():
        layer, local = _locate(blueprint.arch, blueprint.sizes, _name_in_base(source, info.name))
        if layer is not None and local in blueprint.arch.buffers:
            dropped.append(info.name)
            continue
        if layer is None and info.name in source.names.unknown and local.startswith(blueprint.arch.unread):
            dropped.append(info.name)
            continue
        output = _of_stored(source, blueprint, info, layer, local)
        if output.origin != "attention":
            outputs.append(output)
        elif layer is not None and local in shapes[layer] and _is_plain(source, info.name):
            outputs.append(replace(output, info=replace(output.info, shape=shapes[layer][local])))
    outputs = [replace(output, info=_cast(output.info, dtype)) for output in outputs]
    outputs += _added(source, blueprint, shapes, {(output.layer, output.local) for output in outputs}, dtype)
    outputs += _zeros(source, blueprint, target, dtype)
    if target.unties:
        outputs += _untied(source, outputs)
    return tuple(outputs), tuple(dropped)


def _cast(info: TensorInfo, dtype: str) -> TensorInfo:
    return replace(info, dtype=DTYPE_OPTIONS.get(dtype, info.dtype)) if info.dtype in FLOATS else info


def _is_turned(blueprint: Blueprint) -> bool:
    """Whether the result's class has its weights in the other layout."""
    return blueprint.arch.transposed != blueprint.result_arch.transposed


def _is_copied(source: Source, blueprint: Blueprint, layer: int) -> bool:
    """Whether a layer's attention stays as it is: as many K/V heads as before, and stored as its class stores them."""
    form = blueprint.form
    same = isinstance(form, SharedHeads) and form.groups[layer] == blueprint.sizes.kv_by_layer[layer]
    return same and not _is_turned(blueprint) and not _is_parted(source, blueprint, layer)


def _is_parted(source: Source, blueprint: Blueprint, layer: int) -> bool:
    """Whether what the source stores joined is apart in the result's class, which is another one."""
    arch, names = blueprint.arch.at(layer), source.names
    if blueprint.result_arch.model_type == arch.model_type:
        return False
    projections = (f"{names.base}{blueprint.arch.stem(layer)}{name}.weight" for name in arch.projections)
    return not all(_is_plain(source, stored) for name in projections for stored in names.stored(name))


def _is_plain(source: Source, name: str) -> bool:
    """Whether a stored tensor is the class's as it is, but for its name."""
    group = source.names.group_of(name)
    return group is None or group.plain


def _of_stored(source: Source, blueprint: Blueprint, info: TensorInfo, layer: int | None, local: str) -> OutputTensor:
    """What becomes of a stored tensor; the shape of what is computed is still the stored one."""
    if layer is None:
        return OutputTensor(info=info, origin="copy", source=info.name)
    arch = blueprint.arch.at(layer)
    stem, _, kind = local.rpartition(".")
    output = OutputTensor(info=info, origin="copy", source=info.name, layer=layer, local=local)
    if (local in arch.tensors or stem in arch.projections) and not _is_copied(source, blueprint, layer):
        return replace(output, origin="attention")
    if _is_turned(blueprint) and kind == "weight" and stem in arch.linears:
        return replace(output, origin="transpose", info=replace(info, shape=info.shape[::-1]))
    return output


def _added(
    source: Source, blueprint: Blueprint, shapes: list[Shapes], written: set[tuple[int | None, str]], dtype: str
) -> Iterator[OutputTensor]:
    """What the source does not have goes beside its output projection."""
    names, arch = source.names, blueprint.arch
    for layer, wanted in enumerate(shapes):
        if _is_copied(source, blueprint, layer):
            continue
        block = names.base + arch.stem(layer)
        beside = source.weights.infos[names.stored(f"{block}{arch.at(layer).output}.weight")[0]]
        for local, shape in wanted.items():
            if (layer, local) not in written:
                info = replace(beside, name=names.place(block + local), shape=shape)
                yield OutputTensor(
                    info=_cast(info, dtype), origin="attention", source=beside.name, layer=layer, local=local
                )


def _zeros(source: Source, blueprint: Blueprint, target: Target, dtype: str) -> Iterator[OutputTensor]:
    """What the class has besides goes beside the last block's output projection."""
    names, arch, layer = source.names, blueprint.arch, blueprint.sizes.num_layers - 1
    beside = source.weights.infos[names.stored(f"{names.base}{arch.stem(layer)}{arch.at(layer).output}.weight")[0]]
    for name, shape in target.zeros(blueprint).items():
        info = replace(beside, name=names.place(names.base + name), shape=shape)
        yield OutputTensor(info=_cast(info, dtype), origin="zeros", source=beside.name)


def _untied(source: Source, outputs: list[OutputTensor]) -> Iterator[OutputTensor]:
    """What is tied to another tensor and not stored, as a copy of the other."""
    names, by_name = source.names, {output.info.name: output for output in outputs}
    for pair in names.tied.items():
        missing = [name for name in pair if not names.has(name)]
        if len(missing) == 1:
            twin = by_name[names.stored(missing[0])[0]]
            yield replace(twin, info=replace(twin.info, name=names.place(missing[0])))


def _name_in_base(source: Source, name: str) -> str:
    """What a stored tensor is called in the base model, or would be."""
    group, names = source.names.group_of(name), source.names
    return (names.unknown[name] if group is None else group.parameter).removeprefix(names.base)


def _locate(arch: Architecture, sizes: Geometry, name: str) -> tuple[int | None, str]:
    """The layer, an attention site, of a name in the base model and the name below the block; else (None, name).

    What of a block belongs to none of its attentions is counted to the first.
    """
    head, _, tail = arch.block.partition("{layer}")
    if not name.startswith(head):
        return None, name
    number, dot, local = name.removeprefix(head).partition(tail)
    if not (dot and number.isdecimal() and int(number) < sizes.num_layers // sizes.attentions):
        return None, name
    sites = range(int(number) * sizes.attentions, (int(number) + 1) * sizes.attentions)
    return next((site for site in sites if local in arch.at(site).tensors), sites[0]), local
