"""A cache of fixed length against what keeps as many bytes: loss behind long texts, copies from far back, its size.

    python -m convert_attn.eval.benchmarks.experiments.latent_sequence MODEL --text test.txt --slots 64

A text of N, 2 N, ... 16 N tokens (N slots) is read whole; the cache then keeps as many bytes as N slots, N last tokens
and 4 first ones take, and the next 32 tokens are predicted: of the text that goes on ("loss"), or of a passage that
stood at its beginning ("copy"; the passage begins 64 tokens into the text, behind what sinks keep). "stream" is the
loss by position where tokens come 16 at a time, so that nothing that is gone is ever seen again. "more" is what a
contender loses more than the whole cache, text by text.

Contenders: the whole cache; slots, and slots by the one rule that all layers have where no text was read ("gain" is
what is lost less than by that one, text by text); first and last tokens (Xiao et al., arXiv:2309.17453) of the same
bytes; and, with --kvpress PYTHON, NVIDIA's kvpress. It asks for transformers < 5.3 and this package for 5.16, so that
PYTHON is the interpreter of another environment, into which kvpress is installed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from torch import Tensor

from convert_attn import convert
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.errors import UsageError
from convert_attn.convert.option_types import Words
from convert_attn.eval.benchmarks.common import load_model, result_options
from convert_attn.eval.measures.decoding import cache_of, with_cache
from convert_attn.eval.measures.passages import documents_of, make_passages
from convert_attn.modeling.latent_sequence import LatentSequenceCache, SlotLayer
from convert_attn.modeling.slot_merging import MergeRule, SlotSizes

ASKED, PIECE, PLACE = 32, 16, 64  # predicted tokens; of a stream at a time; where a passage begins
TIMES = (1, 2, 4, 8, 16)  # as many tokens as slots
FULL, SLOTS, WINDOW = "whole cache", "slots", "first and last tokens"
BY_RULE = "slots, one rule"  # where those of "slots" were chosen on text
PRESSES = ("StreamingLLM", "Knorm", "KeyDiff", "TOVA", "SnapKV", "ExpectedAttention", "Merging SnapKV")
_SIDE = Path(__file__).with_name("kvpress_side.py")
_BATCH, _READ = 8, 1_000_000  # texts at a time; tokens of a text among which windows are spread


class FirstAndLast(SlotLayer):
    """First and last tokens alone: what leaves the window is gone."""

    def shrink(self, inv_freq: Tensor) -> None:
        if not self.merged:
            self._put_sinks_first()
        first, last = self.sizes.sinks, self.sizes.window
        self.keys, self.values, self.facts = (torch.cat([p[:, :, :first], p[:, :, -last:]], 2) for p in self.held())
        self.merged = True


def kept(config: Any) -> int:
    """How many tokens alone take the bytes of the slots, of which each has its facts."""
    entry = 2 * config.head_dim * 4  # in float32, as models are loaded here
    return int((config.cache_sinks + config.cache_slots + config.cache_window) * (entry + 12) // entry)


def caches(config: Any) -> dict[str, Callable[[], LatentSequenceCache]]:
    """Give what makes the cache of each contender, of as many bytes, and the whole one."""

    def window() -> LatentSequenceCache:
        made = LatentSequenceCache(config)
        sizes = SlotSizes(config.cache_sinks, 0, kept(config) - config.cache_sinks)
        made.layers = [FirstAndLast(sizes) for _ in made.layers]
        return made

    def whole() -> LatentSequenceCache:
        made = LatentSequenceCache(config)
        made.layers = [SlotLayer(SlotSizes(0, 1 << 30, 1)) for _ in made.layers]
        return made

    def by_rule() -> LatentSequenceCache:
        made = LatentSequenceCache(config)
        layers = [layer for layer in made.layers if isinstance(layer, SlotLayer)]
        made.layers = [SlotLayer(replace(layer.sizes, rule=MergeRule())) for layer in layers]
        return made

    chosen = {BY_RULE: by_rule} if config.cache_merging else {}
    return {FULL: whole, SLOTS: lambda: LatentSequenceCache(config), **chosen, WINDOW: window}


@dataclass(frozen=True)
class LongTexts:
    """Texts [n, length] that are read, and what is predicted behind each, by name: [n, ASKED]."""

    texts: Tensor
    asked: dict[str, Tensor]


def jobs(windows: Tensor, slots: int, kinds: Sequence[str]) -> Iterator[LongTexts]:
    """Give the lengths that a window has room for."""
    for length in (times * slots for times in TIMES if {"loss", "copy"} & {*kinds}):
        if PLACE + 2 * ASKED <= length <= windows.shape[1] - ASKED:
            texts = windows[:, :length]
            asked = {"loss": windows[:, length : length + ASKED], "copy": texts[:, PLACE : PLACE + ASKED]}
            yield LongTexts(texts, {what: tokens for what, tokens in asked.items() if what in kinds})


def copied(cache: LatentSequenceCache) -> LatentSequenceCache:
    """Give a cache of its own with the same content; no tensor of one is ever written to."""
    made = copy(cache)
    made.layers = [copy(layer) for layer in cache.layers]
    return made


def shrunk(whole: LatentSequenceCache, empty: LatentSequenceCache, inv_freq: Tensor) -> LatentSequenceCache:
    """Give what an empty cache would hold had it been given the text that a whole one was given at once."""
    for own, other in zip(empty.layers, whole.layers, strict=True):
        assert isinstance(own, SlotLayer)
        own.__dict__ |= {name: value for name, value in vars(other).items() if name != "sizes"}
        if own.held()[0].shape[2] > own.sizes.whole:
            own.shrink(inv_freq)
    return empty


@torch.no_grad()
def losses(model: Any, job: LongTexts) -> dict[tuple[str, str], Tensor]:
    """Mean loss [n] of what is predicted but its first token, by (what, contender)."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    makers, inv_freq = caches(model.config), model.model.rotary_emb.inv_freq
    for start in range(0, len(job.texts), _BATCH):
        part = slice(start, start + _BATCH)
        read = model(job.texts[part], **with_cache(model, makers[FULL]()), use_cache=True, logits_to_keep=1)
        for name, make in makers.items():
            held = shrunk(cache_of(read), make(), inv_freq)
            for what, tokens in job.asked.items():
                logits = model(tokens[part], **with_cache(model, copied(held)), use_cache=True).logits[:, :-1]
                found.setdefault((what, name), []).append(token_loss(logits, tokens[part, 1:]).mean(1))
    return {key: torch.cat(values) for key, values in found.items()}


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[n, T, V] and [n, T] -> nats, [n, T]."""
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    return loss.view_as(target)


@torch.no_grad()
def streamed(model: Any, cache: Any, tokens: Tensor) -> Tensor:
    """Loss [n, T - 1] of tokens that come PIECE at a time."""
    found, at = [], 1
    for piece in tokens.split(PIECE, 1):
        out = model(piece, **with_cache(model, cache), use_cache=True)
        cache, target = cache_of(out), tokens[:, at : at + piece.shape[1]]
        found.append(token_loss(out.logits[:, : target.shape[1]], target))
        at += piece.shape[1]
    return torch.cat(found, 1)


def row(what: str, contender: str, found: dict[str, Tensor]) -> dict[str, Any]:
    """Give means of one contender's losses over windows with their standard errors, among those of all [n].

    "more" than the whole cache loses; "gain": less than slots by one rule lose.
    """
    values = found[contender]
    figures = {"mean": values, "more": values - found[FULL]}
    if contender == SLOTS and BY_RULE in found:
        figures["gain"] = found[BY_RULE] - values
    given: dict[str, Any] = {"what": what, "contender": contender, "windows": len(values)}
    for name, of in figures.items():
        given |= {
            name: float(of.mean()),
            "error" if name == "mean" else f"{name}_error": float(of.std() / len(of) ** 0.5),
        }
    return given


def streams(model: Any, windows: Tensor, slots: int) -> Iterator[dict[str, Any]]:
    """Loss by position of each contender that this package runs."""
    edges = [0, *(slots * times for times in range(1, TIMES[-1] + 1) if slots * times < windows.shape[1])]
    tokens = windows[:, : edges[-1] + 1]
    found = {
        name: torch.cat([streamed(model, make(), part) for part in tokens.split(_BATCH)])
        for name, make in caches(model.config).items()
    }
    for name in found:
        for start, end in pairwise(edges):
            values = {contender: losses[:, start:end].mean(1) for contender, losses in found.items()}
            yield row("stream", name, values) | {"from": start, "length": end}


def with_kvpress(python: str, folder: Path, work: list[LongTexts], kept: int) -> list[dict[tuple[str, str], Tensor]]:
    """Losses as of `losses` for each job, measured by another interpreter.

    Raises:
        UsageError: it has none, or fails.
    """
    with tempfile.TemporaryDirectory() as place:
        for number, job in enumerate(work):
            given: dict[str, Any] = {what: tokens.numpy() for what, tokens in job.asked.items()}
            np.savez(Path(place, f"{number}.npz"), texts=job.texts.numpy(), **given)
        told = {"model": str(folder), "jobs": len(work), "presses": PRESSES, "kept": kept, "batch": _BATCH}
        Path(place, "job.json").write_text(json.dumps(told))
        ran = subprocess.run([python, str(_SIDE), place], capture_output=True, text=True, check=False)
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UsageError(
                f"--kvpress {python} cannot measure kvpress ({last}): give the interpreter of an environment of its "
                "own with `pip install kvpress`, which asks for transformers < 5.3"
            )
        rows = json.loads(Path(place, "found.json").read_text())
    found: list[dict[tuple[str, str], Tensor]] = [{} for _ in work]
    for one in rows:
        found[one["job"]][one["what"], f"kvpress {one['press']}"] = torch.tensor(one["losses"])
    return found


def sizes(slots: int, tokens: int, piece: int = 512) -> list[dict[str, Any]]:
    """Bytes of the caches of a tiny model, measured as a text grows to so many tokens."""
    config = transformers.AutoConfig.for_model(
        "llama_slots", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, vocab_size=64, cache_slots=slots,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    rows: list[dict[str, Any]] = []
    cache: Any = LatentSequenceCache(config)
    whole = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    for end in range(piece, tokens + 1, piece):
        text = torch.randint(64, (1, piece), generator=torch.Generator().manual_seed(end))
        with torch.no_grad():
            cache = cache_of(model(text, **with_cache(model, cache), use_cache=True, logits_to_keep=1))
        rows.append({"tokens": end, "slots": cache.nbytes, "whole": end * whole})
    return rows


def draw(found: dict[str, Any], png: Path) -> None:
    """Draw bytes by length, and what is lost more than with the whole cache: by position, behind texts, in copies."""
    from matplotlib.figure import Figure

    titles = {
        "stream": f"loss by position, {PIECE} tokens at a time",
        "loss": f"loss of the {ASKED} tokens behind a text",
        "copy": f"loss of a passage that stood at {PLACE}",
    }
    titles = {what: title for what, title in titles.items() if any(row["what"] == what for row in found["rows"])}
    figure = Figure(figsize=(17, 5), layout="constrained")
    places = list(figure.subplots(1, len(titles) + bool(found["bytes"])).flat)
    for axes, (what, title) in zip(places, titles.items(), strict=False):
        rows = [row for row in found["rows"] if row["what"] == what and row["contender"] != FULL]
        for name in dict.fromkeys(row["contender"] for row in rows):
            own = [row for row in rows if row["contender"] == name]
            middles = [(row.get("from", row["length"]) + row["length"]) / 2 for row in own]
            style = {"linestyle": ":", "marker": "."} if name.startswith("kvpress") else {"marker": "o"}
            axes.errorbar(
                middles, [r["more"] for r in own], [r["more_error"] for r in own], label=name, capsize=2, **style
            )
        axes.set(
            xlabel="position" if what == "stream" else "tokens before",
            ylabel="nats more than the whole cache",
            title=title,
        )
        axes.legend(fontsize=7)
    for size in places[len(titles) :]:
        for name, of in (("whole", "whole cache"), ("slots", "slots")):
            size.plot([r["tokens"] for r in found["bytes"]], [r[name] / 1e3 for r in found["bytes"]], label=of)
        size.set(xlabel="tokens", ylabel="cache, kB (a tiny model)", yscale="log", title="bytes")
        size.legend(fontsize=7)
    figure.savefig(png, dpi=100)


def windows_of(folder: Path, text: str | None, length: int, count: int) -> Tensor:
    """Give windows [count, length], spread evenly over a text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = make_passages(tokenizer, documents_of(text), length, _READ).windows
    return found[:: max(1, len(found) // count)][:count]


@click.command()
@click.argument("model")
@click.option("--text", help="File or dataset [default: the bundled held-out text].")
@click.option("--slots", default=64, show_default=True)
@click.option("--windows", "count", default=32, show_default=True, help="How many, spread over the text.")
@click.option("--length", default=0, help="Tokens of a window [default: 16 times the slots, and what is predicted].")
@click.option("--bytes", "longest", default=65536, show_default=True, help="Tokens up to which bytes are measured.")
@click.option("--what", "kinds", type=Words(), default="loss,copy,stream", show_default=True, help="What is measured.")
@click.option("--kvpress", "python", help="Interpreter of an environment that has kvpress.")
@result_options("bytes, loss by position and copies")
def main(
    *,
    model: str,
    text: str | None,
    slots: int,
    count: int,
    length: int,
    longest: int,
    kinds: Sequence[str],
    python: str | None,
    earlier: tuple[Path, ...],
    json_file: Path | None,
    png: Path | None,
) -> None:
    """Measure a latent sequence of MODEL."""
    transformers.logging.set_verbosity_error()
    folder = resolve(model).folder
    windows = windows_of(folder, text, length or TIMES[-1] * slots + ASKED, count)
    work = list(jobs(windows, slots, kinds))
    with tempfile.TemporaryDirectory() as directory:
        made = convert(model, to="latent-sequence", slots=slots, output=Path(directory) / "made")
        loaded = load_model(made.output)
    rows = [] if longest == 0 else sizes(slots, longest)
    found: dict[str, Any] = {"model": Path(model).name, "slots": slots, "bytes": rows}
    measured = [losses(loaded, job) for job in work]
    if python is not None:
        others = with_kvpress(python, folder, work, kept(loaded.config))
        measured = [own | other for own, other in zip(measured, others, strict=True)]
    found["rows"] = [
        row(what, name, {contender: values for (kind, contender), values in of.items() if kind == what})
        | {"length": job.texts.shape[1]}
        for job, of in zip(work, measured, strict=True)
        for what, name in of
    ]
    found["rows"] += streams(loaded, windows, slots) if "stream" in kinds else ()
    for one in found["rows"]:
        click.echo(json.dumps(one))
    found["rows"] = [one for file in earlier for one in json.loads(file.read_text())["rows"]] + found["rows"]
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n")
    if png is not None:
        draw(found, png)


if __name__ == "__main__":
    main()
