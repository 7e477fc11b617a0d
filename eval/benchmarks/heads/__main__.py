"""Time one decode step of MHA, GQA, MQA and MLA, attention alone and whole models, by stock functions and by ours.

    python -m convert_attn.eval.benchmarks.heads --json heads.json --png heads.png --page heads.md
    python -m convert_attn.eval.benchmarks.heads --device cuda --dtypes bfloat16,float16 \
        --contexts 1024,4096,16384,65536 --batches 1,16,64 --layers 0

All calls take turns in one run. On a GPU MLA is timed by plain products and by the Triton kernel.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from convert_attn.convert.option_types import Numbers
from convert_attn.eval.benchmarks.common import file_options
from convert_attn.eval.benchmarks.decode import device_option, dtypes_option, environment
from convert_attn.eval.benchmarks.heads.attention import Shape, arithmetic_rows, attention_rows
from convert_attn.eval.benchmarks.heads.models import make, model_rows
from convert_attn.eval.benchmarks.heads.report import draw, page

_FILE = click.Path(dir_okay=False, path_type=Path)
_SIZES = {"heads": 32, "head-dim": 128, "groups": 8, "rank": 512, "rope-dim": 64}


def _size_options(command: Any) -> Any:
    for name, default in _SIZES.items():
        command = click.option(f"--{name}", type=click.IntRange(1), default=default, show_default=True)(command)
    return command


@click.command()
@click.option("--contexts", type=Numbers("512,8192", least=1), default="8192", show_default=True, help="Attention.")
@click.option("--batches", type=Numbers("1,16", least=1), default="1", show_default=True, help="Attention.")
@click.option("--model-contexts", type=Numbers("128,512", least=1), default="128,2048,8192", show_default=True)
@click.option(
    "--prompts", type=Numbers("512", least=1), default="128,1024,4096", show_default=True, help="Prefill, in tokens."
)
@click.option("--layers", type=click.IntRange(0), default=1, show_default=True, help="Of whole models; 0: none.")
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True)
@click.option("--note", default="", help="What else the figures depend on: a sentence for the page.")
@click.option("--page", "page_file", type=_FILE, help="Write the page here.")
@dtypes_option
@device_option
@_size_options
@file_options("attention's step times and targets")
def main(
    *,
    contexts: tuple[int, ...],
    batches: tuple[int, ...],
    model_contexts: tuple[int, ...],
    prompts: tuple[int, ...],
    layers: int,
    repeats: int,
    note: str,
    page_file: Path | None,
    dtypes: list[torch.dtype],
    device: torch.device,
    json_file: Path | None,
    png: Path | None,
    **sizes: int,
) -> None:
    """Time decode steps over fewer K/V heads and over a latent, against all heads."""
    transformers.logging.set_verbosity_error()
    shape = Shape(**sizes)
    if shape.heads % shape.groups:
        raise click.UsageError(f"--heads must be a multiple of --groups, got {shape.heads} and {shape.groups}")
    figures: dict[str, Any] = {
        "environment": {name: environment(device, "")[name] for name in ("device", "threads", "torch", "transformers")},
        "shape": asdict(shape),
        "layers": layers,
        "note": note,
        "attention": [],
        "arithmetic": [],
        "steps": [],
        "prefills": [],
    }
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for context in contexts:
            click.echo(f"{name}: attention over {context} tokens", err=True)
            figures["arithmetic"] += arithmetic_rows(shape, context, dtype=dtype, device=device, repeats=repeats)
            for batch in batches:
                figures["attention"] += attention_rows(
                    shape, context, batch, dtype=dtype, device=device, repeats=repeats
                )
        if layers:
            said = f"{name}: a step of whole models behind {model_contexts} tokens, prefill of {prompts}"
            click.echo(said, err=True)
            models = make(shape, layers, max([*model_contexts, *prompts]), dtype, device)
            for part, rows in model_rows(models, model_contexts, prompts, repeats).items():
                figures[part] += rows
    _write(figures, page_file, json_file, png)


def _write(figures: dict[str, Any], page_file: Path | None, json_file: Path | None, png: Path | None) -> None:
    text = page(figures)
    click.echo(text)
    if page_file is not None:
        page_file.write_text(text, encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    if png is not None:
        draw(figures, png)


if __name__ == "__main__":
    main()
