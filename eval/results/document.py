"""The document that every report is made from: all figures of an evaluation, as eval.json holds them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from convert_attn.convert.checkpoint.shards import open_weights
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.planning.provenance import headers_sha256, read_provenance
from convert_attn.convert.text.pair_windows import HALVED, is_filled
from convert_attn.convert.version import __version__
from convert_attn.eval.measures.compare import dominances
from convert_attn.eval.measures.contenders import Contender
from convert_attn.eval.measures.environment import environment
from convert_attn.eval.measures.figures import count
from convert_attn.eval.results.job import Job
from convert_attn.eval.tasks.harness import paired


def _model_entry(job: Job, contender: Contender) -> dict[str, Any]:
    get = job.store.get
    tasks, theirs = get(contender, "tasks"), get(job.contenders[0], "tasks")
    return {
        "name": contender.name,
        "model": contender.origin.name,
        "commit": contender.origin.commit,
        "model_type": contender.config.model_type,
        "form": contender.form,
        "context": contender.context,
        "quality": get(contender, "quality"),
        "probe": get(contender, "copy probe"),
        "tasks": tasks,
        "task_differences": paired(theirs, tasks) if tasks and theirs and contender is not job.contenders[0] else None,
        "cache": get(contender, "cache"),
        "peak_memory": get(contender, "peak memory"),
        "speed": get(contender, "speed"),
        "encoder": contender.encoder,
        "two_stacks": contender.two_stacks,
        "parameters": get(contender, "parameters"),
        "embeddings": get(contender, "embeddings"),
        "forward": get(contender, "forward"),
    }


def make_document(job: Job, settings: dict[str, Any], command: str | None, complete: bool) -> dict[str, Any]:
    original, *models = (_model_entry(job, contender) for contender in job.contenders)
    passages = job.passages
    text = None
    if passages is not None:
        text = {
            "name": job.text,
            "windows": passages.windows.shape[0],
            "window": passages.length,
            "pairs": passages.two_sides,
            "tokens": passages.tokens,
            "documents": len(passages.documents.unique()),
            "bytes_per_token": passages.bytes_per_token,
        }
    return {
        "convert_attn": __version__,
        "command": command,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
        "environment": environment(settings["device"]) | {"dtype": settings["dtype"]},
        "settings": settings,
        "text": text,
        "original": original,
        "models": models,
        "dominance": dominances(models),
        "notes": _notes(job, models, complete),
    }


def _strangers(job: Job) -> list[str]:
    """Conversions whose config.json records another original than the one they are compared with."""
    original = job.contenders[0].origin
    found = []
    for contender in job.contenders[1:]:
        try:
            _, recorded = read_provenance(contender.origin.folder)
            headers = headers_sha256(open_weights(original.folder))
        except ConvertAttnError:  # no conversion of ours, or nothing to compare with
            continue
        source, commit = recorded.get("source"), recorded.get("source_commit")
        other_commit = bool(commit and original.commit and commit != original.commit)
        other_weights = recorded.get("source_headers_sha256") not in (None, headers)
        if source not in (None, original.label) or other_weights or other_commit:
            at = f" at {str(commit)[:12]}" if other_commit else ""
            found.append(
                f"'{contender.name}' was made from '{source}'{at}, by its config.json, and is compared with "
                f"'{original.label}', which may be another model: what differs may not be the conversion's doing."
            )
    return found


def _notes(job: Job, models: list[dict[str, Any]], complete: bool) -> list[str]:
    notes = _strangers(job)
    if not complete:
        notes.append("This run was not finished: what is missing was not measured. The same command takes it up again.")
    notes += [f"{contender.name}: {warning}." for contender in job.contenders for warning in contender.warnings]
    limits = {contender.name: contender.context for contender in job.contenders}
    if len(set(limits.values())) > 1:
        listed = ", ".join(f"{name} {limit or 'unlimited'}" for name, limit in limits.items())
        notes.append(f"Context limits differ ({listed} tokens): nothing was measured beyond the shortest.")
    if job.passages is not None and job.passages.two_sides and not is_filled(job.passages.windows):
        notes.append(f"The text has no pairs: {HALVED}. Give --text with pairs.")
    if job.scale is not None:
        notes.append(
            f"Speed and peak memory are of random weights at the shape of {job.scale} ({_forms(job, models)}); "
            "quality and the cache bytes in the tables are of the models named."
        )
    rows = [row for model in models for row in (model["speed"] or {}).get("rows", []) if "skipped" in row]
    notes += sorted({f"Context {r['context']}, batch {r['batch_size']} was not timed: {r['skipped']}." for r in rows})
    probes = [row for model in models for row in model["probe"] or [] if row["original_gain"]["error"]]
    if probes and all(row["original_gain"]["mean"] < 2 * row["original_gain"]["error"] for row in probes):
        notes.append(
            "The original itself gains nothing from an earlier copy of a passage at any distance, so the copy probe "
            "cannot show lost retrieval here; KL at the copied tokens and the losses by position still can."
        )
    return notes


def _forms(job: Job, models: list[dict[str, Any]]) -> str:
    """What each model is at scale, with its measured cache where it was timed."""
    listed = []
    for model, contender, timed in zip(models, job.contenders[1:], job.timed[1:], strict=True):
        scaled = (model["speed"] or {}).get("scale")
        held = f", {count(scaled['bytes_per_token'])} bytes of cache per token" if scaled else ""
        whole = f" against {count(scaled['original_bytes_per_token'])}" if scaled else ""
        listed.append(f"{contender.name} as {timed.form}{held}{whole}")
    return "; ".join(listed)
