"""The report as tables, from the document alone, and every form it is written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convert_attn.eval.measures.compare import headline_row
from convert_attn.eval.measures.figures import count, estimate, number, size, speedup, spread

Row = list[str]


@dataclass(frozen=True)
class Section:
    """One table with its heading and what the reader needs to know about it."""

    title: str
    note: str
    header: Row
    rows: list[Row]


def sections(document: dict[str, Any]) -> list[Section]:
    """Give all tables that have something in them."""
    makers: tuple[Callable[[dict[str, Any]], Section | None], ...] = (
        overview,
        quality,
        positions,
        copies,
        tasks,
        speed,
    )
    makers = (embeddings, forward) if document["original"]["encoder"] else (*makers, memory)
    return [section for maker in makers if (section := maker(document)) is not None and section.rows]


def overview(document: dict[str, Any]) -> Section:
    """Give one row per model."""
    original, models = document["original"], document["models"]
    whole = (original["cache"] or {}).get("bytes_per_token")
    text = next((model["quality"] for model in models if model["quality"]), None)
    timed = next((row for model in models if (row := headline_row(model))), None)
    rows = [[f"{original['name']} ({original['form']})", f"{count(whole)}", "0", "-", "100%"]]
    if text:
        rows[0][3] = number(text["original_perplexity"]["mean"], 4)
    for model in models:
        held, found = (model["cache"] or {}).get("bytes_per_token"), model["quality"]
        share = f" ({held / whole:.1%})" if held and whole else ""
        figures = ["-", "-", "-"]
        if found:
            figures = [
                estimate(found["kl"]),
                number(found["perplexity"]["mean"], 4),
                f"{found['top1']['mean']:.1%}",
            ]
        rows.append([f"{model['name']} ({model['form']})", f"{count(held)}{share}", *figures])
    header = ["model", "cache, B/token", "KL, nats/token", "perplexity", "same top-1"]
    note = "KL is KL(original || converted); ± is one standard error."
    if original["two_stacks"]:
        note += " Cache: of a token of the target and one of the source, together."
    if timed is not None:
        header += ["decode speed-up", "in attention"]
        rows[0] += ["1x", "1x"]
        for cells, model in zip(rows[1:], models, strict=True):
            row = headline_row(model) or {}
            cells += [speedup(row.get("decode")), speedup(row.get("decode_attention"))]
        note += (
            f" Decode: the original's time for a step at {timed['context']:,} tokens, batch {timed['batch_size']}, "
            "over the conversion's in the same run, and the same for the attention modules alone; in brackets the "
            "range of the quartiles. Above 1 the conversion is faster."
        )
    return Section("Overview", note, header, rows)


def embeddings(document: dict[str, Any]) -> Section:
    """Give one row per encoder."""
    original, models = document["original"], document["models"]
    whole = original["parameters"]
    rows = [[f"{original['name']} ({original['form']})", count(whole), "1", "-", "0"]]
    for model in models:
        found, held = model["embeddings"] or {}, model["parameters"]
        share = f" ({held / whole:.1%})" if held and whole else ""
        least = number(found.get("least"), 4)
        figures = [estimate(found.get("cosine"), 4), least, estimate(found.get("hidden_error"))]
        rows.append([f"{model['name']} ({model['form']})", f"{count(held)}{share}", *figures])
    text = document["text"]
    measured = f" Text: {text['name']}, {text['windows']} texts of {text['window']} tokens." if text else ""
    note = (
        "An embedding is the mean of a text's last hidden states; ± is one standard error over texts. Error of hidden "
        "states: squared, relative to the original's size. An encoder reads a text once: it has no perplexity, no "
        f"cache and no decoding that could be measured.{measured}"
    )
    header = ["model", "parameters", "cosine of embeddings", "least", "error of hidden states"]
    return Section("Overview", note, header, rows)


def forward(document: dict[str, Any]) -> Section:
    """Give the times of a forward pass of encoders."""
    rows = []
    for model in document["models"]:
        for found in model["forward"] or ():
            where = [model["name"], f"{found['context']:,}", str(found["batch_size"])]
            if "skipped" in found:
                rows.append([*where, f"not timed: {found['skipped']}", *["-"] * 3])
                continue
            for key, label in (("forward", "whole"), ("forward_attention", "attention only")):
                if (figures := found[key]) is not None:
                    times = [spread(figures[side]) for side in ("original", "converted")]
                    rows.append([*where, label, *times, speedup(figures)])
    where_ = document["environment"]
    note = (
        f"{where_['device_name']}, {where_['dtype']}, {where_['threads']} thread(s); medians with quartiles of "
        f"{document['settings']['repeats']} forward passes of the base model after two of warm-up, original and "
        "conversion in turns. Speed-up above 1: the conversion is faster."
    )
    header = ["model", "tokens", "batch", "what", "original, ms", "conversion, ms", "speed-up"]
    return Section("Speed", note, header, rows)


def quality(document: dict[str, Any]) -> Section | None:
    """Give everything measured on the text, differences paired."""
    models = [model for model in document["models"] if model["quality"]]
    if not models:
        return None
    rows = []
    for model in models:
        found = model["quality"]
        rows.append(
            [
                model["name"],
                estimate(found["loss_difference"]),
                estimate(found["bits_per_byte"], 4),
                estimate(found["bits_per_byte_difference"]),
                estimate(found["kl"]),
                estimate(found["top1"], percent=True),
                estimate(found["top5"], percent=True),
                f"{found['accuracy']['mean']:.2%} (original {found['original_accuracy']['mean']:.2%})",
            ]
        )
    text, found = document["text"], models[0]["quality"]
    note = (
        f"Text: {text['name']}. {_windows(text)}, {text['tokens']:,} predicted "
        f"tokens, {text['bytes_per_token']:.2f} bytes per token; the original has "
        f"{estimate(found['original_bits_per_byte'], 4)} bits per byte. Differences are conversion minus original, "
        f"paired; standard errors are by {found['clustered_by']} ({found['clusters']}). Top-5: the share of the "
        "original's five likeliest tokens that are among the conversion's five."
    )
    header = ["model", "loss difference, nats/token", "bits/byte", "difference", "KL, nats/token", "top-1 same"]
    return Section("Quality on the text", note, [*header, "top-5 same", "next token right"], rows)


def _windows(text: dict[str, Any]) -> str:
    if text["pairs"]:
        return f"{text['windows']} sources with targets of {text['window']} tokens on average"
    return f"{text['windows']} windows of {text['window']} tokens"


def positions(document: dict[str, Any]) -> Section | None:
    """Loss difference and KL by position in the window."""
    models = [model for model in document["models"] if model["quality"]]
    if not models:
        return None
    rows = []
    for index, place in enumerate(models[0]["quality"]["positions"]):
        label = f"{place['from']}" if place["from"] == place["to"] else f"{place['from']} to {place['to']}"
        row = [label, number(place["original_loss"]["mean"])]
        for model in models:
            found = model["quality"]["positions"][index]
            row += [estimate(found["loss_difference"]), estimate(found["kl"])]
        rows.append(row)
    header = ["position", "original loss"]
    header += [f"{model['name']}: {what}" for model in models for what in ("loss difference", "KL")]
    note = (
        "By how many tokens of the window come before the predicted one; nats per token. Figures that grow downwards "
        "mean that far tokens are hurt."
    )
    return Section("By position in the window", note, header, rows)


def copies(document: dict[str, Any]) -> Section | None:
    """Give the copy probe."""
    models = [model for model in document["models"] if model["probe"]]
    if not models:
        return None
    rows = []
    for index, place in enumerate(models[0]["probe"]):
        row = [f"{place['distance']:,}", estimate(place["original_gain"]), f"{place['original_accuracy']['mean']:.1%}"]
        for model in models:
            found = model["probe"][index]
            row += [estimate(found["loss_difference"]), estimate(found["kl"]), f"{found['accuracy']['mean']:.1%}"]
        rows.append(row)
    header = ["distance", "original: gain", "right"]
    header += [f"{model['name']}: {what}" for model in models for what in ("loss difference", "KL", "right")]
    note = (
        "A passage of 32 tokens of the text comes back after so many tokens; measured on the second time. Gain: the "
        "original's loss the first time minus the second time, in nats per token; positive where it uses the earlier "
        "copy. Loss difference: conversion minus original. Right: share of the tokens that are ranked first."
    )
    return Section("Copy probe", note, header, rows)


def tasks(document: dict[str, Any]) -> Section | None:
    """lm-eval's metrics, one row for each conversion."""
    theirs = document["original"]["tasks"] or {}
    models = [model for model in document["models"] if model["tasks"]]
    rows = []
    for task, result in theirs.items():
        for metric, value in result["metrics"].items():
            better = {True: " ↑", False: " ↓"}.get(result["higher_is_better"].get(metric.split(" ")[0]), "")
            for model in models:
                ours = model["tasks"].get(task, {}).get("metrics", {}).get(metric)
                difference = (model["task_differences"] or {}).get(task, {}).get(metric)
                figures = [estimate(value, 4), estimate(ours, 4), estimate(difference)]
                rows.append([task, f"{metric}{better}", model["name"], *figures])
    note = (
        "Through lm-eval; ↑ higher is better, ↓ lower is better. Differences are conversion minus original, paired by "
        "document where the metric is one number per document, else without error."
    )
    return Section("Tasks", note, ["task", "metric", "model", "original", "conversion", "difference"], rows)


def speed(document: dict[str, Any]) -> Section | None:
    """Give every timing."""
    rows = []
    for model in document["models"]:
        for found in (model["speed"] or {}).get("rows", []):
            where = [model["name"], f"{found['context']:,}", str(found["batch_size"])]
            if "skipped" in found:
                rows.append([*where, f"not timed: {found['skipped']}", *["-"] * 5])
                continue
            for what in ("prefill", "decode"):
                for key, label in ((what, what), (f"{what}_attention", f"{what}, attention only")):
                    figures = found[key]
                    if figures is None:
                        continue
                    rates = [number(figures["tokens_per_second"][side]) for side in ("original", "converted")]
                    times = [spread(figures[side]) for side in ("original", "converted")]
                    rows.append([*where, label, *times, *(rates if key == what else ["-", "-"]), speedup(figures)])
    timings = document["settings"]["repeats"]
    where = document["environment"]
    note = (
        f"{where['device_name']}, {where['dtype']}, {where['threads']} thread(s); medians with quartiles of {timings} "
        "calls after two of warm-up, original and conversion in turns. Prefill reads the context at once; a decode "
        "step makes its last token in front of a cache of the others, in the cache that generate() uses by default. "
        "Attention only: the time inside the attention modules, projections and cache included. Speed-up above 1: the "
        "conversion is faster."
    )
    header = ["model", "context", "batch", "what", "original, ms", "conversion, ms", "original, tokens/s"]
    return Section("Speed", note, [*header, "conversion, tokens/s", "speed-up"], rows)


def memory(document: dict[str, Any]) -> Section:
    """Cache and peak of every model."""
    rows = []
    peak: dict[str, Any] = {}
    for model in (document["original"], *document["models"]):
        cache, peak_of = model["cache"] or {}, model["peak_memory"] or {}
        peak = peak_of or peak
        measured, predicted = cache.get("bytes_per_token"), cache.get("predicted_bytes_per_token")
        source = cache.get("source_bytes_per_token")
        if measured is None:
            continue
        rows.append(
            [
                f"{model['name']} ({model['form']})",
                count(measured) + (f" ({count(source)})" if source is not None else ""),
                count(predicted),
                size(peak_of.get("peak_bytes")),
                size(peak_of.get("before_bytes")),
            ]
        )
    note = "Cache bytes are measured on the cache that the model fills; predicted ones follow from config.json."
    if document["original"]["two_stacks"]:
        note += " They are of a token of the target and one of the source; the second alone is in brackets."
    if peak:
        note += (
            f" Peak ({peak['kind']}): of a process that loads the model, reads {peak['context']:,} tokens at batch "
            f"{peak['batch_size']} and decodes one; the last column is that process before the model."
        )
    header = ["model", "cache, B/token, measured", "predicted", "peak memory", "of it before the model"]
    return Section("Memory", note, header, rows)


def verdict(document: dict[str, Any]) -> list[str]:
    """Tell which conversion dominates which, in sentences."""
    compared = [model for model in document["models"] if model["quality"] and model["cache"]]
    if len(compared) < 2:
        return []
    found = [row["sentence"] for row in document["dominance"]]
    return found or ["No conversion dominates another: each is better either in KL or in cache."]


def setup(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Tell where and how the figures were made."""
    where = document["environment"]
    packages = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers", "lm_eval") if name in where)
    rows = [
        ("command", document["command"] or "evaluate() of convert_attn"),
        ("made", f"{document['made']} by convert-attn {document['convert_attn']}"),
        (
            "device",
            f"{where['device']}: {where['device_name']}, {where['threads']} thread(s) of {where['cores']} cores",
        ),
        ("dtype", str(where["dtype"])),
        ("system", f"{where['system']}, Python {where['python']}, {packages}"),
    ]
    if document["text"]:
        rows.append(("text", document["text"]["name"]))
    for model in (document["original"], *document["models"]):
        at = f" at {model['commit']}" if model["commit"] else ""
        rows.append((model["name"], f"{model['model']}{at} ({model['model_type']}, {model['form']})"))
    return rows


def markdown(document: dict[str, Any], plot: bool) -> str:
    """Give the report as Markdown."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    lines = [f"# {document['original']['name']}: what its conversions cost and gain", ""]
    lines += [f"> {note}\n" for note in document["notes"]]
    lines += [f"- {sentence}" for sentence in verdict(document)] + [""]
    if plot:
        lines += ["![KL against cache, decode time against context](eval.png)", ""]
    for section in sections(document):
        lines += [f"## {section.title}", "", section.note, ""]
        lines.append("| " + " | ".join(map(cell, section.header)) + " |")
        lines.append("|" + "---|" * len(section.header))
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in section.rows] + [""]
    lines += ["## Setup", "", "| | |", "|---|---|"]
    lines += [f"| {cell(label)} | `{cell(value)}` |" for label, value in setup(document)]
    return "\n".join(lines) + "\n"
