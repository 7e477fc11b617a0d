"""The healed checkpoint: the converted folder again, with trained tensors in the place of their predecessors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.checkpoint.writer import ShardWriter, check_space, whole_or_nothing
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.state.journal import CURVE, LOG, START, Record, draw, read
from convert_attn.convert.heal.state.settings import UPTRAIN, Settings
from convert_attn.convert.planning.provenance import versions
from convert_attn.convert.progress import Progress
from convert_attn.convert.publish.card import write_card
from convert_attn.convert.publish.result_config import carry_files
from convert_attn.convert.stored_numbers import DTYPES, tensor_bytes
from convert_attn.convert.verification.folder import cached_by_layer
from convert_attn.convert.verification.result import Expected, run_folder, workplace
from convert_attn.convert.verification.stored import verify_folder
from convert_attn.convert.version import __version__


@dataclass(frozen=True, kw_only=True)
class Healed:
    """What a run made.

    Attributes:
        output: the folder.
        tokens: trained on.
        steps: of the stage over the whole model.
        start, best: `unit` on the selection text, as converted and of the weights that were kept: KL to the
            original (distill; plus lm_weight times the text's own loss) or that loss (uptrain); None where only layers
            were trained.
        perplexity: the same two weights' on the selection text, None likewise.
        unit: of start and best; "" of an encoder, whose they are the error of its last hidden states, a share.
        warnings: sentences for the user.
    """

    output: Path
    tokens: int
    steps: int
    start: float | None = None
    best: float | None = None
    perplexity: tuple[float, float] | None = None
    unit: str = "nats per token"
    warnings: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Trained:
    """What there is to be written.

    Attributes:
        names: of the parameters that were trained, as the model's class has them.
        read: one of them.
    """

    names: frozenset[str]
    read: Callable[[str], Tensor]


def write_result(
    student: Source,
    trained: Trained,
    *,
    entry: dict[str, Any],
    log: Path,
    output: Path,
    overwrite: bool,
    progress: Progress,
) -> None:
    """The output folder, verified, or nothing.

    Args:
        entry: what to say of the run in config.json.
        log: the journal's file.

    Raises:
        ConvertAttnError: whatever went wrong, in one sentence.
    """
    infos = student.weights.infos
    check_space(output, sum(info.nbytes for info in infos.values()))
    with whole_or_nothing(output, overwrite) as folder:
        carry_files(student, str(student.config["model_type"]), folder)
        _write_weights(student, trained, folder, progress)
        records = read(log) if log.exists() else []
        if log.exists():
            shutil.copyfile(log, folder / LOG)
        drawn = draw(records, folder / CURVE)
        config = _healed_config(student, entry | {"curve": CURVE if drawn else None})
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        card = write_card(student.card_text() or "", config, output.absolute().name)
        (folder / "README.md").write_text(card, encoding="utf-8")
        verify_folder(folder, student.auto_class, progress)
        expected = Expected(source=student, numbers=cached_by_layer(student))
        with workplace(folder) as work:
            run_folder(
                folder,
                student.auto_class,
                expected=expected,
                subject="nothing was written: the healed model",
                work=work,
                progress=progress,
            )


def _write_weights(student: Source, trained: Trained, folder: Path, progress: Progress) -> None:
    weights, written = student.weights, 0
    writer = ShardWriter(folder, {f: i for f, i in weights.shards().items() if i}, weights.metadata)
    try:
        for tensors in _tensors(student, trained):
            for name, tensor in tensors.items():
                progress("write", written, len(weights.infos))
                written += 1
                if tensor is None:
                    writer.put(name, weights.chunks(name))
                    continue
                dtype = weights.infos[name].dtype
                tensor = tensor.to(DTYPES[dtype])
                if not torch.isfinite(tensor).all():
                    raise ConvertAttnError(f"trained tensor '{name}' has numbers that do not fit {dtype}")
                writer.put(name, [tensor_bytes(tensor)])
        progress("write", len(weights.infos), len(weights.infos))
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def _tensors(student: Source, trained: Trained) -> Iterator[dict[str, Tensor | None]]:
    """All that is stored, by its name there: what was trained, None for what stays as it is."""
    names = student.names

    def learned(parameter: str) -> str | None:
        return next((name for name in (parameter, *names.twins(parameter)) if name in trained.names), None)

    def read(parameter: str) -> Tensor:
        name = learned(parameter)
        return names.read(parameter, student.weights.read) if name is None else trained.read(name)

    yield dict.fromkeys(names.unknown)
    for group in names.groups:
        if any(learned(parameter) is not None for parameter in group.shapes):
            yield {**group.store(read)}
        else:
            yield dict.fromkeys(group.stored)


def _healed_config(student: Source, entry: dict[str, Any]) -> dict[str, Any]:
    """The student's config.json with what is known of the run."""
    config = dict(student.config)
    block = dict(config["convert_attn"])
    block["heal"] = [*block.get("heal", []), entry]
    for name in ("quality", "eval"):  # of the weights before: these are others
        if block.get(name):
            block[f"{name}_before_heal"] = block.pop(name)
    config["convert_attn"] = block
    return config


def describe_run(
    settings: Settings, text: str, teacher: str | None, healed: Healed, command: str | None
) -> dict[str, Any]:
    """Give the entry for config.json."""
    return {
        "version": __version__,
        "stages": [*settings.stages],
        "teacher": teacher,
        "text": text,
        "tokens": healed.tokens,
        "train": settings.learned,
        "goal": goal(settings.stages, settings.lm_weight) if healed.unit else ENCODER_GOAL,
        "unit": healed.unit,
        "selection": {"start": healed.start, "best": healed.best},
        "selection_perplexity": None if healed.perplexity is None else [*healed.perplexity],
        "settings": settings.as_dict(),
        "command": command,
        "versions": versions(),
    }


ENCODER_GOAL = "squared error of the last hidden states, relative to their size"


def goal(stages: Sequence[str], lm_weight: float) -> str:
    """Tell what start and best are."""
    if UPTRAIN in stages:
        return "loss"
    return "KL(original || converted)" + (f" + {lm_weight:g} loss" if lm_weight else "")


def measured_losses(records: list[Record], stage: str, best_step: int) -> tuple[float, float] | None:
    """Give the text's own loss on the selection text: as converted, and at a stage's best step."""
    told = [record for record in records if "selection_loss" in record]  # encoders have none
    before = [r["selection_loss"] for r in told if r["stage"] == START]
    after = [r["selection_loss"] for r in told if r["stage"] == stage and "selection" in r and r["step"] == best_step]
    return (before[0], after[0]) if before and after else None
