"""The model card, rendered from config.json alone: what its block `convert_attn` says, and nothing that it does not.

The rendered part stands between two marks: whoever adds data to the block (a conversion, `heal`, `eval`) writes it
anew, and what others wrote around the marks stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import SharedHeads, form_of, query_heads
from convert_attn.convert.classes.auto_classes import auto_class_of, hub_task
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.classes.language_model import language_config
from convert_attn.convert.methods import methods
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.planning.request import EXPERIMENTS

_BEGIN, _END = "<!-- convert-attn: begin -->", "<!-- convert-attn: end -->"
_RENDERED = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n?", re.DOTALL)
_WRITES, _SEES = "text-generation", "image-text-to-text"
_CARRIED = ("license", "license_name", "license_link", "language")
_LEARNED = {"all": "all parameters", "gate": "the gate alone"}
_TEXTS = {
    "auto": "the general text that comes with convert-attn",
    "sample": "the samples' text that comes with convert-attn",
    "self": "text that the model wrote",
}


def source_metadata(text: str | None) -> dict[str, Any]:
    """Give the YAML header of the source's card, {} where there is none that can be read."""
    if text is None:
        return {}
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())
    except Exception:  # the YAML of others, and whatever its parser raises
        return {}


def header(plan: Plan) -> str:
    """Give the YAML of a new card, with its marks."""
    carried = {key: value for key, value in source_metadata(plan.source.card_text()).items() if key in _CARRIED}
    data = ModelCardData(
        **carried,
        **_base_model(plan),
        library_name="transformers",
        pipeline_tag=_pipeline(plan) if _is_language_model(plan) else hub_task(plan.source.auto_class),
        tags=["convert-attn", plan.request.to, *(["kv-cache"] if plan.geometry.causal else []), plan.result_type],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _is_language_model(plan: Plan) -> bool:
    """Whether it goes on with a text: neither an encoder nor one with an encoder."""
    return plan.geometry.causal and plan.arch.cross is None


def _pipeline(plan: Plan) -> str:
    """What the Hub calls what a model that writes is for."""
    return _SEES if plan.source.auto_class == "AutoModelForImageTextToText" else _WRITES


def _base_model(plan: Plan) -> dict[str, Any]:
    """`base_model` must be a Hub id; a folder or a bundled sample has none.

    Of the Hub's relations (adapter, merge, quantized, finetune) a conversion is a "finetune": it stands alone, comes
    from one model, keeps the numbers' precision, and its weights are others.
    """
    if plan.source.origin.commit is None:
        return {}
    return {"base_model": plan.source.origin.name, "base_model_relation": "finetune"}


def write_card(text: str, config: Mapping[str, Any], name: str) -> str:
    """Write the rendered part of a card anew.

    Args:
        text: of the card so far, or its header alone.
        config: the folder's config.json, with its block `convert_attn`.
        name: of the folder.
    """
    return between_marks(text, render(config, name))


def between_marks(text: str, body: str) -> str:
    """Put a body between the marks of a card, at its end where it has none; what is around them stays."""
    rendered = f"{_BEGIN}\n\n{body}\n{_END}\n"
    if _RENDERED.search(text):
        return _RENDERED.sub(lambda _: rendered, text, count=1)
    return f"{text.rstrip()}\n\n{rendered}"


def render(config: Mapping[str, Any], name: str) -> str:
    """Render the body of a card: what was done, what it costs, how to load it."""
    sections = ("\n".join(part(config, name)) for part in (_made, _quality, _again, _load, _healed, _measured))
    return "\n\n".join(section for section in sections if section) + "\n"


# --- sections, as lines


def _made(config: Mapping[str, Any], name: str) -> Iterator[str]:
    block: dict[str, Any] = config["convert_attn"]
    typed = typed_config(language_config(dict(config), name), name)
    form, heads = form_of(typed), query_heads(typed)
    before = SharedHeads.of(block["source_num_key_value_heads"], typed.num_hidden_layers)
    commit = f" at commit `{block['source_commit']}`" if block["source_commit"] else ""
    below = f" (folder `{block['source_subfolder']}`)" if block["source_subfolder"] else ""
    yield f"# {name}"
    yield ""
    yield f"`{block['source']}`{below}{commit}, converted by convert-attn {block['version']}"
    if block.get("experimental"):
        yield f"to what is experimental ({block['form']}): {block['experimental']}."
    else:
        yield f"to {form.label(heads)}: {form.sentence(heads, before)}."
    yield ""
    yield "| | before | after |"
    yield "|---|---|---|"
    yield f"| attention | {before.label(heads)} | {form.label(heads)} |"
    if cache := block.get("cache"):
        was, now = cache["bytes_per_token"]
        yield f"| KV cache, bytes per {block.get('cache_of', 'token')} ({cache['dtype']}) | {was:,} | {now:,} |"
        if most := cache.get("most_tokens"):
            yield f"| KV cache, bytes from {most:,} tokens on | grows | {most * now:,} |"
    if parameters := block.get("parameters"):
        yield "| KV cache | none (an encoder) | none |"
        yield "| parameters | {:,} | {:,} |".format(*parameters)
    yield ""
    if block.get("inside"):
        yield (
            f"The language model ({block['source_model_type']}) inside the {block['inside']} was converted, on text "
            "alone; everything else is the source's."
        )
    if unmeasured := block.get("unmeasured_layers"):
        yield (
            f"The attention of layer {', '.join(map(str, unmeasured))} looks at images alone, and no text goes through "
            "it: its heads are\nshared by what the weights say, which ruins those of real models, and what that costs "
            "is in none of the figures here."
        )
    method = methods().get(block["method"])
    source = f" ({method.source})" if method else ""
    yield f"Method: `{block['method']}`{source}, {calibrated_on(block['calibration'])}, seed {block['seed']}."
    yield _differs(block)


def _differs(block: Mapping[str, Any]) -> str:
    """Which tensors are not the source's."""
    if block.get("heal"):
        return "It was trained after the conversion, so that other tensors than the attention's may differ, too."
    if block["to"] in EXPERIMENTS:
        return "No training followed the conversion. Every tensor of the source is there as it was."
    if (block["calibration"] or {}).get("refit") == "mlp":
        arch = architectures().get(block.get("source_model_type", ""))
        ends = f" (`{arch.mlp_output}`)" if arch else ""
        return (
            "No training followed the conversion. The attention projections differ from the source, and so does the "
            f"projection\nthat ends each MLP{ends}; every other tensor is the same."
        )
    return (
        "No training followed the conversion. Only the attention projections differ from the source; every other "
        "tensor is the same."
    )


def calibrated_on(calibration: Mapping[str, Any] | None) -> str:
    """Name the text that a conversion was fitted on, and what was solved on it, in words.

    Args:
        calibration: as in the block `convert_attn`; None: from weights alone.
    """
    if calibration is None:
        return "no calibration text"
    tokens, text = calibration["tokens"], calibration["text"]
    counted = f"{tokens:,} tokens of " if tokens else ""
    mlp = ", the projection that ends each MLP too" if calibration["refit"] == "mlp" else ""
    refit = f" and solved anew on it, layer by layer{mlp}" if calibration["refit"] else ""
    return f"{counted}{_TEXTS.get(text, text)}{refit}"


def _quality(config: Mapping[str, Any], name: str) -> Iterator[str]:
    """What was measured when it was made."""
    block = config["convert_attn"]
    found = block.get("quality") or block.get("quality_before_heal")
    if not found:
        if not block.get("heal") and not block.get("eval"):
            yield "No quality was measured for this card."
        return
    healed = " before it was healed" if block.get("heal") else ""
    yield f"## Quality{healed}"
    yield ""
    if "cosine" in found:
        yield from _similarity(found)
        return
    yield (
        f"As converted, on {found['windows']} windows of {found['length']} tokens ({found['text']}){_alone(block)}, "
        "with standard errors:"
    )
    yield ""
    yield "| | original | converted |"
    yield "|---|---|---|"
    now, kl, top1 = found["perplexity"], found["kl"], found["top1"]
    yield f"| perplexity | {found['original']['mean']:.2f} | {now['mean']:.2f} ± {now['error']:.2f} |"
    yield f"| KL(original \\|\\| converted), nats per token | 0 | {kl['mean']:.4f} ± {kl['error']:.4f} |"
    yield f"| top-1 agreement | 100% | {top1['mean']:.1%} ± {top1['error']:.1%} |"


def _alone(block: Mapping[str, Any]) -> str:
    """What was not looked at, where the language model is inside a larger model."""
    return "" if block.get("inside") is None else ", on text alone: no image was looked at"


def _similarity(found: Mapping[str, Any]) -> Iterator[str]:
    """How alike an encoder's embeddings are."""
    cosine = found["cosine"]
    yield (
        f"As converted, on {found['windows']} texts of {found['length']} tokens ({found['text']}): the embedding of a "
        f"text, the mean of its last\nhidden states, has a mean cosine similarity of {cosine['mean']:.4f} ± "
        f"{cosine['error']:.4f} to the original's (least: {found['least']:.4f})."
    )


def _again(config: Mapping[str, Any], name: str) -> Iterator[str]:
    block = config["convert_attn"]
    bytes_ = "The same bytes as before the training" if block.get("heal") else "The same bytes again"
    yield f"{bytes_}, with the versions in `config.json` (`convert_attn`):"
    yield ""
    yield "```"
    yield block["command"]
    yield "```"


def _load(config: Mapping[str, Any], name: str) -> Iterator[str]:
    custom = "auto_map" in config
    yield "## Load it"
    yield ""
    yield "```python"
    yield how_to_load(auto_class_of(dict(config)), custom, f"./{name}")
    yield "```"
    yield ""
    yield (
        "Its class is in the `modeling_*.py` file of this repository, hence `trust_remote_code=True`, for the "
        "tokenizer too (or `import convert_attn` first, which registers the class)."
        if custom
        else "It uses a class that transformers ships: no custom code."
    )


def how_to_load(auto: str, custom: bool, where: str) -> str:
    """Write the Python that loads a result.

    Args:
        auto: its Auto class.
        custom: its class is in its own files.
        where: its folder or repository.
    """
    flag = ", trust_remote_code=True" if custom else ""
    return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("{where}"{flag})'


def _healed(config: Mapping[str, Any], name: str) -> Iterator[str]:
    """Training after the conversion, run by run."""
    runs = [run for run in config["convert_attn"].get("heal") or [] if "stages" in run]
    if runs:
        yield "## Healed"
    for run in runs:
        stages = ", then ".join(run["stages"])
        learned = _LEARNED.get(run["train"], "the attention's parameters")
        teacher = f", teacher `{run['teacher']}`" if run["teacher"] else ""
        yield ""
        yield f"Trained by `convert-attn heal` {run['version']}: {stages}; {learned};"
        yield f"{run['tokens']:,} tokens of {run['text']}{teacher}."
        if run["selection"]["best"] is not None:
            before, after = run["selection"]["start"], run["selection"]["best"]
            unit = run.get("unit", "nats per token")
            yield ""
            yield "| on selection text, not trained on | before | after |"
            yield "|---|---|---|"
            goal = ", ".join(filter(None, (run.get("goal", "loss"), unit))).replace("|", "\\|")
            yield f"| {goal} | {before:.4f} | {after:.4f} |"
            if perplexity := run["selection_perplexity"]:
                yield "| perplexity | {:.2f} | {:.2f} |".format(*perplexity)
        if run is runs[-1] and run.get("curve"):
            yield ""
            yield f"![loss]({run['curve']})"


def _measured(config: Mapping[str, Any], name: str) -> Iterator[str]:
    found = config["convert_attn"].get("eval")
    if found:
        yield "\n".join(measured_lines(found))


def measured_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Write what `eval` measured as a section.

    Args:
        found: `original`, `text`, `windows`, `window`, `dtype`, `quality` (None where none was measured) and `tasks`:
            rows of a name, the original's figure and the result's.
    """
    yield "## Measured"
    yield ""
    if found["quality"]:
        yield (
            f"Against `{found['original']}` on {found['text']} ({found['windows']} windows of {found['window']} "
            f"tokens, {found['dtype']}), by `convert-attn eval`:"
        )
        yield ""
    yield "| | original | converted |"
    yield "|---|---|---|"
    for what, before, after in [*(found["quality"] or ()), *found["tasks"]]:
        yield f"| {what} | {before} | {after} |".replace("||", "\\|\\|")


def folder_card(folder: Path) -> ModelCard:
    """Read a folder's card, an empty one where it has none.

    Raises:
        ValueError: its header cannot be read; other types too, as YAML's and the Hub's readers have them.
    """
    path = folder / "README.md"
    if not path.is_file():
        return ModelCard("---\nlibrary_name: transformers\n---\n")
    return ModelCard(path.read_text(encoding="utf-8"))
