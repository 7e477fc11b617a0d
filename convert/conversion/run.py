"""The one loop: every block's attention read, shared and written; everything else copied byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from convert_attn.convert.checkpoint.safetensors_format import TensorInfo
from convert_attn.convert.checkpoint.shards import finite_chunks
from convert_attn.convert.checkpoint.writer import ShardWriter, check_output, check_space, whole_or_nothing
from convert_attn.convert.conversion.in_order import in_order, workers
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.fitting.layers import Layers, on_device
from convert_attn.convert.fitting.made import UNMEASURED, Made
from convert_attn.convert.fitting.refit import NewLayer
from convert_attn.convert.fitting.session import Fitting, fitting
from convert_attn.convert.fitting.slot_rules import slot_texts, unchosen, write_rules
from convert_attn.convert.heap import keep_large_blocks
from convert_attn.convert.planning.outputs import OutputTensor
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.progress import Progress, silent
from convert_attn.convert.publish.result_config import write_side_files
from convert_attn.convert.stored_numbers import DTYPES, is_finite, tensor_bytes
from convert_attn.convert.targets.base import Blueprint
from convert_attn.convert.verification.process import ISOLATED
from convert_attn.convert.verification.result import Answer, Verified, answer, verify_conversion
from convert_attn.convert.verification.source import Probe, check_source
from convert_attn.convert.verification.stored import verify_folder
from convert_attn.convert.weights.balance import balanced
from convert_attn.convert.weights.latent import LatentWeights


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a conversion made.

    Attributes:
        output: the folder.
        nbytes: size of its weights in bytes.
        plan: as carried out: sizes that were left to the calibration text are known.
        made: on how much text, and how good the result is.
        warnings: sentences for the user.
        verified: what was seen when the result was run.
    """

    output: Path
    nbytes: int
    plan: Plan
    made: Made = UNMEASURED
    warnings: tuple[str, ...] = ()
    verified: Verified | None = None


def execute(plan: Plan, progress: Progress = silent) -> Result:
    """Carry out a plan: the output folder appears, verified, or nothing does.

    Raises:
        ConvertAttnError: whatever went wrong, in one sentence.
    """
    check_output(plan.output, plan.request.overwrite)
    check_space(plan.output, sum(output.info.nbytes for output in plan.outputs))
    keep_large_blocks()
    ISOLATED.start()  # it imports its libraries while this process works
    probes = check_source(plan, progress)
    with fitting(plan, progress) as found, whole_or_nothing(plan.output, plan.request.overwrite) as folder:
        plan = found.plan
        blueprint, answers = _write_weights(found, folder, probes, progress)
        measured = found.measure()
        texts = slot_texts(plan)
        warnings = plan.warnings + found.warnings + (() if texts is not None else unchosen(plan))
        if texts is None and plan.unchanged:
            plan = replace(plan, text=None)
        made = Made(tokens=found.tokens or (0 if texts is None else texts.numel()), measured=measured)
        warnings += write_side_files(plan, folder, blueprint, made)
        if texts is not None:
            write_rules(plan, folder, texts, progress)
        verify_folder(folder, plan.source.auto_class, progress, numbers=False)
        verified = verify_conversion(plan, folder, plan.source.auto_class, answers, progress)
    nbytes = sum(output.info.nbytes for output in plan.outputs)
    return Result(output=plan.output, nbytes=nbytes, plan=plan, made=made, warnings=warnings, verified=verified)


def _shards(plan: Plan) -> dict[str, list[TensorInfo]]:
    """The output's tensors by shard, sharded like the source."""
    shards: dict[str, list[TensorInfo]] = {file: [] for file in plan.source.weights.metadata}
    for output in plan.outputs:
        shards[output.info.file].append(output.info)
    return {file: infos for file, infos in shards.items() if infos}


def _write_weights(
    fitting: Fitting, folder: Path, probes: Sequence[Probe], progress: Progress
) -> tuple[Blueprint, list[Answer]]:
    """All shards; the plan's blueprint with what was found on the way, and what probed layers must give."""
    plan = fitting.plan
    found: list[tuple[float, ...]] = []
    asked, answers = {probe.layer: probe for probe in probes}, []
    by_layer: dict[int, list[OutputTensor]] = {}
    others: list[OutputTensor] = []
    for output in plan.outputs:
        computed = output.origin == "attention" or (plan.refit_mlp and plan.ends_mlp(output))
        if computed and output.layer is not None:
            by_layer.setdefault(output.layer, []).append(output)
        else:
            others.append(output)
    writer = ShardWriter(folder, _shards(plan), plan.source.weights.metadata)
    try:
        # in order and without a gap: a layer that is copied takes the texts on to the next one all the same
        layers = range(plan.geometry.num_layers if by_layer else 0)
        progress("attention", 0, len(layers))
        with workers(1, threads=1) as beside:
            copies = _Copies(plan, writer, others, beside)
            jobs = plan.request.jobs if fitting.separate else 1
            for layer, new in enumerate(in_order(fitting.convert, layers, jobs)):
                if layer in asked:
                    answers.append(answer(asked.pop(layer), new.attention))
                if isinstance(new.attention, LatentWeights):
                    found.append(tuple(new.attention.inv_freq.tolist()))
                _write_layer(plan, writer, by_layer.get(layer, ()), layer, new)
                progress("attention", layer + 1, len(layers))
            copies.finish(progress)
        writer.close()
        # layers that are copied as they are
        answers += [answer(probe, Layers(plan).read(layer)) for layer, probe in asked.items()]
        return replace(plan.blueprint, inv_freq=tuple(found)), answers
    except BaseException:
        writer.abandon()
        raise


def _write_layer(plan: Plan, writer: ShardWriter, outputs: Sequence[OutputTensor], layer: int, new: NewLayer) -> None:
    """The tensors of a layer's new form, in the layout of the result's class."""
    with torch.no_grad():
        converted = balanced(new.attention, plan.geometry.block(layer).turns) if plan.balanced else new.attention
        with on_device(plan.request.device):
            tensors = plan.target.tensors(plan.blueprint, converted, layer)
        if new.mlp is not None and plan.arch.mlp_output is not None:
            tensors |= new.mlp.tensors(plan.arch.mlp_output, plan.blueprint.result_arch.transposed)
    for output in outputs:
        tensor = tensors[output.local].to(device="cpu", dtype=DTYPES[output.info.dtype])
        _check_range(tensor, output)
        writer.put(output.info.name, [tensor_bytes(tensor)])


@dataclass
class _Copies:
    """The tensors that are not computed: those that stay as they are are written while layers are converted."""

    plan: Plan
    writer: ShardWriter
    outputs: Sequence[OutputTensor]
    thread: ThreadPoolExecutor

    def __post_init__(self) -> None:
        plain = [output for output in self.outputs if _is_plain(self.plan, output)]
        self._plain = {output.info.name: self.thread.submit(self._copy, output) for output in plain}
        self._synced = self.thread.submit(self.writer.sync)  # so that little is left when all is written

    def _copy(self, output: OutputTensor) -> None:
        self.writer.put(output.info.name, finite_chunks(output.info, _copied(self.plan, output)))

    def finish(self, progress: Progress) -> None:
        """Write the others, whose memory would add to a layer's, and wait for all."""
        for done, output in enumerate(self.outputs):
            progress("copy", done, len(self.outputs))
            copied = self._plain.get(output.info.name)
            if copied is None:
                self._copy(output)
            else:
                copied.result()
        progress("copy", len(self.outputs), len(self.outputs))
        self._synced.result()


def _is_plain(plan: Plan, output: OutputTensor) -> bool:
    same_dtype = plan.source.weights.infos[output.source].dtype == output.info.dtype
    return output.origin == "copy" and same_dtype


def _check_range(tensor: Tensor, output: OutputTensor) -> None:
    """Computed numbers must fit the dtype they are stored in."""
    if not is_finite(tensor):
        raise ConvertAttnError(
            f"converted tensor '{output.info.name}' has numbers that do not fit {output.info.dtype}; "
            "give --dtype bfloat16 or float32, or another --method"
        )


def _copied(plan: Plan, output: OutputTensor) -> Iterator[memoryview]:
    """The bytes of a tensor that is not computed."""
    weights = plan.source.weights
    if output.origin == "zeros":
        return iter([tensor_bytes(torch.zeros(output.info.shape, dtype=DTYPES[output.info.dtype]))])
    if _is_plain(plan, output):
        return weights.chunks(output.source)
    tensor = weights.read(output.source).to(DTYPES[output.info.dtype])
    return iter([tensor_bytes(tensor.T if output.origin == "transpose" else tensor)])
