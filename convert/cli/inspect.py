"""`convert-attn inspect`: what a checkpoint is, what it can become, who serves it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from convert_attn.convert.cli.quick_imports import quick_imports
from convert_attn.convert.errors import UsageError
from convert_attn.convert.inspection.engine_name import EngineName
from convert_attn.convert.inspection.glance import glance


@click.command()
@click.argument("model", required=False)
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--subfolder", metavar="DIR", help="Where below MODEL the checkpoint is.")
@click.option("--serving", "engines", is_flag=True, help="Instead: which serving engines load MODEL as it is.")
@click.option(
    "--for",
    "engine",
    type=EngineName(),
    help="Only what this engine serves by a class of its own with a small cache; with --serving: only this one.",
)
@click.option("--families", "every", is_flag=True, help="Instead: what every known family can become; without MODEL.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect(
    *,
    model: str | None,
    revision: str | None,
    subfolder: str | None,
    engines: bool,
    engine: str | None,
    every: bool,
    as_json: bool,
) -> None:
    """Show what MODEL is and what it can become, from config and headers only."""
    if every:
        if model is not None or engines or engine is not None:
            raise UsageError("--families is about all models: drop MODEL, --serving and --for")
        _show_families(as_json)
        return
    if model is None:
        raise click.MissingParameter(ctx=click.get_current_context(), param_hint="'MODEL'", param_type="argument")
    if engines:
        _show_serving(model, revision, subfolder, engine, as_json)
        return
    if not as_json and engine is None:
        _glance(model, subfolder)
    with quick_imports():
        from convert_attn.convert.cli.report import inspection_tables, warning_lines
        from convert_attn.convert.inspection.inspection import inspect as look

    found = look(model, revision, subfolder, engine)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    for table in inspection_tables(found):
        Console().print(table)
    for line in warning_lines(found.warnings):
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _glance(model: str, subfolder: str | None) -> None:
    """What the files of a local folder say, at once: the class, which is asked next, takes seconds to be imported."""
    said = glance(Path(model).expanduser() / (subfolder or ""))
    if said is not None:
        line = f"{said} (read from config.json and headers; its class is asked next)"
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _show_families(as_json: bool) -> None:
    """What each family becomes, and which are not converted."""
    with quick_imports():
        from convert_attn.convert.cli.report import families_tables
        from convert_attn.convert.inspection.families import as_dict

    if as_json:
        click.echo(json.dumps(as_dict(), indent=2))
        return
    for table in families_tables():
        Console().print(table)


def _show_serving(model: str, revision: str | None, subfolder: str | None, engine: str | None, as_json: bool) -> None:
    """What engines make of a checkpoint."""
    with quick_imports():
        from convert_attn.convert.cli.report import serving_table
        from convert_attn.convert.inspection.serving import as_dict, serving

    model_type, rules = serving(model, revision, subfolder, engine)
    if as_json:
        click.echo(json.dumps({"model_type": model_type, "serving": [as_dict(rule) for rule in rules]}, indent=2))
        return
    Console().print(serving_table(model_type, rules))
