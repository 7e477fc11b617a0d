"""Time of one decode step against the length of the context: the original, GQA, and MLA in two classes.

    python -m convert_attn.eval.benchmarks.decode --contexts 512,2048,8192,32768 --dtypes float32,bfloat16

One new token, batch 1, behind a cache of T tokens of random content. Random weights; the contenders are those of
decode_contenders.py. That the two latent classes give the same logits is checked before anything is timed.

A block is the attention module with its projections, a model has --layers layers and a small vocabulary. All calls
take turns in one run, after each the cache is set back to T tokens. The cache has room for the new token
("inplace", one write per step), so that a step is the model's work; "dynamic" is transformers' DynamicCache, which
copies the whole cache in each step. A read is a plain pass (sum, as fp32) over as many bytes as the block's cache.

Prints a Markdown table; --json FILE keeps all figures, --png FILE draws them (matplotlib: the extra `plot`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from convert_attn.convert.option_types import Numbers
from convert_attn.eval.benchmarks.common import file_options
from convert_attn.eval.benchmarks.decode_contenders import PROMPT, SHARING, Filled, Sizes, check_same, fill, make_models
from convert_attn.eval.benchmarks.decode_report import conditions, draw, markdown
from convert_attn.eval.measures.decoding import with_cache
from convert_attn.eval.measures.timing import Spread, Timed, take_turns

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _block_step(model: Any, filled: Filled) -> Callable[[], object]:
    """The first layer's attention, called as its decoder layer calls it."""
    weight, tokens = model.lm_head.weight, filled.held[0][0].shape[2]
    hidden = torch.randn(1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    positions = torch.tensor([[tokens]], device=weight.device)
    block = model.model.layers[0].self_attn
    arguments = {"position_ids": positions, "attention_mask": None, **with_cache(block, filled.cache)}
    if hasattr(model.model, "rotary_emb"):  # made once for all layers; our blocks have frequencies of their own
        arguments["position_embeddings"] = model.model.rotary_emb(hidden, positions)
    return lambda: block(hidden_states=hidden, **arguments)


def _model_step(model: Any, filled: Filled) -> Callable[[], object]:
    token = torch.tensor([[1]], device=model.lm_head.weight.device)
    cached = with_cache(model, filled.cache)
    return lambda: model(input_ids=token, use_cache=True, **cached)


def _calls(models: dict[str, Any], caches: dict[str, Filled]) -> dict[str, Timed]:
    """A block step, a model step and a read for every contender."""
    device = next(iter(models.values())).lm_head.weight.device
    buffer = torch.ones(max(filled.nbytes(0) for filled in caches.values()) // 4, device=device)
    calls = {}
    for name, model in models.items():
        filled = caches[name]
        calls[f"{name} block"] = Timed(_block_step(model, filled), filled.reset)
        calls[f"{name} model"] = Timed(_model_step(model, filled), filled.reset)
        calls[f"{name} read"] = Timed(buffer[: filled.nbytes(0) // 4].sum)
    return calls


def _row(name: str, times: dict[str, Spread], filled: Filled) -> dict[str, Any]:
    block, model, read = (times[f"{name} {part}"] for part in ("block", "model", "read"))
    row: dict[str, Any] = {
        "contender": name,
        "block_cache_bytes": filled.nbytes(0),
        "model_cache_bytes": filled.nbytes(),
        "block": asdict(block),
        "model": asdict(model),
        "read": asdict(read),
        "block_over_read": block.median_ms / read.median_ms,
    }
    for other in ("mha", "deepseek_v3"):
        for part, spread in (("block", block), ("model", model)):
            row[f"{part}_speedup_over_{other}"] = times[f"{other} {part}"].median_ms / spread.median_ms
    return row


@torch.inference_mode()
def rows(models: dict[str, Any], contexts: Sequence[int], repeats: int, kind: str = "inplace") -> list[dict[str, Any]]:
    """One row for every context (tokens) and contender; times in ms, a speed-up is the other's time over the own."""
    weight = models["mha"].lm_head.weight
    table = []
    for context in contexts:
        caches = {name: fill(model, context, kind) for name, model in models.items()}
        times = take_turns(_calls(models, caches), repeats, weight.device)
        labels = {"dtype": str(weight.dtype).removeprefix("torch."), "context": context}
        table += [labels | _row(name, times, caches[name]) for name in models]
    return table


def environment(device: torch.device, kind: str) -> dict[str, Any]:
    """Tell what the figures depend on besides the sizes."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": "sdpa",
        "cache": kind,
    }


def _dtypes(context: click.Context, parameter: click.Parameter, value: str) -> list[torch.dtype]:
    names = [part.strip() for part in value.split(",")]
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise click.BadParameter(f"unknown {', '.join(unknown)}; known are {', '.join(DTYPES)}")
    return [DTYPES[name] for name in names]


def _device(context: click.Context, parameter: click.Parameter, value: str) -> torch.device:
    try:
        torch.zeros(1, device=value)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise click.BadParameter(f"{value!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.device(value)


dtypes_option = click.option("--dtypes", default="float32,bfloat16", show_default=True, callback=_dtypes)
device_option = click.option(
    "--device", default="cpu", show_default=True, callback=_device, help="cpu, cuda, cuda:1, ..."
)


def _checked(heads: int, head_dim: int, rank: int, rope_dim: int, layers: int) -> Sizes:
    if heads % SHARING:
        raise click.UsageError(f"--heads must be a multiple of {SHARING}, the heads that share in gqa: got {heads}")
    if head_dim % 2 or rope_dim % 2:
        raise click.UsageError(f"--head-dim and --rope-dim must be even, got {head_dim} and {rope_dim}")
    return Sizes(heads=heads, head_dim=head_dim, rank=rank, rope_dim=rope_dim, layers=layers)


def measure(
    sizes: Sizes, contexts: Sequence[int], *, dtypes: list[torch.dtype], device: torch.device, repeats: int, kind: str
) -> dict[str, Any]:
    """Give all figures: of the equality check, which comes first, and a row for each dtype, context and contender."""
    longest = max([*contexts, PROMPT])
    found = check_same(make_models(sizes, longest, torch.float32, device))
    table: list[dict[str, Any]] = []
    for dtype in dtypes:
        table += rows(make_models(sizes, longest, dtype, device), contexts, repeats, kind)
    same = {"largest_logit_difference_mla_deepseek_v3": found}
    return {"environment": environment(device, kind), "sizes": asdict(sizes), **same, "rows": table}


@click.command()
@click.option(
    "--contexts",
    type=Numbers("512,2048", least=1),
    default="512,2048,8192,32768",
    show_default=True,
    help="In tokens.",
)
@dtypes_option
@device_option
@click.option("--heads", type=click.IntRange(1), default=32, show_default=True)
@click.option("--head-dim", type=click.IntRange(2), default=64, show_default=True)
@click.option("--rank", type=click.IntRange(1), default=512, show_default=True, help="Size of the latent.")
@click.option("--rope-dim", type=click.IntRange(2), default=64, show_default=True, help="Size of the rotary key.")
@click.option("--layers", type=click.IntRange(1), default=2, show_default=True, help="Of the whole models.")
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True, help="Fewer for slow contenders.")
@click.option("--cache", "kind", type=click.Choice(["inplace", "dynamic"]), default="inplace", show_default=True)
@file_options("step times against context")
def main(
    *,
    contexts: tuple[int, ...],
    dtypes: list[torch.dtype],
    device: torch.device,
    repeats: int,
    kind: str,
    json_file: Path | None,
    png: Path | None,
    **sizes: int,
) -> None:
    """Time one decode step of MHA, GQA and MLA against the length of the context."""
    transformers.logging.set_verbosity_error()
    figures = measure(_checked(**sizes), contexts, dtypes=dtypes, device=device, repeats=repeats, kind=kind)
    click.echo(markdown(figures["rows"]))
    click.echo(f"\nmedian (quartiles); {conditions(figures)}")
    same = figures["largest_logit_difference_mla_deepseek_v3"]
    click.echo(f"fp32 logits of mla and deepseek_v3 differ by at most {same:.1e}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    if png is not None:
        draw(figures, png)


if __name__ == "__main__":
    main()
