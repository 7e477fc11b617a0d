"""The model card of a converted checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from convert_attn.convert.classes.auto_classes import auto_class_of
from convert_attn.convert.fitting.measure import UNMEASURED, Made
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.planning.provenance import command
from convert_attn.convert.version import __version__

_CARRIED = ("license", "license_name", "license_link", "language")


def source_metadata(text: str | None) -> dict[str, Any]:
    """The YAML header of the source's card, {} where there is none that can be read."""
    if text is None:
        return {}
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())
    except Exception:  # the YAML of others, and whatever its parser raises
        return {}


def model_card(plan: Plan, made: Made = UNMEASURED) -> str:
    """README.md for the output: what was done, how to load it, what the cache costs now."""
    carried = {key: value for key, value in source_metadata(plan.source.card_text()).items() if key in _CARRIED}
    data = ModelCardData(
        **carried,
        **_base_model(plan),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["convert-attn", plan.request.to, "kv-cache", plan.result_type],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(plan, made)}"


def _base_model(plan: Plan) -> dict[str, Any]:
    """`base_model` must be a Hub id; a folder or a bundled sample has none.

    Of the Hub's relations (adapter, merge, quantized, finetune) a conversion is a "finetune": it stands alone, comes
    from one model, keeps the numbers' precision, and its weights are others.
    """
    if plan.source.origin.commit is None:
        return {}
    return {"base_model": plan.source.origin.name, "base_model_relation": "finetune"}


def how_to_load(plan: Plan, where: str | None = None) -> str:
    """The Python that loads the result from `where` (default: the output folder as typed)."""
    flag = ", trust_remote_code=True" if plan.target.layout == "custom" else ""
    auto = auto_class(plan)
    where = where or (str(plan.output) if plan.output.is_absolute() else f"./{plan.output}")
    return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("{where}"{flag})'


def auto_class(plan: Plan) -> str:
    """The Auto class that fits the source's architecture."""
    return auto_class_of(plan.source.config)


def calibrated_on(plan: Plan, tokens: int) -> str:
    """The text that the conversion was fitted on, in words."""
    text = plan.text
    if text is None:
        return "no calibration text"
    named = {
        "auto": "the general text that comes with convert-attn",
        "sample": "the samples' text that comes with convert-attn",
        "self": "text that the model wrote",
    }.get(text, Path(text).name if Path(text).exists() else text)
    counted = f"{tokens:,} tokens of " if tokens else ""
    mlp = ", the projection that ends each MLP too" if plan.refit_mlp else ""
    refit = f" and solved anew on it, layer by layer{mlp}" if plan.refit else ""
    return f"{counted}{named}{refit}"


def _quality(made: Made) -> str:
    """What was measured, as a section's sentence and table."""
    found = made.measured
    if isinstance(found, str):
        return " No quality was measured for this card."
    return f"""

## Quality

When it was made, on {found.windows} windows of {found.length} tokens ({found.text}), with standard errors:

| | original | converted |
|---|---|---|
| perplexity | {found.original.mean:.2f} | {found.perplexity.mean:.2f} ± {found.perplexity.error:.2f} |
| KL(original \\|\\| converted), nats per token | 0 | {found.kl.mean:.4f} ± {found.kl.error:.4f} |
| top-1 agreement | 100% | {found.top1.mean:.1%} ± {found.top1.error:.1%} |
"""


def _made(plan: Plan) -> str:
    """Where it comes from and how to make it again."""
    origin = plan.source.origin
    commit = f" at commit `{origin.commit}`" if origin.commit else ""
    below = f" (folder `{origin.subfolder}`)" if origin.subfolder else ""
    return f"`{origin.label}`{below}{commit}, converted by convert-attn {__version__}"


def _differs(plan: Plan) -> str:
    """Which tensors are not the source's."""
    if plan.refit_mlp:
        return (
            f"The attention projections differ from the source, and so does the projection\nthat ends each MLP "
            f"(`{plan.arch.mlp_output}`); every other tensor is the same."
        )
    return "Only the attention projections differ from the source; every other\ntensor is the same."


def _body(plan: Plan, made: Made) -> str:
    before, after = plan.cache_bytes
    name = plan.output.absolute().name
    rows = "\n".join(f"| {what} | {old} | {new} |" for what, (old, new) in plan.form.rows(plan.geometry).items())
    sizes = plan.geometry
    served = (
        "It uses a class that transformers ships: no custom code."
        if plan.target.layout == "native"
        else "Its class is in the `modeling_*.py` file of this repository, hence `trust_remote_code=True`, for the "
        "tokenizer too (or `import convert_attn` first, which registers the class)."
    )
    return f"""# {name}

{_made(plan)}
to {plan.request.to.upper()}: {plan.form.sentence(sizes)}.

| | before | after |
|---|---|---|
{rows}
| KV cache, bytes per token ({plan.cache_dtype}) | {before:,} | {after:,} |

Method: `{plan.method.name}` ({plan.method.source}), {calibrated_on(plan, made.tokens)}, seed {plan.request.seed}.
No training followed the conversion. {_differs(plan)}{_quality(made)}

The same bytes again, with the versions in `config.json` (`convert_attn`):

```
{command(plan)}
```

## Load it

```python
{how_to_load(plan, "./" + name)}
```

{served}
"""
