"""Conversions of an encoder to fewer K/V heads: how alike the embeddings of sentences stay.

    python -m convert_attn.eval.benchmarks.encoder FOLDER --groups 6 --groups 4 --json rows.json --target 6=0.892

The embedding of a sentence is the mean of the last hidden states of its tokens, in float32, in batches with padding, by
the class that AutoModel loads. Each row is one conversion of FOLDER: groups, method, and the text that it was fitted on
(none; auto: the package's general text; own: text of the kind that is measured on, --own FILE or the other half of the
package's held-out text). Sentences are 256 of the package's held-out text, or the lines of --sentences FILE. Errors are
standard errors over sentences.

Prints a Markdown table; --json FILE keeps the numbers after every row.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

from convert_attn.convert.conversion.api import convert
from convert_attn.convert.fitting.measure import estimate
from convert_attn.convert.progress import no_bars
from convert_attn.convert.samples import general_heldout_text
from convert_attn.convert.text.documents import split_documents
from convert_attn.eval.benchmarks.common import json_option
from convert_attn.eval.measures.environment import environment

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_END = re.compile(r"(?<=[.!?])\s+")
_SHORTEST, _LONGEST = 40, 300  # characters of a sentence
_BATCH = 32
WAYS = ("mean:none", "subspace:none", "subspace:auto", "subspace:own")


@dataclass(frozen=True, kw_only=True)
class EncoderRow:
    """One conversion.

    Attributes:
        groups: K/V heads of each layer.
        calibration: "none", "auto" or "own".
        tokens: of that text.
        cosine, error: mean similarity of a sentence's embeddings and its standard error.
        least: that of the sentence on which they differ most.
        parameters: how many the result has.
        seconds: of the conversion, its checks included.
    """

    groups: int
    method: str
    calibration: str
    tokens: int
    cosine: float
    error: float
    least: float
    parameters: int
    seconds: float


def sentences_of(documents: list[str]) -> list[str]:
    """List the sentences of some documents that are neither very short nor very long."""
    parts = (" ".join(part.split()) for text in documents for part in _END.split(text))
    return [part for part in parts if _SHORTEST <= len(part) <= _LONGEST]


def spread(sentences: list[str], count: int) -> list[str]:
    """Choose so many from all over a list."""
    chosen = torch.linspace(0, len(sentences) - 1, min(count, len(sentences))).long().tolist()
    return [sentences[number] for number in chosen]


@torch.inference_mode()
def embeddings(folder: Path, sentences: list[str]) -> Tensor:
    """Give mean of the last hidden states of each sentence: [N, D]."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for begin in range(0, len(sentences), _BATCH):
        batch = tokenizer(sentences[begin : begin + _BATCH], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None].float()
        found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


@dataclass(frozen=True)
class EncoderBench:
    """What all rows have in common.

    Attributes:
        own: the text that "own" means.
        original: [N, D] embeddings of the sentences.
    """

    folder: Path
    own: Path
    sentences: list[str]
    original: Tensor


def measure(bench: EncoderBench, groups: int, way: str, tokens: int | None) -> EncoderRow:
    """Convert in one way, METHOD:TEXT, and compare.

    Args:
        tokens: of calibration text at most; None: the default.
    """
    method, _, calibration = way.partition(":")
    with tempfile.TemporaryDirectory() as place, no_bars():
        start = time.perf_counter()
        made = convert(
            bench.folder,
            to="gqa",
            groups=groups,
            method=method,
            calibration=str(bench.own) if calibration == "own" else calibration,
            calibration_tokens=None if calibration == "none" else tokens,
            output=Path(place) / "result",
            measure=False,
        )
        seconds = time.perf_counter() - start
        alike = cosine_similarity(bench.original.double(), embeddings(made.output, bench.sentences).double(), dim=-1)
    mean = estimate(alike.tolist())
    return EncoderRow(
        groups=groups,
        method=method,
        calibration=calibration,
        tokens=made.made.tokens,
        cosine=mean.mean,
        error=mean.error,
        least=float(alike.min()),
        parameters=made.plan.parameters[1],
        seconds=seconds,
    )


def markdown(rows: list[EncoderRow]) -> Iterator[str]:
    """Give the rows as a table."""
    yield "| groups | method | text | tokens | cosine | least | parameters | time |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row.groups} | {row.method} | {row.calibration} | {row.tokens:,} | "
            f"{row.cosine:.4f} ± {row.error:.4f} | {row.least:.3f} | {row.parameters:,} | {row.seconds:.0f} s |"
        )


def verdicts(rows: list[EncoderRow], targets: tuple[str, ...]) -> Iterator[str]:
    """Say of each target (groups=cosine) whether the best row of that size is better."""
    for target in targets:
        groups, _, wanted = target.partition("=")
        best = max((row for row in rows if row.groups == int(groups)), key=lambda row: row.cosine, default=None)
        if best is None:
            yield f"- {groups} groups: better than {wanted} was not tried"
            continue
        word = "met" if best.cosine > float(wanted) else "missed"
        how = f"{best.method}, text {best.calibration}"
        yield f"- {groups} groups: better than {wanted} is {word} by {abs(best.cosine - float(wanted)):.4f} ({how})"


@click.command(help=__doc__)
@click.argument("folder", type=_FOLDER)
@click.option("--groups", type=int, multiple=True, required=True, help="K/V heads; may be given several times.")
@click.option("--sentences", "sentence_file", type=_FILE, help="Sentences to measure on, one a line.")
@click.option("--count", default=256, show_default=True, help="How many of them.")
@click.option("--own", "own_file", type=_FILE, help="Text of the same kind, to fit on.")
@click.option("--way", "ways", type=click.Choice(WAYS), multiple=True, default=WAYS, help="METHOD:TEXT; default: all.")
@click.option("--tokens", type=int, help="Of calibration text at most; without: as a conversion has it.")
@click.option("--target", "targets", multiple=True, metavar="G=F", help="A similarity that the best row is to exceed.")
@json_option
def main(
    folder: Path,
    groups: tuple[int, ...],
    sentence_file: Path | None,
    count: int,
    own_file: Path | None,
    **options: Any,
) -> None:
    documents = split_documents(general_heldout_text())
    lines = sentences_of(documents[::2])
    if sentence_file is not None:
        lines = [line for line in sentence_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    sentences, rows = spread(lines, count), list[EncoderRow]()
    with tempfile.TemporaryDirectory() as place:
        other = Path(place) / "own.txt"
        other.write_text("\n<|endoftext|>\n".join(documents[1::2]), encoding="utf-8")
        bench = EncoderBench(folder, own_file or other, sentences, embeddings(folder, sentences))
        for number, way in ((number, way) for number in groups for way in options["ways"]):
            rows.append(measure(bench, number, way, options["tokens"]))
            found = {
                "sentences": len(sentences),
                "source": "the package's held-out text" if sentence_file is None else sentence_file.name,
                "rows": [asdict(row) for row in rows],
                "verdicts": list(verdicts(rows, options["targets"])),
                "environment": environment("cpu"),
            }
            if options["json_file"] is not None:
                options["json_file"].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            click.echo("\n".join(markdown(rows[-1:])) if len(rows) == 1 else list(markdown(rows[-1:]))[-1])
    click.echo("\n".join(verdicts(rows, options["targets"])))


if __name__ == "__main__":
    main()
