"""How long conversions take, side by side with copying the same bytes.

    python -m convert_attn.eval.benchmarks.conversion --gigabytes 1.9 --json conversion.json --png conversion.png

A Llama of random weights is made: bf16, 2048 wide, 32 heads, as many layers as give the size (16 at 1.9 GB). Then, as
processes of their own that take turns: `cp -r`, `--method mean` to GQA-8, the weights-only default to GQA-8 and to
MLA 512 + 64, each with --jobs 1 and 2, mergekit's linear merge of the one model where --mergekit names an interpreter
that has it, and, as start-up, `--method mean`
of a model of a few megabytes, which has everything but the bytes. A first round is not counted. The source is read
before each run, so that it is in memory, and the output of the run before is gone. Measured besides: `--help`, and how
long `inspect` of the source takes until its first line is there, and until all of it is.

Prints a Markdown table and the targets, met or missed; --page writes both with what they were measured on. Rows of
other runs, and of single large layers (`python -m convert_attn.eval.benchmarks.conversion.layers`), join with --with.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from convert_attn.eval.benchmarks.common import result_options
from convert_attn.eval.benchmarks.conversion.processes import Run, first_line, row, run
from convert_attn.eval.benchmarks.conversion.report import (
    COPY,
    DURABLE,
    GLANCE,
    HELP,
    INSPECT,
    LATENT,
    LATENT_2,
    MEAN,
    MERGEKIT,
    START,
    SUBSPACE,
    SUBSPACE_2,
    draw,
    joined,
    markdown,
    page,
)
from convert_attn.eval.benchmarks.memory import random_llama
from convert_attn.eval.measures.environment import environment

_WIDTH, _SMALL_WIDTH = 2048, 256
_SMALL = 0.03  # GB; of a width at which its tables of tokens are small
_GROUPS = ("--to", "gqa", "--groups", "8")
_NO_TEXT = ("--calibration", "none")
_SLOW = (SUBSPACE, SUBSPACE_2, LATENT, LATENT_2, MERGEKIT)  # run --slow-repeats times, never to warm up
_OPTIONS = {
    MEAN: (*_GROUPS, "--method", "mean"),
    SUBSPACE: (*_GROUPS, "--method", "subspace", *_NO_TEXT),
    LATENT: ("--to", "mla", "--rank", "512", "--rope-dim", "64", *_NO_TEXT),
}
_OPTIONS |= {SUBSPACE_2: (*_OPTIONS[SUBSPACE], "--jobs", "2"), LATENT_2: (*_OPTIONS[LATENT], "--jobs", "2")}


def _commands(folder: Path, source_folder: Path, only: Sequence[str], mergekit: Path | None) -> dict[str, list[str]]:
    """What is run, by name: all, or some only; conversions write `folder`/out."""
    random_llama(folder / "small", _SMALL, _SMALL_WIDTH)
    source, small, output = str(source_folder), str(folder / "small"), str(folder / "out")
    ours = [sys.executable, "-m", "convert_attn.convert.cli"]
    found = {COPY: ["cp", "-r", source, output]}
    found[DURABLE] = ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', source, output]
    found[START] = [*ours, small, *_OPTIONS[MEAN][:3], "2", "--method", "mean", "--output", output]
    found |= {name: [*ours, source, *options, "--output", output] for name, options in _OPTIONS.items()}
    found |= {HELP: [*ours, "--help"], GLANCE: [*ours, "inspect", source], INSPECT: [*ours, "inspect", source]}
    if mergekit is not None:
        recipe = folder / "merge.yaml"
        models = [{"model": source, "parameters": {"weight": 1.0}}]
        recipe.write_text(json.dumps({"merge_method": "linear", "dtype": "bfloat16", "models": models}))
        found[MERGEKIT] = [
            str(mergekit),
            "-m",
            "mergekit.scripts.run_yaml",
            str(recipe),
            output,
            "--no-copy-tokenizer",
        ]
    return {name: command for name, command in found.items() if not only or name in only}


def _in_memory(source: Path) -> int:
    """Read the source; its bytes."""
    count = 0
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while piece := file.read(2**20):
                count += len(piece)
    return count


@click.command()
@click.option("--gigabytes", default=1.9, show_default=True, help="Size of the checkpoint to make.")
@click.option(
    "--repeats", default=5, show_default=True, type=click.IntRange(0), help="Counted rounds; 0: only rows --with."
)
@click.option("--warm-up/--no-warm-up", default=True, show_default=True, help="A first round that is not counted.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([COPY, DURABLE, START, *_OPTIONS, HELP, GLANCE, INSPECT, MERGEKIT]),
    help="Run only these.",
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work [default: a temporary folder].")
@click.option(
    "--source", type=click.Path(path_type=Path), help="A checkpoint of 2048 with 32 heads; made there where none is."
)
@click.option("--mergekit", type=click.Path(exists=True, path_type=Path), help="A Python that has mergekit.")
@click.option(
    "--slow-repeats", default=2, show_default=True, type=click.IntRange(1), help="Counted runs of what takes long."
)
@click.option("--note", help="A sentence on the conditions, for the page.")
@click.option("--page", "page_file", type=click.Path(path_type=Path), help="Write the page of results here.")
@result_options("the seconds of each")
def main(
    *,
    gigabytes: float,
    repeats: int,
    warm_up: bool,
    only: Sequence[str],
    folder: Path | None,
    source: Path | None,
    mergekit: Path | None,
    slow_repeats: int,
    note: str | None,
    page_file: Path | None,
    earlier: Sequence[Path],
    json_file: Path | None,
    png: Path | None,
) -> None:
    """Measure the time of conversions."""
    runs = [json.loads(path.read_text()) for path in earlier]
    if not repeats and not runs:
        raise click.UsageError("--repeats 0 measures nothing: give rows of earlier runs --with FILE")
    figures = joined(runs) if runs else {}
    if repeats:
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            source = Path(directory) / "source" if source is None else source
            if not source.exists():
                random_llama(source, gigabytes, _WIDTH)
            commands = _commands(Path(directory), source, only, mergekit)
            rounds = {name: min(repeats, slow_repeats) if name in _SLOW else repeats for name in commands}
            for measured in _measured(commands, source, Path(directory) / "out", rounds, warm_up):
                figures = joined([*runs, measured | {"environment": environment("cpu")}])
                _keep(figures, json_file)  # round by round: a run that is broken off has measured something
    _keep(figures, json_file)
    if png is not None:
        draw(figures, png)
    if page_file is not None:
        page_file.write_text(page(figures, png, note))
    click.echo("\n".join([markdown(figures["rows"]), *figures["targets"]]))


def _keep(figures: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def _measured(
    commands: dict[str, list[str]], source: Path, output: Path, rounds: dict[str, int], warm_up: bool
) -> Iterator[dict[str, Any]]:
    """Run commands in turns: what is known after each counted round."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    order = random.Random(0)
    for turn in range(0 if warm_up else 1, max(rounds.values()) + 1):
        nbytes = 0
        taking = [name for name in commands if turn <= rounds[name] and (turn or name not in _SLOW)]
        for name in order.sample(taking, len(taking)):
            nbytes = _in_memory(source)
            measured = (first_line if name == GLANCE else run)(commands[name])
            shutil.rmtree(output, ignore_errors=True)
            if turn:
                runs[name].append(measured)
            click.echo(f"round {turn}: {name} {measured.wall:.2f} s", err=True)
        if turn:
            yield {"source_bytes": nbytes, "rows": [row(name, found) for name, found in runs.items() if found]}


if __name__ == "__main__":
    main()
