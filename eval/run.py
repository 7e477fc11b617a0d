"""The whole evaluation: every check first, then measuring part by part, then the reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.progress import Progress, no_bars, silent
from convert_attn.convert.text.encoder_windows import WINDOW
from convert_attn.convert.version import __version__
from convert_attn.eval.measures.contenders import (
    Contender,
    check_memory,
    choose_device,
    open_contenders,
    predicted_numbers,
)
from convert_attn.eval.measures.embeddings import compare_embeddings, compare_forward, parameters
from convert_attn.eval.measures.losses import compare_on_text, probe
from convert_attn.eval.measures.memory import cache_bytes_per_token, peak_memory, source_bytes_per_token
from convert_attn.eval.measures.passages import (
    BUNDLED,
    GENERAL,
    Passages,
    documents_of,
    make_pairs,
    make_passages,
    make_texts,
)
from convert_attn.eval.measures.scale import at_scale, scale_shape
from convert_attn.eval.measures.speed import compare_speed
from convert_attn.eval.results.card import check_cards, update_cards
from convert_attn.eval.results.document import make_document
from convert_attn.eval.results.files import write_reports
from convert_attn.eval.results.job import Job
from convert_attn.eval.results.store import Store
from convert_attn.eval.tasks.harness import Harness

MAX_TOKENS = 65536
REPEATS = 7
_CONTEXTS = (512, 2048, 8192)
_LONGEST_WINDOW = 2048


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        document: all figures, as eval.json holds them.
        files: the reports that were written, by name.
        notes: what the user should know, one sentence each.
    """

    document: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evaluate(
    original: str | Path,
    converted: str | Path | Sequence[str | Path],
    *,
    text: str | Path | None = None,
    window: int | None = None,
    max_tokens: int = MAX_TOKENS,
    tasks: Sequence[str] = (),
    include_path: str | Path | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    task_batch_size: int | None = None,
    contexts: Sequence[int] | None = None,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = REPEATS,
    quality: bool = True,
    speed: bool = True,
    scale: str | None = None,
    output: str | Path | None = None,
    update_card: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    command: str | None = None,
) -> Evaluation:
    """Compare conversions with their original on the same text and the same machine.

    The original and one conversion are in memory at a time. The original's output is computed anew for each
    conversion: kept for later it would take tokens x vocabulary numbers.

    Args:
        original, converted: Hub id, local folder, or sample:NAME.
        text: see `convert_attn.convert.text.documents.read_documents`; None: the bundled held-out text. Of an
            encoder-decoder pairs, see `convert_attn.convert.text.pairs.read_pairs`, or text whose windows are halved.
        window: tokens per window; None: what all models can read, at most 2048.
        max_tokens: of the text.
        tasks: names of lm-eval's tasks, groups or tags, or YAML files.
        include_path: folder with further YAML tasks (a YAML may name Python code, which lm-eval runs).
        limit: documents of each task, below 1 a share of them.
        task_batch_size: sequences of a task at once; None: what fits.
        contexts, batch_sizes: for speed; None: of 512, 2048 and 8192 what the models can read.
        repeats: of every timed call.
        scale: for speed: random weights of a published shape instead, NAME or NAME:LAYERS.
        output: folder for the reports; measured parts are kept there, and a run with the same settings takes them up.
            None: nothing is written, nothing is taken up.
        update_card: also write the results into the conversions' model cards.
        device: "auto" or as in torch.
        dtype: "auto" (float32 on a CPU, else the original's), "float32", "float16" or "bfloat16".
        progress: called with a stage's name, how much of it is done, and how much there is.
        command: what the reports give as the command that made them.

    Raises:
        UsageError: something asked for cannot be done; nothing was measured.
        ConvertAttnError: measuring failed; what was finished is kept and reported in `output`.
        KeyboardInterrupt: likewise.
    """
    conversions = [converted] if isinstance(converted, (str, Path)) else list(converted)
    if not conversions:
        raise UsageError("nothing to compare: give at least one conversion")
    if not (quality or speed or tasks):
        raise UsageError("nothing to measure: --no-quality and --no-speed leave only --tasks, and none was given")
    device = choose_device(device)
    contenders = open_contenders([str(original), *map(str, conversions)], device, dtype, trust_remote_code)
    if contenders[0].encoder or contenders[0].two_stacks:
        _check_no_decoder(contenders[0], tasks, scale)
    if update_card:
        check_cards(contenders[1:])
    timed, chosen = _speed_contenders(
        contenders, scale, contexts=contexts, batch_sizes=batch_sizes, repeats=repeats, speed=speed
    )
    check_memory(contenders)
    if speed:
        check_memory(timed)
    harness = Harness(tasks, None if include_path is None else Path(include_path)) if tasks else None
    passages = _passages(contenders, text, window, max_tokens) if quality else None
    settings = {
        "version": __version__,
        "original": contenders[0].identity,
        "text": None if passages is None else passages.digest,
        "window": None if passages is None else passages.windows.shape[1],
        "tasks": [*tasks],
        "include_path": None if include_path is None else str(Path(include_path).resolve()),
        "limit": limit,
        "num_fewshot": num_fewshot,
        "contexts": [*chosen] if speed else None,
        "batch_sizes": [*batch_sizes] if speed else None,
        "repeats": repeats if speed else None,
        "scale": scale if speed else None,
        "device": device,
        "dtype": contenders[0].recipe.dtype,
        "threads": torch.get_num_threads(),
    }
    folder = None if output is None else Path(output).expanduser()
    job = Job(
        contenders=contenders,
        timed=timed,
        passages=passages,
        text=(BUNDLED if contenders[0].writes else GENERAL) if text is None else str(text),
        harness=harness,
        limit=limit,
        num_fewshot=num_fewshot,
        task_batch_size=task_batch_size,
        contexts=chosen if speed else (),
        batch_sizes=tuple(batch_sizes),
        repeats=repeats,
        scale=scale if speed else None,
        store=Store(folder, settings, overwrite),
        progress=progress,
    )
    try:
        with no_bars():
            _measure(job)
    except BaseException:
        with suppress(ConvertAttnError):
            _finish(job, settings, folder, command, complete=False)
        raise
    finally:
        job.loaded.clear()
    result = _finish(job, settings, folder, command, complete=True)
    if update_card:
        update_cards(job.contenders[1:], result.document)
    return result


def _check_no_decoder(original: Contender, tasks: Sequence[str], scale: str | None) -> None:
    """Refuse what is about models that go on with a text.

    Raises:
        UsageError: see above.
    """
    for option, given in (("--tasks", bool(tasks)), ("--scale", scale is not None)):
        if given:
            what = "encoder" if original.encoder else "encoder-decoder"
            raise UsageError(f"{option} is for language models: '{original.origin.name}' is an {what}, drop it")


def _limit_of(contenders: Sequence[Contender]) -> tuple[int | None, Contender]:
    """The shortest context limit, and whose it is."""
    limited = [contender for contender in contenders if contender.context is not None]
    if not limited:
        return None, contenders[0]
    shortest = min(limited, key=lambda contender: contender.context or 0)
    return shortest.context, shortest


def _passages(contenders: tuple[Contender, ...], text: str | Path | None, window: int | None, most: int) -> Passages:
    limit, owner = _limit_of(contenders)
    encoder = contenders[0].encoder
    if window is None:
        longest = WINDOW if encoder else _LONGEST_WINDOW
        window = min(longest, limit or longest)
    elif window < 2:
        raise UsageError(f"--window is {window}, expected at least 2 tokens")
    elif limit is not None and window > limit:
        raise UsageError(f"--window is {window}, but '{owner.origin.name}' reads at most {limit} tokens: give less")
    if contenders[0].two_stacks:
        named = None if text is None else str(text)
        return make_pairs(contenders[0].tokenizer(), named, window, most, contenders[0].decoder)
    documents = documents_of(None if text is None else str(text), encoder)
    if encoder:
        return make_texts(contenders[0].tokenizer(), documents, window, most)
    return make_passages(contenders[0].tokenizer(), documents, window, most)


def _speed_contenders(
    contenders: tuple[Contender, ...],
    scale: str | None,
    *,
    contexts: Sequence[int] | None,
    batch_sizes: Sequence[int],
    repeats: int,
    speed: bool,
) -> tuple[tuple[Contender, ...], tuple[int, ...]]:
    """The models whose speed is measured, and the contexts.

    Raises:
        UsageError: a context that a model cannot read, or numbers that make no sense.
    """
    if not speed:
        if scale is not None:
            raise UsageError("--scale is for the speed part, which --no-speed leaves out: drop one of them")
        return contenders, ()
    for what, numbers, least in (
        ("--contexts", contexts or (), 2),
        ("--batch-sizes", batch_sizes, 1),
        ("--repeats", (repeats,), 1),
    ):
        for number in numbers:
            if number < least:
                raise UsageError(f"{what} has {number}, expected at least {least}")
    if scale is not None:
        shape = scale_shape(scale)
        published = shape.get("n_positions") or shape["max_position_embeddings"]
        chosen = tuple(contexts or (c for c in _CONTEXTS if c <= published))
        return at_scale(contenders, scale, max(chosen)), chosen
    limit, owner = _limit_of(contenders)
    for context in contexts or ():
        if limit is not None and context > limit:
            raise UsageError(
                f"--contexts has {context}, but '{owner.origin.name}' reads at most {limit} tokens: give less, or time "
                "random weights of a larger shape with --scale"
            )
    return contenders, tuple(contexts or _default_contexts(limit, contenders[0].encoder))


def _default_contexts(limit: int | None, encoder: bool = False) -> list[int]:
    """Of the usual ones those that fit; for a shorter limit a quarter, half and all of it."""
    fits = [context for context in _CONTEXTS if limit is None or context <= limit]
    if encoder:
        return [context for context in (WINDOW, _CONTEXTS[0]) if context <= (limit or context)] or [limit or WINDOW]
    if limit is not None and limit < 2 * _CONTEXTS[0]:
        return sorted({max(2, limit // 4), max(2, limit // 2), limit})
    return fits if limit is None or limit >= _CONTEXTS[-1] else sorted({*fits, limit})


def _measure(job: Job) -> None:
    if job.contenders[0].encoder:
        _measure_encoders(job)
    else:
        _measure_writers(job)


def _measure_writers(job: Job) -> None:
    """What there is to measure of language models."""
    original = job.contenders[0]
    if job.contexts:  # in processes of their own, before anything is loaded here
        largest = max(job.contexts), max(job.batch_sizes)
        for contender, timed in zip(job.contenders, job.timed, strict=True):
            job.part(contender, "peak memory", lambda advance, timed=timed: peak_memory(timed.recipe, *largest))  # type: ignore[misc]
    for contender in job.contenders:
        _measure_quality(job, original, contender)
    if job.contexts:
        if job.scale is not None:
            job.loaded.clear()
        for contender, timed in zip(job.contenders[1:], job.timed[1:], strict=True):
            _measure_speed(job, contender, timed)


def _measure_encoders(job: Job) -> None:
    """What there is to measure of models that read a text once."""
    original, passages = job.contenders[0], job.passages
    job.part(original, "parameters", lambda advance: parameters(job.model(original)))
    for contender in job.contenders[1:]:
        job.part(contender, "parameters", lambda advance, contender=contender: parameters(job.model(contender)))  # type: ignore[misc]
        if passages is not None:
            job.part(
                contender,
                "embeddings",
                lambda advance, contender=contender, texts=passages.windows: compare_embeddings(  # type: ignore[misc]
                    job.model(original), job.model(contender), texts, advance
                ),
            )
        if job.contexts:
            job.part(
                contender,
                "forward",
                lambda advance, contender=contender: compare_forward(  # type: ignore[misc]
                    job.model(original),
                    job.model(contender),
                    contexts=job.contexts,
                    batch_sizes=job.batch_sizes,
                    repeats=job.repeats,
                    advance=advance,
                ),
            )


def _measure_quality(job: Job, original: Contender, contender: Contender) -> None:
    job.part(contender, "cache", lambda advance: _cache(job, contender))
    harness = job.harness
    if harness is not None:
        tokenizer = original.tokenizer()
        job.part(
            contender,
            "tasks",
            lambda advance: harness.run(
                job.model(contender), tokenizer, job.limit, job.num_fewshot, job.task_batch_size
            ),
        )
    passages = job.passages
    if passages is None or contender is original:
        return
    parts = (
        [("quality", compare_on_text)] if passages.two_sides else [("quality", compare_on_text), ("copy probe", probe)]
    )
    for name, measure in parts:
        job.part(
            contender,
            name,
            lambda advance, measure=measure: measure(job.model(original), job.model(contender), passages, advance),  # type: ignore[misc]
        )


def _measure_speed(job: Job, contender: Contender, timed: Contender) -> None:
    def measure(advance: Callable[[int, int], None]) -> dict[str, Any]:
        rows = compare_speed(
            job.model(job.timed[0]),
            job.model(timed),
            contexts=job.contexts,
            batch_sizes=job.batch_sizes,
            repeats=job.repeats,
            advance=advance,
        )
        scaled = None
        if job.scale is not None:
            scaled = {"shape": job.scale, "form": timed.form, "model_type": timed.config.model_type}
            scaled["original_bytes_per_token"] = cache_bytes_per_token(job.model(job.timed[0]))
            scaled["bytes_per_token"] = cache_bytes_per_token(job.model(timed))
        return {"rows": rows, "scale": scaled}

    job.part(contender, "speed", measure)


def _cache(job: Job, contender: Contender) -> dict[str, Any]:
    model = job.model(contender)
    numbers = predicted_numbers(contender.config.to_dict(), contender.name)
    itemsize = next(model.parameters()).element_size()
    source = {"source_bytes_per_token": source_bytes_per_token(model)} if contender.two_stacks else {}
    return source | {
        "bytes_per_token": cache_bytes_per_token(model),
        "predicted_bytes_per_token": None if numbers is None else numbers * itemsize,
    }


def _finish(job: Job, settings: dict[str, Any], folder: Path | None, command: str | None, complete: bool) -> Evaluation:
    document = make_document(job, settings, command, complete)
    if folder is None:
        return Evaluation(document, {}, tuple(document["notes"]))
    files, notes = write_reports(document, folder)
    return Evaluation(document, files, (*document["notes"], *notes))
