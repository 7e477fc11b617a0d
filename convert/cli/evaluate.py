"""`convert-attn eval`: options -> evaluate -> print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from convert_attn.convert.cli.bars import progress_bars
from convert_attn.convert.cli.quick_imports import quick_imports
from convert_attn.convert.option_types import Numbers


@click.command("eval")
@click.argument("original")
@click.argument("converted", nargs=-1, required=True)
@click.option(
    "--text",
    help="Text file (.txt, .jsonl, .parquet) or name:config:split of a Hub dataset; for an encoder-decoder with source "
    "and target in each row.",
)
@click.option("--window", type=int, metavar="N", help="Tokens per window [default: what all read, at most 2048].")
@click.option("--max-tokens", type=click.IntRange(1), default=65536, show_default=True, help="Of the text, at most.")
@click.option("--tasks", help="Tasks, groups or YAML files of lm-eval, with commas between.")
@click.option(
    "--include-path",
    type=click.Path(path_type=Path),
    help="Folder with YAML tasks of your own (lm-eval runs the code they name).",
)
@click.option("--limit", type=float, metavar="N", help="Documents of each task, below 1 a share of them.")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples before each question [default: the task's].")
@click.option(
    "--task-batch-size", type=click.IntRange(1), metavar="N", help="Sequences of a task at once [default: what fits]."
)
@click.option(
    "--contexts",
    type=Numbers("512,2048", distinct=True),
    help="For speed [default: of 512,2048,8192 what all can read].",
)
@click.option("--batch-sizes", type=Numbers("1,8", distinct=True), default=(1,), help="For speed [default: 1].")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Of every timed call.")
@click.option("--no-speed", is_flag=True, help="Leave out time and peak memory.")
@click.option("--no-quality", is_flag=True, help="Leave out what is measured on the text.")
@click.option(
    "--scale", metavar="NAME[:LAYERS]", help="Time random weights at a published shape instead, e.g. llama-2-7b:4."
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the reports [default: ./eval-<original>].")
@click.option("--update-card", is_flag=True, help="Write the results into the conversions' README.md too.")
@click.option("--device", default="auto", show_default=True, help="auto: cuda where there is one.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto: float32 on a CPU, else the original's.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run the code that a model brings (not needed for ours).")
@click.option("--overwrite", is_flag=True, help="Replace an evaluation with other settings in the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def evaluate(
    *,
    original: str,
    converted: tuple[str, ...],
    tasks: str | None,
    no_speed: bool,
    no_quality: bool,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare CONVERTED models with their ORIGINAL: quality lost, speed and memory gained.

    Writes eval.json, eval.md, eval.png and eval.html. Parts that are measured are kept there: after an interruption
    the same command goes on where it stopped.
    """
    with quick_imports():
        from convert_attn.convert.checkpoint.resolve import resolve
        from convert_attn.convert.planning.provenance import typed_command
        from convert_attn.eval.results.report import sections, verdict
        from convert_attn.eval.run import evaluate as run

    folder = output or Path(f"eval-{resolve(original, weights=False).short_name}")
    console = Console(stderr=as_json)
    try:
        with progress_bars(console) as advance:
            result = run(
                original,
                converted,
                tasks=[task.strip() for task in (tasks or "").split(",") if task.strip()],
                speed=not no_speed,
                quality=not no_quality,
                output=folder,
                progress=advance,
                command=typed_command(sys.argv[1:]),
                **options,
            )
    except KeyboardInterrupt:
        click.echo(f"Interrupted: what was finished is in {folder}; the same command goes on from there.", err=True)
        raise
    if as_json:
        click.echo(json.dumps(result.document))
        return
    made = sections(result.document)
    for section in [section for section in made if section.title in ("Overview", "Tasks")]:
        table = Table(title=section.title)
        for name in section.header:
            table.add_column(name, overflow="fold")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
        console.print(section.note, markup=False, highlight=False)
    said = [*verdict(result.document), *result.notes]
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Reports: {', '.join(map(str, result.files.values()))}", markup=False, highlight=False, soft_wrap=True
    )
