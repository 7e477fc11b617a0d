"""A checkpoint folder run as its user runs it: by its Auto class, in a process that has none of this package."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from convert_attn import modeling
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.checkpoint.safetensors_format import FLOATS
from convert_attn.convert.checkpoint.source import Origin, Source
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.planning.provenance import solved_mlp
from convert_attn.convert.progress import Progress, silent
from convert_attn.convert.stored_numbers import DTYPES
from convert_attn.convert.targets.base import Converted
from convert_attn.convert.verification.cut import Changed, blocks_of, checked_layers, write_cut
from convert_attn.convert.verification.process import ISOLATED
from convert_attn.convert.verification.source import Probe
from convert_attn.convert.weights.functional import Attention, across

_UNSEEN = 0.25  # rounding that is such a share of what the conversion costs adds 3 % to it: their squares add up
_WORK = ".checks"  # below the folder that is made, gone before it appears


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one layer must give when it is asked in its class.

    Attributes:
        x, y: [1, S, D] in float32, the attention's input and output.
        rounding: relative error that the dtype may cost.
        lost: relative error of y against the source, what the conversion itself costs.
        others: [1, M, D], what an encoder gives, where keys and values come from that.
    """

    layer: int
    x: Tensor
    y: Tensor
    rounding: float
    lost: float = 0.0
    others: Tensor | None = None


@dataclass(frozen=True)
class Verified:
    """What was seen of a folder that passed.

    Attributes:
        transformers: the version it was run in.
        figures: what was measured: `decodes` and `generates` (largest difference with and without a cache, in standard
            deviations), `decodes_seeing` (the same with states of images, where layers look at such), `cached_numbers`
            (per token, for every layer that was run), of encoders `padding` (largest difference between a text in a
            padded batch and alone), `block_errors` (relative) and `block_errors_stored`, `around_attention`, `dtype`,
            `tokenizer`.
        notes: what could not be looked at, sentences.
    """

    transformers: str
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known of a folder beside its own files.

    Attributes:
        source: what it was made from: the tokenizer must be its tokenizer.
        same_outside: everything but attention computes what the source's class computes, but for what the conversion
            says it has changed.
        trust_tokenizer: whether the tokenizer, the source's and the result's, may bring code.
        answers: of some layers.
        numbers: cached per token, for every layer.
    """

    source: Source | None = None
    same_outside: bool = False
    trust_tokenizer: bool = False
    answers: Sequence[Answer] = ()
    numbers: Sequence[int] | None = None


def answer(probe: Probe, converted: Converted) -> Answer:
    """Compute what converted weights give for a probe, in float64."""
    wide: dict[str, Any] = {name: part.double() for name, part in vars(converted).items() if isinstance(part, Tensor)}
    x = probe.x.to(converted.o.device, torch.float64)
    others = None if probe.others is None else probe.others.to(x)
    y = Attention(replace(converted, **wide), x, probe.rule, across(others)).output().float().cpu()
    lost = 0.0 if probe.y is None else float((y - probe.y).norm() / y.norm().clamp_min(1e-30))
    return Answer(layer=probe.layer, x=probe.x, others=probe.others, y=y, rounding=probe.rounding, lost=lost)


def run_folder(
    folder: Path, auto_class: str, *, expected: Expected, subject: str, work: Path, progress: Progress = silent
) -> Verified:
    """Run a checkpoint folder and compare what is seen with what is expected.

    Args:
        subject: what a sentence on it begins with.
        work: an empty folder for cuts of large models and for probes.

    Raises:
        ConvertAttnError: something is not as it should be.
    """
    checkpoint = Source.open(Origin(name=str(folder), folder=folder))
    nbytes = sum(info.nbytes for info in checkpoint.weights.infos.values())
    arch = architectures().get(checkpoint.config["model_type"])
    count = blocks_of(checkpoint).count
    layers = checked_layers(checkpoint.config, count, nbytes)
    if arch is not None and arch.cross is not None:  # both stacks are run whole
        count = geometry(arch, checkpoint.config, str(folder)).num_layers
        layers = tuple(range(count))
    model = folder
    if len(layers) < count:
        model = work / "cut"
        write_cut(checkpoint, layers, model, code=folder)
    job: dict[str, Any] = {
        "folder": str(folder.resolve()),
        "model": str(model.resolve()),
        "auto_class": auto_class,
        "trust": "auto_map" in checkpoint.whole,
        "trust_tokenizer": expected.trust_tokenizer,
        "model_types": [checkpoint.config["model_type"], checkpoint.whole["model_type"]],
        "within": "" if checkpoint.within is None else checkpoint.names.base.rstrip("."),
    }
    if arch is not None:
        job |= {"encoder": not arch.causal, "inside": _inside(arch)}
    if arch is not None and arch.cross is not None:
        job["sites"] = [[arch.stem(site) + arch.at(site).parts[n] for n in (0, -1)] for site in layers]
    if arch is not None and arch.seeing is not None:
        job["seen"] = [arch.seeing.states, arch.seeing.mask]
    if expected.numbers is not None:
        job["numbers"] = [expected.numbers[layer] for layer in layers]
    if expected.source is not None:
        job |= _source_job(expected, expected.source, layers, checkpoint, work)
    asked = {layers.index(one.layer): one for one in expected.answers if one.layer in layers}
    if asked:
        job |= _probes(asked, work / "probes.safetensors")
    progress("run result", 0, 1)
    report = ISOLATED.run(job)
    progress("run result", 1, 1)
    if report["findings"]:
        first, *others = report["findings"]
        more = f" (and {len(others)} more)" if others else ""
        raise ConvertAttnError(
            f"{subject} {first}{more}, seen by running it in transformers {transformers.__version__}"
        )
    return Verified(transformers.__version__, report["figures"], tuple(report["notes"]))


def _inside(arch: Architecture) -> tuple[str, str]:
    """Which modules read and give, below the outermost that is named attention."""
    if len(arch.parts) == 1:
        return "", ""
    outer = f"{arch.mixer.partition('.')[0]}."
    return f"{arch.mixer}.".removeprefix(outer).rstrip("."), arch.output.removeprefix(outer)


def _float_dtypes(source: Source) -> set[str]:
    """The dtypes, safetensors' names, of all floating-point tensors."""
    return {info.dtype for info in source.weights.infos.values() if info.dtype in FLOATS}


def _source_job(
    expected: Expected, source: Source, layers: Sequence[int], checkpoint: Source, work: Path
) -> dict[str, Any]:
    """What a job needs of the source: its folder for the tokenizer, a cut of it in a class that is not its own code."""
    job: dict[str, Any] = {"source": str(source.origin.folder.resolve())}
    if expected.same_outside:
        whole = range(blocks_of(source).count)
        kept = whole if len(layers) >= len(whole) else layers
        code = source.origin.folder if source.class_code() else None
        arch = architectures().get(source.config["model_type"])
        job["source_inside"] = ("", "") if arch is None else _inside(arch)
        write_cut(source, kept, work / "source", code=code, changed=_solved_tensors(source, checkpoint))
        ours, theirs = _float_dtypes(checkpoint), _float_dtypes(source)
        job |= {
            "cast": str(DTYPES[next(iter(ours))]).removeprefix("torch.") if ours != theirs and len(ours) == 1 else None,
            "source_model": str((work / "source").resolve()),
            "trust_model": code is not None or source.config["model_type"] in modeling.FAMILIES,
        }
    return job


def _solved_tensors(source: Source, result: Source) -> dict[str, Changed]:
    """What a conversion says it has solved anew outside attention, as the result has it, laid out as in the source."""
    arch = architectures().get(source.config["model_type"])
    if arch is None:
        return {}
    turned = arch.transposed != architectures().get(result.config["model_type"], arch).transposed
    solved = solved_mlp(result.whole.get("convert_attn") or {}, arch.mlp_output)

    def read(name: str) -> Tensor:
        tensor = result.weights.read(name)
        return tensor.T if turned and tensor.ndim == 2 else tensor

    infos = result.weights.infos
    names = (name for name in source.weights.infos if solved(name) and name in infos)
    return {name: Changed(infos[name].dtype, partial(read, name)) for name in names}


def _probes(asked: dict[int, Answer], file: Path) -> dict[str, Any]:
    """The probes in a file, by the number that the layer has in the model that is run."""
    tensors = {f"x.{number}": one.x.contiguous() for number, one in asked.items()}
    tensors |= {f"y.{number}": one.y.contiguous() for number, one in asked.items()}
    tensors |= {f"o.{number}": one.others.contiguous() for number, one in asked.items() if one.others is not None}
    save_file(tensors, file)
    return {
        "probes": str(file.resolve()),
        "rounding": {str(n): one.rounding for n, one in asked.items()},
        "stored_rounding": {str(n): max(one.rounding, _UNSEEN * one.lost) for n, one in asked.items()},
    }


def verify_conversion(
    plan: Plan, folder: Path, auto_class: str, answers: Sequence[Answer], progress: Progress = silent
) -> Verified:
    """Check what a conversion made, in the folder where it is made.

    Raises:
        ConvertAttnError: it does not do what it should; saying what.
    """
    extra, experiment = plan.target.extra_latent, plan.target.experiment
    cached = plan.form.numbers_by_layer(plan.geometry)
    facts = [0] * len(cached) if experiment is None else experiment.facts_by_layer(plan.form)
    expected = Expected(
        source=plan.source,
        same_outside=True,
        trust_tokenizer=plan.request.trust_remote_code,
        answers=answers,
        numbers=[count + extra + known for count, known in zip(cached, facts, strict=True)],
    )
    with workplace(folder) as work:
        return run_folder(
            folder,
            auto_class,
            expected=expected,
            subject="nothing was written: the result",
            work=work,
            progress=progress,
        )


@contextmanager
def workplace(inside: Path | None = None) -> Iterator[Path]:
    """Make a folder for `run_folder` that is gone afterwards: in the folder that is made, or a temporary one."""
    if inside is None:
        with tempfile.TemporaryDirectory(prefix="convert-attn-") as made:
            yield Path(made)
        return
    work = inside / _WORK
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
