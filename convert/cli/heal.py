"""`convert-attn heal`: options -> heal -> print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from convert_attn.convert.cli.bars import noted_bars
from convert_attn.convert.cli.quick_imports import quick_imports
from convert_attn.convert.option_types import Count, Numbers, ShareOrAuto, Size, Words
from convert_attn.convert.progress import Progress

if TYPE_CHECKING:
    from convert_attn.convert.heal.state.journal import Record, Show


@click.command("heal")
@click.argument("converted", type=click.Path(path_type=Path))
@click.option(
    "--teacher",
    metavar="MODEL",
    help="The original [default: the one recorded in CONVERTED]. Hub id, folder or sample:NAME.",
)
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="SRC",
    help="Text to train on: a .txt, .jsonl or .parquet file, a .npy file of windows of token ids, a Hub dataset "
    "(name:config:split) or sample; for an encoder-decoder with source and target in each row. Given several times, "
    "windows are drawn from all of them in turn.",
)
@click.option(
    "--data-weights",
    type=Numbers("3,1"),
    metavar="N,...",
    help="Shares of several --data, as 3,1 [default: equal ones].",
)
@click.option("--exclude", metavar="SRC", help="Text to be measured on later: what of --data is in it too is left out.")
@click.option("--tokens", type=Count(), required=True, help="To train on, all stages together: 5M, 250K.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to make [default: CONVERTED-healed].")
@click.option("--resume", is_flag=True, help="Go on with a run to the same output that was broken off.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, or an unfinished run to it.")
@click.option(
    "--stages",
    type=Words(),
    default="layerwise,distill",
    show_default=True,
    help="layerwise: each block against the original's; distill: the whole against the original; uptrain: on the "
    "text alone.",
)
@click.option(
    "--layer-share",
    type=ShareOrAuto(),
    default="auto",
    show_default=True,
    help="Of the tokens, for layerwise; auto: half of them, but where none of the first three blocks loses 5 % of its "
    "error, the stage ends there and leaves what the others would have read to the next one.",
)
@click.option(
    "--layer-inputs",
    type=click.Choice(["student", "original"]),
    default="student",
    show_default=True,
    help="What blocks read in layerwise; with original they know nothing of each other.",
)
@click.option(
    "--train",
    type=click.Choice(["attention", "gate", "all"]),
    default="all",
    show_default=True,
    help="What learns; gate: that of a mixture of layers (experimental), with --stages uptrain.",
)
@click.option("--lora-rank", type=int, metavar="R", help="Low-rank adapters on the attention instead (needs peft).")
@click.option(
    "--lr", type=float, metavar="F", help="Highest learning rate [default: 0.05 / hidden size, less near the original]."
)
@click.option(
    "--layer-lr",
    type=float,
    metavar="F",
    help="The same for layerwise [default: 0.25 / hidden size, less where that fails].",
)
@click.option(
    "--batch-size",
    type=int,
    metavar="N",
    help="Windows per step, over all processes [default: 4096 tokens, at least 8 windows; fewer where --tokens would "
    "not last for 250 steps].",
)
@click.option(
    "--micro-batch-size",
    type=int,
    metavar="N",
    help="Windows per forward call and process [default: as many as the memory holds].",
)
@click.option(
    "--seq-len",
    type=int,
    metavar="N",
    help="Tokens per window [default: what the model reads, at most 2048], or of each side of pairs [default: the "
    "longest].",
)
@click.option("--warmup", type=float, default=0.1, show_default=True, help="Share of the steps.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True)
@click.option("--max-grad-norm", type=float, default=1.0, show_default=True, help="Gradients are clipped to it.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="distill: of both distributions.")
@click.option(
    "--hidden-weight", type=float, default=0.0, show_default=True, help="distill: weight of the error of hidden states."
)
@click.option("--lm-weight", type=float, default=0.0, show_default=True, help="distill: weight of the text's own loss.")
@click.option(
    "--selection-tokens",
    type=Count(),
    default="16384",
    show_default=True,
    help="Of the text, kept apart to choose the best weights on.",
)
@click.option(
    "--eval-every",
    type=int,
    metavar="N",
    help="Steps between measurements on them [default: a twentieth of the run, more of a short one].",
)
@click.option(
    "--save-every", type=int, metavar="N", help="Steps between states to resume from [default: as --eval-every]."
)
@click.option(
    "--patience",
    type=int,
    metavar="N",
    help="Measurements without a better one before it stops [default: it goes on to the end].",
)
@click.option(
    "--mixed-precision",
    type=click.Choice(["auto", "no", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="auto: as `accelerate launch` or its config says, else no.",
)
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Compute activations again: less memory, more time. Done by itself where they would take most of it.",
)
@click.option(
    "--torch-compile",
    is_flag=True,
    help="Compile the blocks of both models for the stage over the whole: a minute first, then faster steps. Needs a "
    "C++ compiler on a CPU.",
)
@click.option(
    "--max-memory",
    type=Size(),
    help="That a process may take, as 4G: the micro batch is chosen by it, and a run that cannot keep to it is refused "
    "[default: what is free].",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of which windows come when."
)
@click.option("--cpu", is_flag=True, help="Stay on the CPU where there is an accelerator.")
@click.option(
    "--tensorboard", type=click.Path(path_type=Path), metavar="DIR", help="Write TensorBoard's files there too."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def heal(converted: Path, as_json: bool, **options: Any) -> None:
    """Train CONVERTED towards its original: most of what the conversion lost comes back.

    Runs on one process, or unchanged on many: accelerate launch -m convert_attn.convert.cli heal ...
    """
    with quick_imports():
        from convert_attn.convert.heal.result import ENCODER_GOAL, goal
        from convert_attn.convert.heal.run import heal as run
        from convert_attn.convert.planning.provenance import typed_command

    first = int(os.environ.get("RANK", "0")) == 0
    console = Console(stderr=as_json)
    with _live(console, quiet=not first) as (progress, show):
        healed = run(
            str(converted),
            progress=progress,
            show=show,
            command=typed_command(sys.argv[1:]),
            **options,
        )
    if not first:
        return
    if as_json:
        click.echo(json.dumps(asdict(healed) | {"output": str(healed.output)}))
        return
    lines = [*healed.warnings]
    if healed.start is not None and healed.best is not None:
        what = goal(options["stages"], options["lm_weight"]) if healed.unit else ENCODER_GOAL
        lines.append(f"On selection text, {what}: {healed.start:.4f} -> {healed.best:.4f} {healed.unit}".rstrip() + ".")
    if healed.perplexity is not None:
        lines.append(f"Perplexity there: {healed.perplexity[0]:.2f} -> {healed.perplexity[1]:.2f}.")
    lines.append(f"{healed.tokens:,} tokens; the healed checkpoint is in {healed.output}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _live(console: Console, quiet: bool) -> Iterator[tuple[Progress, Show]]:
    """A bar per stage with the figures of its last step beside it: the callables for progress and for records."""
    from rich.progress import TextColumn, TimeRemainingColumn

    with noted_bars(console, quiet, TimeRemainingColumn(), TextColumn("{task.fields[note]}")) as (advance, note):

        def show(record: Record) -> None:
            figures = _figures(record)
            told = record.get("memory") or record.get("stopped")
            if told and not quiet:
                console.print(told, markup=False, highlight=False, soft_wrap=True)
            elif figures and not quiet and not console.is_terminal and "after" in record:  # a log has no bars
                console.print(f"{record['stage']}: {figures}", markup=False, highlight=False, soft_wrap=True)
            if figures:
                note(record["stage"], figures)

        yield advance, show


def _figures(record: Record) -> str:
    """A record in a few words, "" for measurements, which come between two steps."""
    if "after" in record:
        place = f"block {record['step'] + 1} of {record['blocks']}"
        return f"{place}  error {record['before']:.4f} -> {record['after']:.4f}"
    if "loss" not in record:
        return ""
    kl = f"  KL {record['kl']:.4f}" if "kl" in record else ""
    return f"loss {record['loss']:.4f}{kl}  {record['tokens_per_second']:,.0f} tokens/s"
