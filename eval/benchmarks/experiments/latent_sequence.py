"""A cache of fixed length against what keeps as many bytes: loss behind long texts, copies from far back, its size.

    python -m convert_attn.eval.benchmarks.experiments.latent_sequence MODEL --windows test.npy --slots 64

A text of N, 2 N, 4 N, 8 N tokens (N slots) is read whole; the cache then keeps as many bytes as N slots, N last tokens
and 4 first ones take, and the next 32 tokens are predicted: of the text that goes on ("loss"), or of a passage that
stood at its beginning ("copy"; the passage begins 64 tokens into the text, behind what sinks keep). "stream" is the
loss by position where tokens come 16 at a time, so that nothing that is gone is ever seen again.

Contenders: the whole cache; slots; first and last tokens (Xiao et al., arXiv:2309.17453) of the same bytes; and, with
--kvpress PYTHON, NVIDIA's kvpress. It asks for transformers < 5.3 and this package for 5.16, so that PYTHON is the
interpreter of another environment, into which kvpress is installed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
from convert_attn.eval.benchmarks.common import file_options, load_model, token_windows
from convert_attn.eval.measures.decoding import cache_of, with_cache
from convert_attn.modeling.latent_sequence import LatentSequenceCache, SlotLayer, SlotSizes

ASKED, PIECE, PLACE = 32, 16, 64  # predicted tokens; of a stream at a time; where a passage begins
FULL, SLOTS, WINDOW = "whole cache", "slots", "first and last tokens"
PRESSES = ("StreamingLLMPress", "SnapKVPress", "ExpectedAttentionPress", "TOVAPress")
_SIDE = Path(__file__).with_name("kvpress_side.py")


class FirstAndLast(SlotLayer):
    """First and last tokens alone: what leaves the window is gone."""

    def _shrink(self, inv_freq: Tensor) -> None:
        if not self.merged:
            self._put_sinks_first()
        first, last = self.sizes.sinks, self.sizes.window
        self.keys, self.values, self.facts = (torch.cat([p[:, :, :first], p[:, :, -last:]], 2) for p in self.held())
        self.merged = True


def caches(config: Any) -> dict[str, Callable[[], Any]]:
    """Give what makes the cache of each contender, of as many bytes; None: the whole one."""
    slots = SlotSizes(config.cache_sinks, config.cache_slots, config.cache_window)
    entry = 2 * config.head_dim * 4  # in float32, as models are loaded here
    kept = slots.whole * (entry + 12) // entry  # a slot's facts have their price

    def window() -> LatentSequenceCache:
        made = LatentSequenceCache(config)
        made.layers = [FirstAndLast(SlotSizes(slots.sinks, 0, kept - slots.sinks)) for _ in made.layers]
        return made

    def whole() -> LatentSequenceCache:
        made = LatentSequenceCache(config)
        made.layers = [SlotLayer(SlotSizes(0, 1 << 30, 1)) for _ in made.layers]
        return made

    return {FULL: whole, SLOTS: lambda: LatentSequenceCache(config), WINDOW: window}


def jobs(windows: Tensor, slots: int, count: int) -> Iterator[tuple[str, int, Tensor]]:
    """Give (what, length, tokens [n, length + ASKED]): the last ASKED tokens are predicted."""
    for times in (1, 2, 4, 8):
        length = times * slots
        if length < PLACE + 2 * ASKED or length + ASKED > windows.shape[1]:
            continue
        yield "loss", length, windows[:count, : length + ASKED]
        text = windows[:count, :length]
        yield "copy", length, torch.cat([text, text[:, PLACE : PLACE + ASKED]], 1)


@torch.no_grad()
def losses(model: Any, cache: Any, tokens: Tensor) -> Tensor:
    """Mean loss [n] of the last ASKED tokens but the first, behind what the cache keeps of those before."""
    length = tokens.shape[1] - ASKED
    first = model(tokens[:, :length], **with_cache(model, cache), use_cache=True, logits_to_keep=1)
    logits = model(tokens[:, length:], **with_cache(model, cache_of(first)), use_cache=True).logits[:, :-1]
    return token_loss(logits, tokens[:, length + 1 :]).mean(1)


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[n, T, V] and [n, T] -> nats, [n, T]."""
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view_as(
        target
    )


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


def estimate(values: Tensor) -> dict[str, float]:
    """Mean over windows and its standard error."""
    return {"mean": float(values.mean()), "error": float(values.std() / len(values) ** 0.5)}


def streams(model: Any, windows: Tensor, slots: int) -> Iterator[dict[str, Any]]:
    """Loss by position of each contender that this package runs."""
    edges = [0, *(slots * times for times in (1, 2, 3, 4, 5, 6, 7, 8))]
    tokens = windows[:, : edges[-1] + 1]
    for name, make in caches(model.config).items():
        found = torch.cat([streamed(model, make(), part) for part in tokens.split(8)])
        for start, end in pairwise(edges):
            row = {"what": "stream", "contender": name, "from": start, "length": end}
            yield row | estimate(found[:, start:end].mean(1))


def with_kvpress(python: str, folder: Path, work: list[tuple[str, int, Tensor]], kept: int) -> list[dict[str, Any]]:
    """Rows of kvpress, measured by another interpreter.

    Raises:
        UsageError: it has none, or fails.
    """
    with tempfile.TemporaryDirectory() as place:
        for number, (_, _, tokens) in enumerate(work):
            np.save(Path(place, f"{number}.npy"), tokens.numpy())
        job = {"model": str(folder), "jobs": len(work), "presses": PRESSES, "kept": kept, "asked": ASKED}
        Path(place, "job.json").write_text(json.dumps(job))
        ran = subprocess.run([python, str(_SIDE), place], capture_output=True, text=True, check=False)
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UsageError(
                f"--kvpress {python} cannot measure kvpress ({last}): give the interpreter of an environment of its "
                "own with `pip install kvpress`, which asks for transformers < 5.3"
            )
        rows = json.loads(Path(place, "found.json").read_text())
    return [
        {"what": work[row["job"]][0], "contender": f"kvpress {row['press']}", "length": work[row["job"]][1]}
        | estimate(torch.tensor(row["losses"]))
        for row in rows
    ]


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
    """Draw bytes by length, loss by position, and copies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    size, stream, copies = figure.subplots(1, 3)
    for name, of in (("whole", "whole cache"), ("slots", "slots")):
        size.plot([r["tokens"] for r in found["bytes"]], [r[name] / 1e3 for r in found["bytes"]], label=of)
    size.set(xlabel="tokens", ylabel="cache, kB (a tiny model)", yscale="log", title="bytes")
    for axes, what in ((stream, "stream"), (copies, "copy")):
        rows = [row for row in found["rows"] if row["what"] == what]
        for name in dict.fromkeys(row["contender"] for row in rows):
            own = [row for row in rows if row["contender"] == name]
            places = [(row.get("from", row["length"]) + row["length"]) / 2 for row in own]
            axes.errorbar(places, [r["mean"] for r in own], [r["error"] for r in own], label=name, capsize=2)
    stream.set(xlabel="position", ylabel="loss, nats per token", title="loss by position, 16 tokens at a time")
    copies.set(xlabel="tokens before", ylabel="loss of the repeat, nats per token", title="copy of a passage at 64")
    for axes in (size, stream, copies):
        axes.legend(fontsize=7)
    figure.savefig(png, dpi=110)


@click.command()
@click.argument("model")
@click.option("--windows", type=click.Path(exists=True, path_type=Path), required=True, help="Token ids [n, length].")
@click.option("--slots", default=64, show_default=True)
@click.option("--limit", default=32, show_default=True, help="At most this many windows.")
@click.option("--bytes", "longest", default=65536, show_default=True, help="Tokens up to which bytes are measured.")
@click.option("--what", "kinds", type=Words(), default="loss,copy,stream", show_default=True, help="What is measured.")
@click.option("--kvpress", "python", help="Interpreter of an environment that has kvpress.")
@file_options("bytes, loss by position and copies")
def main(
    *,
    model: str,
    windows: Path,
    slots: int,
    limit: int,
    longest: int,
    kinds: Sequence[str],
    python: str | None,
    json_file: Path | None,
    png: Path | None,
) -> None:
    """Measure a latent sequence of MODEL."""
    transformers.logging.set_verbosity_error()
    tokens = token_windows(windows, limit)
    work = [job for job in jobs(tokens, slots, limit) if job[0] in kinds]
    with tempfile.TemporaryDirectory() as directory:
        made = convert(model, to="latent-sequence", slots=slots, output=Path(directory) / "made")
        loaded = load_model(made.output)
    rows = [] if longest == 0 else sizes(slots, longest)
    found: dict[str, Any] = {"model": Path(model).name, "slots": slots, "windows": len(tokens), "bytes": rows}
    found["rows"] = [
        {"what": what, "contender": name, "length": length}
        | estimate(torch.cat([losses(loaded, make(), part) for part in text.split(8)]))
        for what, length, text in work
        for name, make in caches(loaded.config).items()
    ]
    found["rows"] += streams(loaded, tokens, slots) if "stream" in kinds else ()
    if python is not None:
        entry = 2 * loaded.config.head_dim * 4
        kept = (4 + 2 * slots) * (entry + 12) // entry
        found["rows"] += with_kvpress(python, resolve(model).folder, work, kept)
    for row in found["rows"]:
        click.echo(json.dumps(row))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n")
    if png is not None:
        draw(found, png)


if __name__ == "__main__":
    main()
