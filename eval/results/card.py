"""Results into a converted model's card: `model-index` for the Hub, and a section for the reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.samples import SAMPLES, sample_path
from convert_attn.eval.measures.contenders import Contender
from convert_attn.eval.results.store import write_whole

_BEGIN, _END = "<!-- convert-attn eval: begin -->", "<!-- convert-attn eval: end -->"
_NOT_MEASURED = " No quality was measured for this card."
_TEXT_GENERATION = "text-generation"


def check_cards(contenders: tuple[Contender, ...]) -> None:
    """Refuse what cannot be written to, before anything is measured.

    Raises:
        UsageError: not a folder of the user's, or a card whose header cannot be read.
    """
    for contender in contenders:
        origin = contender.origin
        if origin.commit is not None or origin.folder in [sample_path(name) for name in SAMPLES]:
            raise UsageError(f"--update-card writes into local folders, and '{origin.name}' is none: drop it")
        _read(origin.folder)


def _read(folder: Path) -> ModelCard:
    path = folder / "README.md"
    if not path.is_file():
        return ModelCard("---\nlibrary_name: transformers\n---\n")
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML's own errors, and what huggingface_hub makes of a wrong model-index
        reason = " ".join(str(error).split())
        raise UsageError(f"the header of '{path}' cannot be read ({reason}): mend it, or drop --update-card") from None
    return card


def _results(document: dict[str, Any], model: dict[str, Any]) -> list[EvalResult]:
    """One EvalResult per figure."""
    found: list[EvalResult] = []

    def add(dataset: str, type_: str, metric: str, label: str, value: float) -> None:
        found.append(
            EvalResult(
                task_type=_TEXT_GENERATION,
                dataset_type=type_,
                dataset_name=dataset,
                metric_type=metric,
                metric_name=label,
                metric_value=value,
            )
        )

    if model["quality"]:
        text, quality = document["text"]["name"], model["quality"]
        add(text, "text", "perplexity", "perplexity", quality["perplexity"]["mean"])
        add(text, "text", "bits_per_byte", "bits per byte", quality["bits_per_byte"]["mean"])
        add(text, "text", "kl_divergence", "KL(original || converted), nats per token", quality["kl"]["mean"])
        add(text, "text", "top1_agreement", "top-1 agreement with the original", quality["top1"]["mean"])
    for task, result in (model["tasks"] or {}).items():
        for metric, value in result["metrics"].items():
            add(task, task, metric, metric, value["mean"])
    return found


def _section(document: dict[str, Any], model: dict[str, Any]) -> str:
    lines = [_BEGIN, "", "## Measured", ""]
    quality, original = model["quality"], document["original"]
    if quality:
        text = document["text"]
        lines += [
            f"Against `{original['name']}` on {text['name']} ({text['windows']} windows of {text['window']} tokens, "
            f"{document['environment']['dtype']}), by `convert-attn eval`:",
            "",
            "| | original | converted |",
            "|---|---|---|",
            f"| perplexity | {quality['original_perplexity']['mean']:.2f} | {quality['perplexity']['mean']:.2f} |",
            f"| bits per byte | {quality['original_bits_per_byte']['mean']:.4f} | "
            f"{quality['bits_per_byte']['mean']:.4f} |",
            f"| KL(original \\|\\| converted), nats per token | 0 | {quality['kl']['mean']:.4f} |",
            f"| top-1 agreement | 100% | {quality['top1']['mean']:.1%} |",
        ]
    for task, result in (model["tasks"] or {}).items():
        theirs = (original["tasks"] or {}).get(task, {}).get("metrics", {})
        lines += [] if quality or len(lines) > 4 else ["| | original | converted |", "|---|---|---|"]
        for metric, value in result["metrics"].items():
            before = f"{theirs[metric]['mean']:.4g}" if metric in theirs else ""
            lines.append(f"| {task}, {metric} | {before} | {value['mean']:.4g} |")
    return "\n".join([*lines, "", _END, ""])


def update_card(folder: Path, document: dict[str, Any], model: dict[str, Any]) -> None:
    """Write a model's results into README.md of its folder; results of others and all else stay.

    Raises:
        UsageError: its header cannot be read.
        ConvertAttnError: it cannot be written.
    """
    results = _results(document, model)
    if not results:
        return
    card = _read(folder)
    data: Any = card.data
    mine = {(result.dataset_name, result.metric_type) for result in results}
    kept = [r for r in data.eval_results or [] if (r.dataset_name, r.metric_type) not in mine]
    data.eval_results = [*kept, *results]
    data.model_name = data.model_name or folder.resolve().name
    body = re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n?", "", card.text, flags=re.DOTALL).rstrip()
    body = body.replace(_NOT_MEASURED, "")
    try:
        header = data.to_yaml()
    except Exception as error:  # results of others that the Hub's format cannot hold
        raise ConvertAttnError(f"the card in '{folder}' cannot be written: {error}") from None
    write_whole(folder / "README.md", f"---\n{header}\n---\n{body}\n\n{_section(document, model)}")
