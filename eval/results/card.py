"""Results into a converted model's card: `model-index` for the Hub, and a section for the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.planning.provenance import read_provenance
from convert_attn.convert.publish.card import between_marks, folder_card, measured_lines, write_card
from convert_attn.convert.samples import SAMPLES, sample_path
from convert_attn.eval.measures.contenders import Contender
from convert_attn.eval.measures.figures import estimate
from convert_attn.eval.results.store import write_whole

_TEXT_GENERATION, _FEATURES, _TEXT_TO_TEXT = "text-generation", "feature-extraction", "text2text-generation"


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
    try:
        return folder_card(folder)
    except Exception as error:  # YAML's own errors, and what huggingface_hub makes of a wrong model-index
        reason, path = " ".join(str(error).split()), folder / "README.md"
        raise UsageError(f"the header of '{path}' cannot be read ({reason}): mend it, or drop --update-card") from None


def _results(document: dict[str, Any], model: dict[str, Any]) -> list[EvalResult]:
    """One EvalResult per figure."""
    found: list[EvalResult] = []
    task = _FEATURES if model["encoder"] else _TEXT_TO_TEXT if model["two_stacks"] else _TEXT_GENERATION

    def add(dataset: str, type_: str, metric: str, label: str, value: float) -> None:
        found.append(
            EvalResult(
                task_type=task,
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
    if model["embeddings"]:
        name, cosine = document["text"]["name"], model["embeddings"]["cosine"]["mean"]
        add(name, "text", "cosine_similarity", "cosine similarity of embeddings to the original's", cosine)
    for name, result in (model["tasks"] or {}).items():
        for metric, value in result["metrics"].items():
            add(name, name, metric, metric, value["mean"])
    return found


def _figures(document: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """What the card's section is rendered from: rows of a name, the original's figure and the result's."""
    quality, original, text = model["quality"], document["original"], document["text"] or {}
    rows = None
    if quality:
        before = {name: quality[f"original_{name}"]["mean"] for name in ("perplexity", "bits_per_byte")}
        rows = [
            ["perplexity", f"{before['perplexity']:.2f}", f"{quality['perplexity']['mean']:.2f}"],
            ["bits per byte", f"{before['bits_per_byte']:.4f}", f"{quality['bits_per_byte']['mean']:.4f}"],
            ["KL(original || converted), nats per token", "0", f"{quality['kl']['mean']:.4f}"],
            ["top-1 agreement", "100%", f"{quality['top1']['mean']:.1%}"],
        ]
    if similar := model["embeddings"]:
        weights = (f"{one['parameters']:,}" for one in (original, model))
        rows = [
            ["cosine similarity of embeddings", "1", estimate(similar["cosine"], 4)],
            ["error of hidden states, squared, relative", "0", estimate(similar["hidden_error"])],
            ["parameters", *weights],
        ]
    tasks = []
    for task, result in (model["tasks"] or {}).items():
        theirs = (original["tasks"] or {}).get(task, {}).get("metrics", {})
        for metric, value in result["metrics"].items():
            known = f"{theirs[metric]['mean']:.4g}" if metric in theirs else ""
            tasks.append([f"{task}, {metric}", known, f"{value['mean']:.4g}"])
    return {
        "original": original["name"],
        "text": text.get("name"),
        "windows": text.get("windows"),
        "window": text.get("window"),
        "dtype": document["environment"]["dtype"],
        "quality": rows,
        "tasks": tasks,
    }


def update_cards(conversions: tuple[Contender, ...], document: dict[str, Any]) -> None:
    """Write the results of all conversions, see `update_card`."""
    for contender, model in zip(conversions, document["models"], strict=True):
        update_card(contender.origin.folder, document, model)


def update_card(folder: Path, document: dict[str, Any], model: dict[str, Any]) -> None:
    """Write a model's results into README.md of its folder, and of a conversion into config.json; all else stays.

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
    try:
        header = data.to_yaml()
    except Exception as error:  # results of others that the Hub's format cannot hold
        raise ConvertAttnError(f"the card in '{folder}' cannot be written: {error}") from None
    found = _figures(document, model)
    try:
        config, block = read_provenance(folder)
    except UsageError:  # a model of the user's own: its card is all there is
        body = between_marks(card.text, "\n".join(measured_lines(found)) + "\n")
    else:
        config = config | {"convert_attn": block | {"eval": found}}
        write_whole(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        body = write_card(card.text, config, folder.resolve().name)
    write_whole(folder / "README.md", f"---\n{header}\n---\n{body}")
