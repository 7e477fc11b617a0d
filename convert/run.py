"""The one loop: every block's attention read, shared and written; everything else copied byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from convert_attn.convert.card import auto_class
from convert_attn.convert.config import write_side_files
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.form import LatentCache, SharedHeads
from convert_attn.convert.latent import LatentSizes, LatentWeights
from convert_attn.convert.layout import split
from convert_attn.convert.methods.base import LayerContext
from convert_attn.convert.moments import moments_from_norm
from convert_attn.convert.plan import OutputTensor, Plan
from convert_attn.convert.request import DTYPE_OPTIONS
from convert_attn.convert.rotary import Rotary, prior_offsets
from convert_attn.convert.targets.base import Blueprint, Converted
from convert_attn.convert.tensors import DTYPES, TensorInfo, tensor_bytes
from convert_attn.convert.verify import verify_folder
from convert_attn.convert.writer import ShardWriter, check_space, whole_or_nothing

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Result:
    """What a conversion made.

    Attributes:
        output: the folder.
        nbytes: size of its weights in bytes.
    """

    output: Path
    nbytes: int


def execute(plan: Plan, progress: Progress = silent) -> Result:
    """Carry out a plan: the output folder appears, verified, or nothing does.

    Raises:
        ConvertAttnError: whatever went wrong, in one sentence.
    """
    needed = sum(output.info.nbytes for output in plan.outputs)
    with whole_or_nothing(plan.output, plan.request.overwrite) as folder:
        check_space(plan.output, needed)
        blueprint = _write_weights(plan, folder, progress)
        write_side_files(plan, folder, blueprint)
        verify_folder(folder, auto_class(plan), progress)
    return Result(plan.output, needed)


def _shards(plan: Plan) -> dict[str, list[TensorInfo]]:
    """The output's tensors by shard, sharded like the source."""
    shards: dict[str, list[TensorInfo]] = {file: [] for file in plan.source.weights.metadata}
    for output in plan.outputs:
        shards[output.info.file].append(output.info)
    return {file: infos for file, infos in shards.items() if infos}


def _write_weights(plan: Plan, folder: Path, progress: Progress) -> Blueprint:
    """All shards; the plan's blueprint with what was found on the way."""
    found: list[tuple[float, ...]] = []
    writer = ShardWriter(folder, _shards(plan), plan.source.weights.metadata)
    try:
        by_layer: dict[int, list[OutputTensor]] = {}
        others: list[OutputTensor] = []
        for output in plan.outputs:
            if output.origin == "attention" and output.layer is not None:
                by_layer.setdefault(output.layer, []).append(output)
            else:
                others.append(output)
        generator = torch.Generator(plan.request.device).manual_seed(plan.request.seed)
        for done, (layer, outputs) in enumerate(sorted(by_layer.items())):
            progress("attention", done, len(by_layer))
            with _on(plan.request.device), torch.no_grad():
                converted = _convert_layer(plan, layer, generator)
                tensors = plan.target.tensors(plan.blueprint, converted, layer)
            if isinstance(converted, LatentWeights):
                found.append(tuple(converted.inv_freq.tolist()))
            for output in outputs:
                local = output.info.name.removeprefix(plan.block(layer))
                tensor = tensors[local].to(device="cpu", dtype=DTYPES[output.info.dtype])
                _check_range(tensor, output)
                writer.put(output.info.name, [tensor_bytes(tensor)])
        progress("attention", len(by_layer), len(by_layer))
        for done, output in enumerate(others):
            progress("copy", done, len(others))
            writer.put(output.info.name, _copied(plan, output))
        progress("copy", len(others), len(others))
        writer.close()
        return replace(plan.blueprint, inv_freq=tuple(found))
    except BaseException:
        writer.abandon()
        raise


def _on(device: str) -> AbstractContextManager[object]:
    """Fresh tensors on that device; on the CPU they are there anyway, and the context would slow every call."""
    return nullcontext() if device == "cpu" else torch.device(device)


def _check_range(tensor: Tensor, output: OutputTensor) -> None:
    """Computed numbers must fit the dtype they are stored in."""
    if not torch.isfinite(tensor).all():
        raise ConvertAttnError(
            f"converted tensor '{output.info.name}' has numbers that do not fit {output.info.dtype}; "
            "give --dtype bfloat16 or float32, or another --method"
        )


def _copied(plan: Plan, output: OutputTensor) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor that is not computed."""
    weights = plan.source.weights
    same_dtype = weights.infos[output.source].dtype == output.info.dtype
    if output.origin == "copy" and same_dtype:
        return weights.chunks(output.source)
    tensor = weights.read(output.source).to(DTYPES[output.info.dtype])
    return iter([tensor_bytes(tensor.T if output.origin == "transpose" else tensor)])


def _read_finite(plan: Plan, name: str) -> Tensor:
    tensor = plan.source.weights.read(name).to(plan.request.device)
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ConvertAttnError(
            f"tensor '{name}' of '{plan.source.origin.name}' has {bad} values that are NaN or infinite: "
            "the checkpoint is broken; download it again"
        )
    return tensor


def _convert_layer(plan: Plan, layer: int, generator: torch.Generator) -> Converted:
    """One block's attention in its new form."""
    weights = split(plan.arch, plan.geometry, _layer_tensors(plan, layer))
    if plan.unchanged:
        return weights
    context, form, method = _layer_context(plan, layer, generator), plan.form, plan.method
    if isinstance(form, SharedHeads) and method.share is not None:
        return method.share(weights, form.groups, context)
    if isinstance(form, LatentCache) and method.compress is not None:
        sizes = LatentSizes(form.rank, form.rope_dim, plan.target.frequencies(plan.blueprint))
        converted = method.compress(weights, sizes, context)
        return replace(converted, latent_power=context.moments.power(converted.down)) if form.norm else converted
    raise UsageError(f"method '{method.name}' does not serve --to {plan.request.to}")


def _layer_tensors(plan: Plan, layer: int) -> dict[str, Tensor]:
    """The block's projections, by name below the block."""
    names = [f"{stem}.{kind}" for stem in plan.arch.projections for kind in ("weight", "bias")]
    present = plan.source.weights.infos
    block = plan.block(layer)
    wider = DTYPES.get(DTYPE_OPTIONS.get(plan.request.dtype, ""))
    tensors = {name: _read_finite(plan, block + name) for name in names if block + name in present}
    if wider is None:
        return tensors
    # --dtype float32 of a bf16 source: results are kept as precise as they are asked for
    return {name: tensor.to(torch.promote_types(tensor.dtype, wider)) for name, tensor in tensors.items()}


def _layer_context(plan: Plan, layer: int, generator: torch.Generator) -> LayerContext:
    """What is known of the layer without calibration text: its norm, its rotation, a prior on offsets."""
    norm = plan.block(layer) + plan.arch.norm.name
    gain = _read_finite(plan, f"{norm}.weight").to(torch.float64) + plan.arch.norm.gain_offset
    bias = _read_finite(plan, f"{norm}.bias") if f"{norm}.bias" in plan.source.weights.infos else None
    sizes = plan.geometry
    return LayerContext(
        moments=moments_from_norm(gain, bias),
        rotary=Rotary(sizes.plane_frequencies()) if plan.arch.position == "rope" else None,
        offsets=prior_offsets(sizes.num_heads, sizes.context),
        generator=generator,
    )
