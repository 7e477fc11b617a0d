"""The command line: options -> plan -> run -> print. No tensors here."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
from rich.console import Console
from rich.table import Table

from convert_attn.convert.cli.bars import progress_bars
from convert_attn.convert.cli.evaluate import evaluate
from convert_attn.convert.cli.heal import heal
from convert_attn.convert.cli.inspect import inspect
from convert_attn.convert.cli.quick_imports import quick_imports
from convert_attn.convert.errors import ConvertAttnError, UsageError, first_line
from convert_attn.convert.inspection.engine_name import EngineName
from convert_attn.convert.option_types import ByLayer, Count, Share
from convert_attn.convert.verification.process import ISOLATED
from convert_attn.convert.version import __version__

_TRACEBACK = "CONVERT_ATTN_TRACEBACK"  # in the environment: also show where a failure comes from


class _ModelFirst(click.Group):
    """A first word that is no subcommand is the model to convert."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["convert", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ModelFirst, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="convert-attn")
def cli() -> None:
    """Convert pretrained multi-head attention checkpoints to GQA, MQA or MLA.

    `convert-attn MODEL --to gqa --groups 4` is short for `convert-attn convert MODEL ...`. MODEL is a Hub id, a local
    folder, or a bundled sample: sample:gpt2, sample:llama.
    """
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.set_verbosity_error()
    else:  # a command needs it, --help and the first line of `inspect` do not
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@cli.command()
@click.argument("model")
@click.option(
    "--to",
    type=click.Choice(["gqa", "mqa", "mla", "mixture-of-layers", "latent-sequence"]),
    required=True,
    help="What to make of it; the last two are experimental.",
)
@click.option(
    "--groups", type=ByLayer(), metavar="N", help="GQA: number of K/V heads to keep; with commas, one for each layer."
)
@click.option("--cache-ratio", type=Share(), help="Instead of sizes: share of the cache to keep (0.25 or 1/4).")
@click.option(
    "--rank", type=ByLayer(), metavar="R", help="MLA: size of the latent (kv_lora_rank); or one for each layer."
)
@click.option(
    "--rope-dim", type=ByLayer(), metavar="D", help="MLA on RoPE models: size of the rotary key (qk_rope_head_dim)."
)
@click.option(
    "--slots",
    type=int,
    metavar="N",
    help="latent-sequence, and MLA (experimental there too): slots that hold what has left the window of the last N.",
)
@click.option(
    "--latent-norm",
    is_flag=True,
    help="MLA: an RMSNorm on the latent, as in DeepSeek, for training afterwards. It changes what the model computes: "
    "tokens whose latent is not of typical size are rescaled.",
)
@click.option("--method", default="subspace", show_default=True, help="How; see `convert-attn methods`.")
@click.option(
    "--calibration",
    metavar="TEXT",
    default="auto",
    show_default=True,
    help="Text to fit on: a .txt, .jsonl or .parquet file, a Hub dataset (name:config:split), auto (a general text in "
    "this package), self (the model writes its own), sample (Python, for the bundled samples) or none (from the "
    "weights alone, which ruins real models). For an encoder-decoder rows have source and target.",
)
@click.option(
    "--calibration-tokens", type=Count(), help="At most this many [default: 131072; auto: 32768; self: 16384]."
)
@click.option(
    "--refit",
    type=click.Choice(["attention", "mlp"]),
    is_flag=False,
    flag_value="attention",
    help="Solve the attention anew on the text, layer by layer [default: as the method does]; mlp: the projection that "
    "ends each MLP too, which changes tensors outside attention.",
)
@click.option("--no-refit", is_flag=True, help="Leave the attention as the method made it.")
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Compare original and result on held-out text at the end: perplexity, KL, top-1 agreement.",
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "native", "custom"]),
    default="auto",
    show_default=True,
    help="native: only classes that transformers ships; custom: our modeling file; auto: native where one fits.",
)
@click.option(
    "--for",
    "engine",
    type=EngineName(),
    help="Sizes and layout that this engine takes; refused where there are none (see `inspect --serving`).",
)
@click.option(
    "--arch-like",
    metavar="FAMILY",
    help="Read a MODEL of an unknown model type as one of this family; the check by running it decides.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder to make [default: ./<name>-gqa4, -mqa].")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the written weights; auto keeps the source's.",
)
@click.option("--device", default="cpu", show_default=True, help="Where the arithmetic runs, e.g. cuda.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Layers converted at once, where no text is read; each takes the memory of a layer and of its arithmetic.",
)
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--subfolder", metavar="DIR", help="Where below MODEL the checkpoint is.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="For methods that draw random numbers.",
)
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Accept a source that names code of its own. Weights are read as data all the same; the tokenizer's code "
    "goes with the result and is run when that is checked; the class's is run where transformers has none.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output folder.")
@click.option("--push", "repo", metavar="REPO", help="Put the result on the Hub when it is done.")
@click.option("--private", is_flag=True, help="With --push: make the repository private.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; read no weights, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def convert(
    *,
    model: str,
    refit: Literal["attention", "mlp"] | None,
    no_refit: bool,
    repo: str | None,
    private: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert MODEL and write a checkpoint folder."""
    if private and repo is None:
        raise UsageError("--private is for --push REPO: drop it")
    if not dry_run:
        ISOLATED.start()  # it imports its libraries while this process imports the same
    with quick_imports():
        from convert_attn.convert.cli.report import plan_dict, plan_table, summary_lines, warning_lines
        from convert_attn.convert.conversion import api

    if repo is not None:
        from convert_attn.convert.publish.push import check_login

        check_login(repo)  # before hours of work, not after them
    plan = api.plan(model, **options, refit=_refit(refit, no_refit))
    console = Console(stderr=as_json)
    if not as_json:
        console.print(plan_table(plan))
    if dry_run:
        from convert_attn.convert.checkpoint.writer import check_output

        check_output(plan.output, plan.request.overwrite)
        if as_json:
            click.echo(json.dumps(plan_dict(plan) | {"dry_run": True}, indent=2))
        else:
            said = [*warning_lines(plan.warnings), "Dry run: nothing was written."]
            console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
        return
    with progress_bars(console) as advance:
        result = api.execute(plan, advance)
    if not as_json:
        console.print("\n".join(summary_lines(result)), markup=False, highlight=False, soft_wrap=True)
    pushed = {} if repo is None else {"pushed": _push_made(plan.output, repo, as_json, private=private)}
    if as_json:
        made = plan_dict(result.plan, result.made)
        made |= {"weights_bytes": result.nbytes, "warnings": list(result.warnings)}
        click.echo(json.dumps(made | pushed, indent=2))


def _refit(asked: Literal["attention", "mlp"] | None, none: bool) -> bool | Literal["mlp"] | None:
    """As `Request.refit` has it.

    Raises:
        UsageError: both were given.
    """
    if none and asked is not None:
        raise UsageError("--refit and --no-refit say the opposite: give one of them")
    return False if none else True if asked == "attention" else asked


def _push_made(folder: Path, repo: str, as_json: bool, **options: Any) -> dict[str, Any]:
    """Push what was just made, and say that it is there where that fails."""
    try:
        return _push(folder, repo, as_json, **options)
    except UsageError:
        raise
    except ConvertAttnError as error:
        again = f"the conversion is in '{folder}': `convert-attn push {folder} {repo}` tries again"
        raise ConvertAttnError(f"{error}; {again}") from None


def _push(folder: Path, repo: str, as_json: bool, **options: Any) -> dict[str, Any]:
    """Push a folder and say where it is; as a dict for --json."""
    from convert_attn.convert.publish.push import push as send

    pushed = send(folder, repo, **options)
    if not as_json:
        click.echo(
            f"{pushed.files} files ({pushed.nbytes / 1e6:,.1f} MB) are at {pushed.url} as commit {pushed.commit}"
        )
    return asdict(pushed)


@cli.command()
@click.argument("model", metavar="DIR")
@click.option("--against", metavar="SOURCE", help="What DIR was made from: all but attention must be the same.")
@click.option("--trust-remote-code", is_flag=True, help="Run code in DIR that is not of this version of convert-attn.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def verify(model: str, against: str | None, trust_remote_code: bool, as_json: bool) -> None:
    """Run DIR in the installed transformers and check that it does what its files say.

    Its Auto class loads it in a process of its own, where convert-attn cannot be imported: decoding with and without a
    cache, a padded batch, the cache's size, attention against its weights, the stored dtype, the tokenizer.
    """
    with quick_imports():
        from convert_attn.convert.cli.report import verified_lines
        from convert_attn.convert.verification.folder import verify as run

    console = Console(stderr=True)
    with progress_bars(console) as advance:
        found = run(model, against, trust_remote_code=trust_remote_code, progress=advance)
    if as_json:
        click.echo(json.dumps({"model": model, **asdict(found)}, indent=2))
        return
    click.echo("\n".join(verified_lines(model, found)))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--overwrite", is_flag=True, help="Replace a model there that convert-attn did not make.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run code in FOLDER that is not of this version of convert-attn."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def push(folder: Path, repo: str, as_json: bool, **options: Any) -> None:
    """Verify a converted FOLDER and put it into REPO on the Hub, in one commit."""
    pushed = _push(folder, repo, as_json, **options)
    if as_json:
        click.echo(json.dumps(pushed, indent=2))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def methods(as_json: bool) -> None:
    """List the conversion methods."""
    from convert_attn.convert.methods import DEFAULT
    from convert_attn.convert.methods import methods as known

    rows = [
        {
            "name": method.name,
            "default": method.name == DEFAULT,
            "targets": list(method.targets),
            "calibration": method.calibration,
            "summary": method.summary,
            "source": method.source,
        }
        for method in known().values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("method", "targets", "calibration", "what it does", "source")
    for row in rows:
        name = f"{row['name']} (default)" if row["default"] else str(row["name"])
        targets = ", ".join(known()[str(row["name"])].targets)
        table.add_row(name, targets, str(row["calibration"]), str(row["summary"]), str(row["source"]))
    Console().print(table)


@cli.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
def sample(name: str, folder: Path) -> None:
    """Copy the bundled sample NAME into FOLDER."""
    from convert_attn.convert.samples import SAMPLES, sample_path

    if name not in SAMPLES:
        raise UsageError(f"sample '{name}' is not known; choose one of {', '.join(SAMPLES)}")
    if folder.exists():
        raise UsageError(f"'{folder}' exists; give a folder that does not")
    try:
        shutil.copytree(sample_path(name), folder)
    except OSError as error:
        raise ConvertAttnError(f"cannot write '{folder}': {error.strerror or error}") from None
    click.echo(f"sample '{name}' is in {folder}")


cli.add_command(evaluate)
cli.add_command(inspect)
cli.add_command(heal)


def main() -> None:
    """Console entry: one sentence and the right exit code for everything that can go wrong."""
    try:
        code = cli.main(sys.argv[1:] or ["--help"], prog_name="convert-attn", standalone_mode=False)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # Rust panics of libraries are no Exception
        if os.environ.get(_TRACEBACK):
            traceback.print_exc()
        _fail(*_sentence(error))
    sys.exit(code)  # --help and --version hand back 0, a command None


def _sentence(error: BaseException) -> tuple[str, int]:
    """What to say of a failure, and the exit code."""
    if isinstance(error, ConvertAttnError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return _usage_sentence(error), error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", 130
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    said = first_line(error)
    kind = type(error).__name__
    what = kind if said == kind else f"{kind}: {said}"
    return f"{what} (a failure that convert-attn does not know; {_TRACEBACK}=1 shows where it comes from)", 1


def _fail(message: str, code: int) -> NoReturn:
    if int(os.environ.get("RANK", "0")):  # of several processes the first one speaks
        sys.exit(code)
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _usage_sentence(error: click.ClickException) -> str:
    """What click found wrong, and where the options are listed."""
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    return message if context is None else f"{message}; see `{context.command_path} --help`"
