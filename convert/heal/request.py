"""What is settled of a run of `heal` before anything is read or trained: its original, stages, processes and output."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Origin
from convert_attn.convert.errors import UsageError
from convert_attn.convert.heal.state.pair import Pair
from convert_attn.convert.heal.state.settings import DEFAULT_STAGES, DISTILL, LAYERWISE, UPTRAIN, Settings
from convert_attn.convert.planning.provenance import read_provenance

_PATIENCE = timedelta(hours=12)  # of processes that wait while the first one reads the text


def stages_of(pair: Pair, settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Give the stages that a model can be given: an encoder-decoder has none over single blocks.

    Raises:
        UsageError: such a stage was asked for.
    """
    name = pair.student.origin.name
    if settings.train == "gate" and not pair.has_gate:
        raise UsageError(
            f"--train gate: '{name}' has no gate over its layers; `convert-attn MODEL --to mixture-of-layers` makes one"
        )
    if not pair.two_stacks or LAYERWISE not in settings.stages:
        return settings, ()
    if settings.stages != DEFAULT_STAGES:
        raise UsageError(
            f"--stages {','.join(settings.stages)}: '{name}' is an encoder-decoder, whose blocks read two texts "
            f"and are not trained one by one; give --stages {DISTILL}"
        )
    return replace(settings, stages=(DISTILL,)), (
        f"'{name}' is an encoder-decoder: stage {LAYERWISE} is left out, all tokens go to stage {DISTILL}",
    )


def accelerator_of(settings: Settings, cpu: bool) -> Accelerator:
    """Make what places models and exchanges gradients."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # accelerate keeps one state per process, so that the precision of an earlier call would stay
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=cpu,
        mixed_precision=None if settings.mixed_precision == "auto" else settings.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def teacher_of(converted: str, teacher: str | Path | None, settings: Settings) -> Origin | None:
    """Find the original's files, or None where no stage learns from one.

    Raises:
        UsageError: none was given, and the one recorded in the checkpoint was a folder.
    """
    if teacher is not None:
        return resolve(str(teacher))
    if settings.stages == (UPTRAIN,):
        return None
    _, recorded = read_provenance(resolve(converted).folder)
    source, commit = str(recorded.get("source")), recorded.get("source_commit")
    if source.startswith("sample:") or commit:
        return resolve(source, commit, recorded.get("source_subfolder"))
    raise UsageError(f"'{converted}' was converted from the folder '{source}', wherever that is: give it as --teacher")


def default_output(pair: Pair) -> Path:
    """Tell where the result goes: beside the converted folder."""
    folder = pair.student.origin.folder
    return folder.with_name(f"{folder.resolve().name}-healed")
