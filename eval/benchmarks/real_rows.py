"""The rows of the benchmark on a real model: the command lines, what they take, and what comes out."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.methods import methods
from convert_attn.convert.methods.base import Method
from convert_attn.convert.planning.provenance import typed_command
from convert_attn.eval.benchmarks.common import load_model
from convert_attn.eval.benchmarks.real_model import write_out_heads
from convert_attn.eval.measures.memory import cache_bytes_per_token
from convert_attn.eval.measures.quality import Tally, token_figures

TARGETS: dict[str, list[str]] = {
    "mqa": ["--to", "mqa"],
    "mla-1/2": ["--to", "mla", "--cache-ratio", "1/2"],
    "mla-1/3": ["--to", "mla", "--cache-ratio", "1/3"],
    "mla-1/4": ["--to", "mla", "--cache-ratio", "1/4"],
}
NONE, AUTO, SELF, IN_DOMAIN, MLP, HEALED = "none", "auto", "self", "in-domain", "in-domain-mlp", "healed"
CALIBRATIONS = (NONE, AUTO, SELF, IN_DOMAIN, MLP, HEALED)
"""What a conversion reads besides the weights; `in-domain-mlp`: with --refit mlp; `healed`: in-domain text where its
method reads any, then training."""

DTYPES: dict[str, torch.dtype | str] = {"float32": torch.float32, "stored": "auto"}
_SAMPLED_EVERY = 0.1  # seconds between two looks at a command's memory


@dataclass(frozen=True)
class Ask:
    """A row that can be asked for.

    Attributes:
        target: a key of TARGETS.
        method: as after --method.
        calibration: one of CALIBRATIONS.
    """

    target: str
    method: str
    calibration: str

    @property
    def name(self) -> str:
        """As it is asked for: mqa:subspace:in-domain."""
        return f"{self.target}:{self.method}:{self.calibration}"


def asks() -> list[Ask]:
    """Give all rows there are: methods that need text are not run without, nor those that read none with it."""
    return [
        Ask(target, method.name, calibration)
        for target, words in TARGETS.items()
        for method in methods().values()
        if words[1] in method.targets
        for calibration in CALIBRATIONS
        if _fits(method, calibration)
    ]


def _fits(method: Method, calibration: str) -> bool:
    """Whether a method is run with this text."""
    if calibration == HEALED:
        return True
    if calibration == MLP:
        return method.refit
    return method.calibration != "needed" if calibration == NONE else method.calibration != "none"


@dataclass(frozen=True, kw_only=True)
class RealRow:
    """A conversion, what it took and what it costs.

    Attributes:
        name: `Ask.name`.
        command: the command lines, files by their names alone.
        seconds: wall time of the commands; None where they were run before.
        peak_mb: as for `seconds`, resident memory of a command and the processes it starts, together, at its highest;
            in 10**6 bytes.
        tokens: read for calibration.
        forward_ratio: `seconds` over the time of one forward pass of the original over as many tokens; None where none
            were read.
        cache: bytes per token.
        cache_share: of the original's.
        class_name: what AutoModelForCausalLM made of the folder.
        figures: dtype -> `perplexity` and `kl` (to the original in the same dtype, nats per token), each with `mean`
            and `error`, the standard error over windows.
        failed: why there are no figures.
    """

    name: str
    command: list[str]
    seconds: float | None
    peak_mb: float | None
    tokens: int = 0
    forward_ratio: float | None = None
    cache: int | None = None
    cache_share: float | None = None
    class_name: str | None = None
    figures: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    failed: str | None = None


def quality(model: Any, windows: Tensor, reference: Any | None = None) -> dict[str, dict[str, float | None]]:
    """Measure perplexity and KL to a reference, with their standard errors over windows.

    Args:
        model: a causal language model.
        windows: token ids [n, length].
        reference: the original; None for itself, which has no KL.
    """
    tally = Tally(len(windows), 1)
    for number, batch in enumerate(windows.split(1)):
        figures = token_figures(model, batch, reference)
        place = torch.zeros(figures.shape[1:], dtype=torch.int64)
        tally.add(figures, place + number, place)
    loss = tally.estimate("loss")
    perplexity = math.exp(loss.mean)
    found = {"perplexity": {"mean": perplexity, "error": None if loss.error is None else perplexity * loss.error}}
    return found if reference is None else found | {"kl": tally.estimate("kl").as_dict()}


@dataclass(kw_only=True)
class RealBench:
    """What all rows share.

    Attributes:
        folder: the original's.
        work: where conversions are made.
        windows: test text, token ids [n, length].
        calibration: in-domain text; a file.
        held_out: the test text; a file, what of it is in the text for healing is left out there.
        calibration_tokens: at most so many are read; None: as the command does.
        heal_tokens, heal_data, heal_options: how long `healed` rows are trained, on what, and other options of `heal`.
        keep: leave the conversions where they are.
    """

    folder: Path
    work: Path
    windows: Tensor
    calibration: Path
    held_out: Path
    calibration_tokens: int | None = None
    heal_tokens: int | None = None
    heal_data: Path | None = None
    heal_options: tuple[str, ...] = ()
    keep: bool = False

    def __post_init__(self) -> None:
        self._originals = {name: load_model(self.folder, dtype) for name, dtype in DTYPES.items()}
        self._forward_seconds: dict[int, float] = {}

    def original(self) -> dict[str, Any]:
        """Give the figures of the original: class, and perplexity by dtype."""
        figures = {name: quality(model, self.windows) for name, model in self._originals.items()}
        return {"class_name": type(self._originals["float32"]).__name__, "figures": figures}

    def commands(self, ask: Ask) -> Iterator[list[str]]:
        """Give the command lines of a row, one after the other; the last one makes `output(ask)`."""
        result = self.output(ask)
        calibration = ask.calibration
        if calibration == HEALED:
            result = result.with_name(f"{result.name}-start")
            calibration = NONE if methods()[ask.method].calibration == "none" else IN_DOMAIN
        words = [str(self.folder), *TARGETS[ask.target], "--method", ask.method, "--output", str(result), "--overwrite"]
        words += ["--calibration", str(self.calibration) if calibration in (IN_DOMAIN, MLP) else calibration, "--json"]
        words += ["--refit", "mlp"] if calibration == MLP else []
        if self.calibration_tokens is not None and calibration != NONE:
            words += ["--calibration-tokens", str(self.calibration_tokens)]
        yield words
        if ask.calibration == HEALED:
            data = str(self.heal_data or self.calibration)
            words = ["heal", str(result), "--teacher", str(self.folder), "--data", data]
            words += ["--exclude", str(self.held_out), "--tokens", str(self.heal_tokens), "--cpu", "--json"]
            yield [*words, "--output", str(self.output(ask)), "--overwrite", *self.heal_options]

    def output(self, ask: Ask) -> Path:
        """Give the folder that a row makes."""
        return self.work / ask.name.replace(":", "-").replace("/", "-")

    def run(self, ask: Ask) -> RealRow:
        """Make a row: the real command lines in processes of their own, then the figures of what they made."""
        answers: list[dict[str, Any]] = []
        typed, seconds, peak = [], 0.0, 0
        try:
            for words in self.commands(ask):
                typed.append(typed_command(words))
                took = run_command(words, self.work)
                seconds, peak = seconds + took.seconds, max(peak, took.peak)
                if took.answer is None:
                    return RealRow(name=ask.name, command=typed, seconds=seconds, peak_mb=peak / 1e6, failed=took.said)
                answers.append(took.answer)
            return self._measured(ask, typed, seconds, peak, answers[0])
        finally:
            if not self.keep:
                for made in self.work.glob(f"{self.output(ask).name}*"):
                    shutil.rmtree(made, ignore_errors=True)

    def _measured(self, ask: Ask, typed: list[str], seconds: float, peak: int, made: dict[str, Any]) -> RealRow:
        tokens = (made["calibration"] or {}).get("tokens", 0)
        before, after = made["cache_bytes_per_token_before"], made["cache_bytes_per_token_after"]
        figures, model = self._figures(self.output(ask))
        ratio = seconds / self.forward_seconds(tokens) if tokens else None
        kind = type(model).__name__
        return RealRow(
            name=ask.name,
            command=typed,
            seconds=seconds,
            peak_mb=peak / 1e6,
            tokens=tokens,
            forward_ratio=ratio,
            cache=after,
            cache_share=after / before,
            class_name=kind,
            figures=figures,
        )

    def _figures(self, folder: Path) -> tuple[dict[str, Any], Any]:
        """Of a conversion in every dtype, and the model in the dtype that is stored."""
        figures: dict[str, Any] = {}
        model = None
        for name, dtype in DTYPES.items():
            model = load_model(folder, dtype)
            figures[name] = quality(model, self.windows, self._originals[name])
        return figures, model

    def present(self, folder: Path) -> RealRow:
        """Measure a conversion that was made or healed before, under its folder's name.

        Raises:
            UsageError: it is none.
        """
        try:
            made = json.loads((folder / "config.json").read_text(encoding="utf-8"))["convert_attn"]
            typed = [str(step["command"]) for step in (made, *made.get("heal", ()))]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"'{folder}' holds no conversion that says how it was made: give folders of such"
            ) from None
        figures, model = self._figures(folder)
        after, before = (cache_bytes_per_token(each) for each in (model, self._originals["stored"]))
        kind, tokens = type(model).__name__, int((made.get("calibration") or {}).get("tokens", 0))
        return RealRow(
            name=folder.name,
            command=typed,
            seconds=None,
            peak_mb=None,
            tokens=tokens,
            forward_ratio=None,
            cache=round(after),
            cache_share=after / before,
            class_name=kind,
            figures=figures,
        )

    @torch.inference_mode()
    def forward_seconds(self, tokens: int) -> float:
        """Time one forward pass of the original in float32 over so many tokens, in windows of at most 2048."""
        if tokens not in self._forward_seconds:
            model = self._originals["float32"]
            length = min(2048, model.config.max_position_embeddings, tokens)
            ids = self.windows.flatten().repeat(-(-tokens // self.windows.numel()))[:tokens]
            begin = time.perf_counter()
            for batch in ids.split(length):
                model(input_ids=batch[None], use_cache=False)
            self._forward_seconds[tokens] = time.perf_counter() - begin
        return self._forward_seconds[tokens]


@torch.inference_mode()
def grouped_again(folder: Path, work: Path, tokens: int | None) -> float:
    """Write a grouped model's heads out, have the command line group them, and compare the logits of 256 tokens.

    Args:
        tokens: for calibration.

    Returns:
        The largest difference of a logit in float32.

    Raises:
        ConvertAttnError: the command failed.
    """
    whole, again = write_out_heads(folder, work / "written-out"), work / "grouped-again"
    original = load_model(folder)
    groups = original.config.num_key_value_heads
    words = [str(whole), "--to", "gqa", "--groups", str(groups), "--output", str(again), "--overwrite", "--json"]
    took = run_command([*words, *([] if tokens is None else ["--calibration-tokens", str(tokens)])], work)
    if took.answer is None:
        raise ConvertAttnError(took.said)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, original.config.vocab_size, (1, 256), generator=generator)
    return float((load_model(again)(input_ids=ids).logits - original(input_ids=ids).logits).abs().max())


@dataclass(frozen=True)
class Took:
    """How a command ended.

    Attributes:
        seconds: wall time.
        peak: resident bytes of it and the processes it started, together, at the highest.
        answer: what --json printed; None: it failed.
        said: the last line it wrote to stderr.
    """

    seconds: float
    peak: int
    answer: dict[str, Any] | None
    said: str


def run_command(words: Sequence[str], work: Path) -> Took:
    """Run the command line in a process of its own, with nothing remembered from earlier ones.

    Args:
        words: after `convert-attn`, with --json among them.
        work: where statistics are kept while it runs.
    """
    command = [sys.executable, "-m", "convert_attn.convert.cli", *words]
    with tempfile.TemporaryDirectory(dir=work) as place:
        out, err = Path(place) / "out", Path(place) / "err"
        with out.open("w") as out_file, err.open("w") as err_file:
            begin = time.perf_counter()
            environment = os.environ | {"CONVERT_ATTN_CACHE": place}
            process = psutil.Popen(command, stdout=out_file, stderr=err_file, env=environment)
            try:
                peak = _watched(process, err)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            seconds = time.perf_counter() - begin
        said = err.read_text(errors="replace").strip().splitlines()
        answer = json.loads(out.read_text()) if process.returncode == 0 else None
    return Took(seconds, peak, answer, said[-1] if said else f"exit code {process.returncode}")


def _watched(process: psutil.Popen, log: Path) -> int:
    """Wait for a process, showing what it writes to a log; hand back the most memory seen, bytes."""
    peak = 0
    with log.open(errors="replace") as written:
        while process.poll() is None:
            peak = max(peak, _resident(process))
            sys.stderr.write(written.read())
            time.sleep(_SAMPLED_EVERY)
        sys.stderr.write(written.read())
    return peak


def _resident(process: psutil.Popen) -> int:
    """Bytes of a process and of those it has started, now."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.Error:  # one of them has just ended
        pass
    return total
