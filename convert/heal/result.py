"""The healed checkpoint: the converted folder again, with trained tensors in the place of their predecessors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.checkpoint.safetensors_format import DTYPES, tensor_bytes
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.checkpoint.writer import ShardWriter, check_space, whole_or_nothing
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.state.journal import CURVE, LOG, START, Record, draw, read
from convert_attn.convert.heal.state.settings import UPTRAIN, Settings
from convert_attn.convert.planning.provenance import versions
from convert_attn.convert.progress import Progress
from convert_attn.convert.publish.result_config import carry_files
from convert_attn.convert.verification.folder import cached_by_layer
from convert_attn.convert.verification.result import Expected, run_folder, workplace
from convert_attn.convert.verification.stored import verify_folder
from convert_attn.convert.version import __version__

_BEGIN, _END = "<!-- convert-attn heal: begin -->", "<!-- convert-attn heal: end -->"
_NOT_TRAINED = re.compile(
    r"No training followed the conversion\. Only the attention projections differ from the source; every other\s+"
    r"tensor is the same\.\s*"
)
_NOT_MEASURED = re.compile(r"No quality was measured for this card\.\s*?\n")
_AUTO_CLASS = "AutoModelForCausalLM"
_AGAIN = "The same bytes again, with"


@dataclass(frozen=True)
class Healed:
    """What a run made.

    Attributes:
        output: the folder.
        tokens: trained on.
        steps: of the stage over the whole model.
        start, best: nats per token on the selection text, as converted and of the weights that were kept: KL to the
            original (distill; plus lm_weight times the text's own loss) or that loss (uptrain); None where only layers
            were trained.
        perplexity: the same two weights' on the selection text, None likewise.
        warnings: sentences for the user.
    """

    output: Path
    tokens: int
    steps: int
    start: float | None = None
    best: float | None = None
    perplexity: tuple[float, float] | None = None
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
        _write_config(student, entry, folder)
        _write_card(student, entry, drawn, folder, output.absolute().name)
        verify_folder(folder, _AUTO_CLASS, progress)
        expected = Expected(source=student, numbers=cached_by_layer(student))
        with workplace(folder) as work:
            run_folder(folder, _AUTO_CLASS, expected, "nothing was written: the healed model", work, progress)


def _write_weights(student: Source, trained: Trained, folder: Path, progress: Progress) -> None:
    weights = student.weights
    known = {stored: name for name in trained.names for stored in [_stored(name, weights.infos)] if stored}
    writer = ShardWriter(folder, {f: i for f, i in weights.shards().items() if i}, weights.metadata)
    try:
        for done, (name, info) in enumerate(weights.infos.items()):
            progress("write", done, len(weights.infos))
            if name not in known:
                writer.put(name, weights.chunks(name))
                continue
            tensor = trained.read(known[name]).to(DTYPES[info.dtype])
            if not torch.isfinite(tensor).all():
                raise ConvertAttnError(f"trained tensor '{name}' has numbers that do not fit {info.dtype}")
            writer.put(name, [tensor_bytes(tensor)])
        progress("write", len(weights.infos), len(weights.infos))
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def _stored(name: str, present: dict[str, Any]) -> str | None:
    """A parameter's name in the checkpoint: with the base model's prefix or, in one of a bare base model, without."""
    return next((known for known in (name, name.partition(".")[2]) if known in present), None)


def _write_config(student: Source, entry: dict[str, Any], folder: Path) -> None:
    config = dict(student.config)
    block = dict(config["convert_attn"])
    block["heal"] = [*block.get("heal", []), entry]
    if block.get("quality"):  # of the conversion: these weights are others
        block["quality_before_heal"] = block.pop("quality")
    config["convert_attn"] = block
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_run(
    settings: Settings, text: str, teacher: str | None, healed: Healed, command: str | None
) -> dict[str, Any]:
    """The entry for config.json."""
    return {
        "version": __version__,
        "stages": [*settings.stages],
        "teacher": teacher,
        "text": text,
        "tokens": healed.tokens,
        "train": settings.learned,
        "selection": {"start": healed.start, "best": healed.best},
        "selection_perplexity": None if healed.perplexity is None else [*healed.perplexity],
        "settings": settings.as_dict(),
        "command": command,
        "versions": versions(),
    }


def _card_lines(entry: dict[str, Any], drawn: bool) -> Iterator[str]:
    stages = ", then ".join(entry["stages"])
    learned = "all parameters" if entry["train"] == "all" else "the attention's parameters"
    teacher = f", teacher `{entry['teacher']}`" if entry["teacher"] else ""
    yield f"Trained after the conversion by `convert-attn heal` {entry['version']}: {stages}; {learned};"
    yield f"{entry['tokens']:,} tokens of {entry['text']}{teacher}."
    if entry["selection"]["best"] is not None:
        before, after = entry["selection"]["start"], entry["selection"]["best"]
        what = goal(entry["stages"], entry["settings"]["lm_weight"]).replace("|", "\\|")
        low, high = entry["selection_perplexity"]
        yield ""
        yield "| on selection text, not trained on | before | after |"
        yield "|---|---|---|"
        yield f"| {what}, nats per token | {before:.4f} | {after:.4f} |"
        yield f"| perplexity | {low:.2f} | {high:.2f} |"
    if drawn:
        yield ""
        yield f"![loss]({CURVE})"


def goal(stages: Sequence[str], lm_weight: float) -> str:
    """What start and best are."""
    if UPTRAIN in stages:
        return "loss"
    return "KL(original || converted)" + (f" + {lm_weight:g} loss" if lm_weight else "")


def _retold(text: str, before: str, after: str, entry: dict[str, Any]) -> str:
    """The card of the conversion with what is no longer so changed."""
    text = _NOT_TRAINED.sub("", text)
    if entry["selection"]["best"] is not None:
        text = _NOT_MEASURED.sub("", text)
    text = text.replace("## Quality\n\nWhen it was made, on", "## Quality before it was healed\n\nAs converted, on")
    text = text.replace(_AGAIN, "The same bytes as before the training, with")
    return text.replace(f"\n# {before}\n", f"\n# {after}\n").replace(f'("./{before}"', f'("./{after}"')


def _write_card(student: Source, entry: dict[str, Any], drawn: bool, folder: Path, output: str) -> None:
    """The student's card with a section on training, in the place of the sentence that there was none."""
    text = _retold(student.card_text() or "", student.origin.folder.resolve().name, output, entry)
    text = re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n?", "", text, flags=re.DOTALL).rstrip()
    body = "\n".join([_BEGIN, "", "## Healed", "", *_card_lines(entry, drawn), "", _END, ""])
    (folder / "README.md").write_text(f"{text}\n\n{body}".lstrip(), encoding="utf-8")


def measured_losses(records: list[Record], stage: str, best_step: int) -> tuple[float, float] | None:
    """The text's own loss on the selection text: as converted, and at a stage's best step."""
    before = [r["selection_loss"] for r in records if r["stage"] == START]
    after = [
        r["selection_loss"] for r in records if r["stage"] == stage and "selection" in r and r["step"] == best_step
    ]
    return (before[0], after[0]) if before and after else None
