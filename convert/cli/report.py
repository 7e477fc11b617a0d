"""Plans and results as people read them (rich tables) and as machines do (dicts)."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from convert_attn.convert.archs.cache_form import LatentCache, SharedHeads, numbers_of
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.classes.auto_classes import WRITES
from convert_attn.convert.conversion.run import Result
from convert_attn.convert.fitting.made import UNMEASURED, Made
from convert_attn.convert.fitting.similarity import Similarity
from convert_attn.convert.inspection.families import COLUMNS, families, not_converted
from convert_attn.convert.inspection.inspection import CONTEXTS, Inspection
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.planning.sizes import common_heads, divisors
from convert_attn.convert.publish.card import calibrated_on, how_to_load
from convert_attn.convert.publish.result_config import calibration, provenance
from convert_attn.convert.serving_rules import ServingRule
from convert_attn.convert.verification.result import Verified


def megabytes(nbytes: float) -> str:
    """Decimal megabytes, one digit after the point."""
    return f"{nbytes / 1e6:,.1f} MB"


def plan_dict(plan: Plan, made: Made = UNMEASURED) -> dict[str, Any]:
    """For --json."""
    sizes = plan.geometry
    return {
        **provenance(plan, made),
        "model_type": plan.arch.model_type,
        "result_model_type": plan.result_type,
        "layout": plan.target.layout,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "head_dim": sizes.head_dim,
        "cache_bytes_per_token_before": plan.cache_bytes[0],
        "cache_bytes_per_token_after": plan.cache_bytes[1],
        "parameters_before": plan.parameters[0],
        "parameters_after": plan.parameters[1],
        "dropped_tensors": list(plan.dropped),
        "warnings": list(plan.warnings),
        "output": str(plan.output),
        "load": _load(plan),
    }


def plan_table(plan: Plan) -> Table:
    """Tell what was found and what will be done."""
    sizes = plan.geometry
    commit = f" at {plan.source.origin.commit[:12]}" if plan.source.origin.commit else ""
    table = Table("", "found", "will be")
    # escaped: rich would take "[...]" in them for markup
    table.add_row("model", escape(f"{plan.source.origin.name}{commit}"), escape(str(plan.output)))
    table.add_row("class", plan.arch.model_type, f"{plan.result_type} ({plan.target.layout})")
    table.add_row(
        f"{_counted(sizes)} x query heads x head size", f"{sizes.num_layers} x {sizes.num_heads} x {sizes.head_dim}", ""
    )
    table.add_row("attention", SharedHeads(sizes.kv_by_layer).label(sizes.num_heads), plan.label)
    for what, (old, new) in plan.form.rows(sizes).items():
        table.add_row(what, old, new)
    table.add_row(*_gain_row(plan))
    table.add_row("method", "", escape(f"{plan.method.name}, {calibrated_on(calibration(plan, None))}"))
    if plan.dropped:
        table.add_row("dropped (buffers no class reads)", str(len(plan.dropped)), "")
    return table


def _counted(sizes: Geometry) -> str:
    """What layers are: where a block has two attentions, each of them."""
    return "layers" if sizes.attentions == 1 else "attentions of the decoder, to itself and to the encoder,"


def _gain_row(plan: Plan) -> tuple[str, str, str]:
    """What becomes less: the cache, or of an encoder, which has none, the parameters."""
    causal = plan.geometry.causal
    before, after = plan.cache_bytes if causal else plan.parameters
    unit, what = (" B", f"cache per {plan.cached_of} ({plan.cache_dtype})") if causal else ("", "parameters (no cache)")
    return what, f"{before:,}{unit}", f"{after:,}{unit} ({after / before:.1%})"


def _gain_line(plan: Plan) -> str:
    if plan.geometry.causal:
        before, after = plan.cache_bytes
        if plan.most_tokens is not None:
            return (
                f"KV cache: {before:,} -> {after:,} bytes per {plan.cached_of}, and from {plan.most_tokens:,} tokens "
                f"on {after * plan.most_tokens:,} bytes, however many there are."
            )
        return f"KV cache: {before:,} -> {after:,} bytes per {plan.cached_of} ({after / before:.1%})."
    before, after = plan.parameters
    return (
        f"KV cache: none, as an encoder keeps none. Parameters: {before:,} -> {after:,}, {before - after:,} fewer "
        f"({after / before:.1%})."
    )


def _load(plan: Plan) -> str:
    """The Python that loads the result from the output folder as typed."""
    where = str(plan.output) if plan.output.is_absolute() else f"./{plan.output}"
    return how_to_load(plan.source.auto_class, plan.target.layout == "custom", where)


def summary_lines(result: Result) -> list[str]:
    """Tell what was made and how to load it."""
    plan = result.plan
    return [
        f"Wrote {result.output} ({megabytes(result.nbytes)} of weights), verified by running it{_version(result)}.",
        *warning_lines(result.warnings),
        *_chosen(result),
        _gain_line(plan),
        *quality_lines(result),
        "",
        *(f"    {line}" for line in _load(plan).splitlines()),
    ]


def quality_lines(result: Result) -> list[str]:
    """Tell what the conversion costs, and what to do where that is too much."""
    found, plan = result.made.measured, result.plan
    if isinstance(found, str):
        return [f"Quality was not measured ({found})."]
    if isinstance(found, Similarity):
        return _similarity_lines(found, plan)
    lines = [
        f"Quality on {found.windows} windows of {found.length} tokens ({found.text}): perplexity "
        f"{found.original.mean:.2f} -> {_short(found.perplexity.mean)} (x {_short(found.ratio)} ± "
        f"{_short(found.ratio * found.log_ratio.error)}), KL {found.kl.mean:.4f} ± {found.kl.error:.4f} nats per "
        f"token, top-1 agreement {found.top1.mean:.1%} ± {found.top1.error:.1%}."
    ]
    if found.is_lossy:
        state = "unusable as it is" if found.is_ruin else "a loss that shows"
        lines.append(
            f"Perplexity {_short(found.original.mean)} -> {_short(found.perplexity.mean)}: {state}; "
            f"{'; or '.join(_remedies(plan))}."
        )
    return lines


def _similarity_lines(found: Similarity, plan: Plan) -> list[str]:
    """What the conversion costs an encoder."""
    lines = [
        f"Quality on {found.windows} texts of {found.length} tokens ({found.text}): mean cosine similarity of "
        f"embeddings (mean of the last hidden states) {found.cosine.mean:.4f} ± {found.cosine.error:.4f}, "
        f"least {found.least:.4f}."
    ]
    if found.is_lossy:
        state = "unusable as it is" if found.is_ruin else "a loss that shows"
        text = ["give --calibration TEXT, text like that which the model will see"] if plan.text is None else []
        remedies = [*text, *_more_groups(plan), "train it further on your task"]
        lines.append(f"Similarity {found.cosine.mean:.4f}: {state}; {'; or '.join(remedies)}.")
    return lines


def _more_groups(plan: Plan) -> list[str]:
    """The next larger number of groups, where there is one."""
    if not isinstance(plan.form, SharedHeads):
        return []
    most, gain = common_heads(plan.geometry), "a larger cache" if plan.geometry.causal else "fewer parameters saved"
    more = [g for g in divisors(most) if max(plan.form.groups) < g < most]
    return [f"--to gqa --groups {more[0]}, {gain}"] if more else []


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _remedies(plan: Plan) -> list[str]:
    """What would be better, the nearest first."""
    found, (before, after) = [], plan.cache_bytes
    data = "TEXT" if plan.arch.cross is None else "PAIRS.jsonl"
    if plan.text is None:
        found.append(f"give --calibration {data}, text like that which the model will see")
    if plan.arch.cross is not None and plan.source.auto_class not in WRITES:
        return [*found, *_more_groups(plan), "train it further on your task"]
    if plan.source.within is not None:  # which neither heal nor a class with a latent takes
        return [*found, *_more_groups(plan)] or ["train it further on your task"]
    found.append(f"heal it (`convert-attn heal {plan.output} --teacher {plan.source.origin.name} --data {data}`)")
    if plan.arch.cross is not None:
        return [*found, *_more_groups(plan)]
    if isinstance(plan.form, SharedHeads):
        found.append(
            f"--to mla --cache-ratio {after / before:.2g}, as much cache, with which all models tried lost less"
        )
        found += _more_groups(plan)
    else:
        found.append("give a larger --cache-ratio")
    return found


def warning_lines(warnings: tuple[str, ...]) -> list[str]:
    """Give one line for each warning."""
    return [f"Warning: {warning}." for warning in warnings]


def _version(result: Result) -> str:
    return "" if result.verified is None else f" in transformers {result.verified.transformers}"


def verified_lines(model: str, found: Verified) -> list[str]:
    """Tell what was seen of a checkpoint that passed, a line for each check."""
    figures = found.figures
    said = {
        "decodes": "decoding with its cache, alone and padded: differs by at most {:.1e} standard deviations",
        "decodes_seeing": "decoding with states of an image: differs by at most {:.1e} standard deviations",
        "padding": "a padded batch, against each text alone: differs by at most {:.1e} standard deviations",
        "generates": "generate with and without a cache: logits differ by at most {:.1e} standard deviations",
        "around_attention": "all but attention, against the source: differs by at most {:.1e} standard deviations",
    }
    lines = [text.format(figures[name]) for name, text in said.items() if name in figures]
    if "cached_numbers" in figures:
        numbers = sorted({f"{number:g}" for number in figures["cached_numbers"]})
        lines.append(f"cache, measured: {' to '.join(numbers)} numbers per token and layer")
    for name, dtype in (("block_errors", "float32"), ("block_errors_stored", str(figures.get("dtype")))):
        if figures.get(name):
            lines.append(f"attention against its weights, in {dtype}: off by at most {max(figures[name].values()):.1e}")
    if "tokenizer" in figures:
        lines.append(f"tokenizer: {figures['tokenizer']}")
    notes = [f"Note: {note}." for note in found.notes]
    return [f"{model} works in transformers {found.transformers}:", *(f"  {line}" for line in lines), *notes]


def _chosen(result: Result) -> list[str]:
    """Sizes that the calibration text decided."""
    form = result.plan.form
    if not result.made.tokens or not isinstance(form, LatentCache) or result.plan.request.cache_ratio is None:
        return []
    ranks = f", by layer {', '.join(map(str, form.ranks))}" if "rank" in form.varied else ""
    return [f"Chosen on {result.made.tokens:,} tokens: rank {form.rank}{ranks}; rotary key {form.rope_dim}."]


def inspection_tables(found: Inspection) -> list[Table]:
    """Give the facts, and the cache of everything the model could become."""
    sizes = found.sizes
    facts = Table(escape(found.model + (f" at {found.commit[:12]}" if found.commit else "")), "")
    rows = {
        "model_type": found.model_type,
        _counted(sizes).rstrip(","): sizes.num_layers,
        "hidden_size": sizes.hidden_size,
        "query heads": sizes.num_heads,
        "K/V heads": numbers_of(sizes.kv_by_layer),
        "head_dim": sizes.head_dim,
        "position": found.position,
        "max_position_embeddings": sizes.context,
        "parameters": "unknown (config only)" if found.parameters is None else f"{found.parameters:,}",
        "dtype": found.dtype,
    }
    for key, value in rows.items():
        facts.add_row(key, str(value))
    if not sizes.causal:
        return [facts, _encoder_table(found)]
    cache = Table(
        "cache as",
        "class (layout)",
        f"bytes per {sizes.cached_of}",
        *(f"{tokens // 1024}K tokens" for tokens in CONTEXTS),
    )
    for row in found.rows:
        sized = (megabytes(row.at(tokens)) for tokens in CONTEXTS)
        cache.add_row(row.name, ", ".join(row.holders) or "-", f"{row.bytes_per_token:,}", *sized)
    return [facts, cache]


def families_tables() -> list[Table]:
    """Tell what every family becomes, and the model types that are not converted."""
    known = Table("model_type", *(f"--to {to}" for to in COLUMNS))
    for name, cells in families().items():
        known.add_row(name, *(escape(str(cells[to]).replace("`", "")) for to in COLUMNS))
    others = Table("not converted", "because it")
    for name, reason in not_converted().items():
        others.add_row(name, escape(reason))
    return [known, others]


def _encoder_table(found: Inspection) -> Table:
    """What an encoder could become: it keeps no cache, and what becomes less are its parameters."""
    table = Table("attention as", "class (layout)", "parameters fewer", "cache")
    for row in found.rows:
        table.add_row(row.name, ", ".join(row.holders) or "-", f"{row.fewer:,}", "none")
    return table


def serving_table(model_type: str, rules: list[ServingRule]) -> Table:
    """Tell what each engine makes of a checkpoint, and how that is known."""
    table = Table("engine", f"loads {escape(model_type)}", "small cache")
    for column in ("what to do", "known by"):
        table.add_column(column, overflow="fold")  # commands and addresses are of use as a whole
    for rule in rules:
        kept = {True: "kept", False: "not kept", None: "-"}[rule.kept]
        todo = "\n".join(filter(None, (rule.change, *(note.text for note in rule.notes))))
        known = "\n".join(
            (f"{rule.evidence}, {rule.version}: {rule.where}", *(f"{n.evidence}: {n.where}" for n in rule.notes))
        )
        table.add_row(rule.engine, rule.loads, kept, escape(todo), escape(known))
    return table
