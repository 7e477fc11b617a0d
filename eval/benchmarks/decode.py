"""Time of one decode step against the length of the context: the original, GQA, and MLA in two classes.

    python -m convert_attn.eval.benchmarks.decode --contexts 512,2048,8192,32768 --dtypes float32,bfloat16

One new token, batch 1, in front of a cache of T tokens of random content. Random weights; four contenders:

    mha          LlamaForCausalLM
    gqa          LlamaForCausalLM with a quarter of the K/V heads
    mla          LlamaMLAForCausalLM, which works on the latents (absorbed)
    deepseek_v3  transformers' DeepseekV3ForCausalLM, dense, with the latent weights of mla; that both give the same
                 logits is checked before anything is timed

A block is the attention module with its projections, a model has --layers layers and a small vocabulary. All calls
take turns in one run, after each the cache is set back to T tokens. The cache has room for the new token
("inplace", one write per step), so that a step is the model's work; "dynamic" is transformers' DynamicCache, which
copies the whole cache in each step. A read is a plain pass (sum, as fp32) over as many bytes as the block's cache.

Prints a Markdown table; --json FILE keeps all figures, --png FILE draws them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from convert_attn.convert.archs import architecture
from convert_attn.convert.form import LatentCache
from convert_attn.convert.geometry import geometry, typed_config
from convert_attn.convert.latent import LatentWeights
from convert_attn.convert.targets import deepseek_v3, llama_mla
from convert_attn.convert.targets.base import Blueprint, Config, Target
from convert_attn.eval.benchmarks.timing import Spread, Timed, take_turns

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONTENDERS = ("mha", "gqa", "mla", "deepseek_v3")
TOLERANCE = 1e-3  # logits, fp32
_SHARING = 4  # query heads per K/V head of gqa
_PROMPT = 12  # tokens of the equality check
_VOCABULARY = 1000

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What is measured: the original's heads and layers, and the latent cache's rank and rotary key."""

    heads: int = 32
    head_dim: int = 64
    rank: int = 512
    rope_dim: int = 64
    layers: int = 2

    def llama(self, kv_heads: int, longest: int) -> Config:
        """config.json of the original, or of GQA."""
        hidden = self.heads * self.head_dim
        return {
            "model_type": "llama",
            "vocab_size": _VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": hidden * 8 // 3,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": longest + 1,
            "tie_word_embeddings": False,
        }


class _InPlaceLayer(DynamicLayer):
    """A cache layer with room for one more token: nothing is copied but that token."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """keys, values: [1, heads, T + 1, size], the last token free."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.room = keys, values
        self.keys, self.values = keys[:, :, :-1], values[:, :, :-1]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Both [1, heads, 1, size], as all that the cache holds."""
        self.keys, self.values = self.room
        self.keys[:, :, -1:] = key_states
        self.values[:, :, -1:] = value_states
        return self.keys, self.values


@dataclass(frozen=True)
class Filled:
    """A cache that holds T tokens, and the tensors that make it so."""

    cache: Cache
    held: list[tuple[Tensor, Tensor]]

    def reset(self) -> None:
        """Back to T tokens."""
        layers: list[Any] = self.cache.layers
        for layer, (keys, values) in zip(layers, self.held, strict=True):
            layer.keys, layer.values = keys, values

    def nbytes(self, layer: int | None = None) -> int:
        """Bytes of T tokens in one layer, or in all."""
        layers = self.held if layer is None else [self.held[layer]]
        return sum(tensor.nbytes for pair in layers for tensor in pair)


def fill(model: Any, tokens: int, kind: str = "inplace") -> Filled:
    """A cache of random content for this model, in its dtype and on its device.

    Args:
        kind: "inplace" or "dynamic".
    """
    config, like = model.config, model.lm_head.weight
    if getattr(config, "kv_lora_rank", None) is None:
        widths = [(config.num_key_value_heads, config.head_dim)] * 2
    elif config.model_type == "llama_mla":  # latent and rotary key in one tensor
        widths = [(1, config.kv_lora_rank + config.qk_rope_head_dim), (1, 0)]
    else:
        widths = [(1, config.kv_lora_rank), (1, config.qk_rope_head_dim)]
    rooms = [
        [torch.randn(1, heads, tokens + 1, size, dtype=like.dtype, device=like.device) for heads, size in widths]
        for _ in range(config.num_hidden_layers)
    ]
    cache: Cache
    if kind == "dynamic":
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(rooms):
            cache.update(keys[:, :, :-1], values[:, :, :-1], layer)
    else:
        cache = Cache(layers=[_InPlaceLayer(keys, values) for keys, values in rooms])
    layers: list[Any] = cache.layers
    return Filled(cache, [(layer.keys, layer.values) for layer in layers])


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Outputs of the size of the inputs, whatever the sizes."""
    values = torch.randn(*shape, generator=generator)
    return values.mul_(shape[-1] ** -0.5)


def _latent(sizes: Sizes, frequencies: tuple[float, ...], generator: torch.Generator) -> LatentWeights:
    heads, d, r, R, hidden = sizes.heads, sizes.head_dim, sizes.rank, sizes.rope_dim, sizes.heads * sizes.head_dim
    return LatentWeights(
        q_nope=_normal(generator, heads, d, hidden),
        q_rope=_normal(generator, heads, R, hidden),
        down=_normal(generator, r, hidden),
        k_rope=_normal(generator, R, hidden),
        up_k=_normal(generator, heads, d, r),
        up_v=_normal(generator, heads, d, r),
        o=_normal(generator, heads, hidden, d) * heads**-0.5,
        inv_freq=torch.tensor(frequencies),
    )


def _blueprint(sizes: Sizes, config: Config) -> Blueprint:
    """Conversion of the original to the latent cache with the rotary frequencies that DeepSeek-V3 prescribes."""
    arch = architecture("llama")
    form = LatentCache(sizes.rank, sizes.rope_dim)
    plan = Blueprint(arch, arch, config, geometry(arch, config, "benchmark"), form, frozenset())
    frequencies = deepseek_v3.TARGET.frequencies(plan) or ()
    return replace(plan, inv_freq=(frequencies,) * sizes.layers)


def _original_state(sizes: Sizes, config: Config, generator: torch.Generator) -> State:
    """Random weights of the original, norms of one, fp32."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(typed_config(config, "benchmark"))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {
        name: torch.ones(shape) if len(shape) == 1 else _normal(generator, *shape) for name, shape in shapes.items()
    }


def _latent_state(target: Target, plan: Blueprint, original: State, layers: list[LatentWeights]) -> State:
    """All but the attention of the original, and the latent weights as this target writes them."""
    state = {name: tensor for name, tensor in original.items() if ".self_attn." not in name}
    for layer, weights in enumerate(layers):
        tensors = target.tensors(plan, weights, layer)
        state |= {f"model.layers.{layer}.{name}": tensor for name, tensor in tensors.items()}
    return state


def states(sizes: Sizes, longest: int) -> dict[str, tuple[Config, State]]:
    """config.json and weights, fp32, of every contender.

    Args:
        longest: context in tokens.
    """
    generator = torch.Generator().manual_seed(0)
    config = sizes.llama(sizes.heads, longest)
    plan = _blueprint(sizes, config)
    original = _original_state(sizes, config, generator)
    layers = [_latent(sizes, frequencies, generator) for frequencies in plan.inv_freq]
    kv_heads = sizes.heads // _SHARING
    shared = {name: kv_heads * sizes.head_dim for name in original if "k_proj" in name or "v_proj" in name}
    found = {
        "mha": (config, original),
        "gqa": (sizes.llama(kv_heads, longest), {name: w[: shared.get(name)] for name, w in original.items()}),
    }
    for target, settings in ((llama_mla.TARGET, {"latent_attention_mode": "absorb"}), (deepseek_v3.TARGET, {})):
        converted = target.configure(plan) | {"model_type": target.becomes} | settings
        name = "mla" if target is llama_mla.TARGET else target.name
        found[name] = converted, _latent_state(target, plan, original, layers)
    return found


def make_models(sizes: Sizes, longest: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The contenders; what they have in common exists once.

    Args:
        longest: context in tokens.
    """
    placed: dict[int, Tensor] = {}
    models: dict[str, Any] = {}
    for name, (config, state) in states(sizes, longest).items():
        typed = typed_config(config, "benchmark")
        model = AutoModelForCausalLM.from_config(typed, dtype=dtype, attn_implementation="sdpa").to(device)
        own = {key: placed.setdefault(id(w), w.to(device, dtype)) for key, w in state.items()}
        model.load_state_dict(own, assign=True)
        models[name] = model.eval()
    return models


@torch.inference_mode()
def difference(first: Any, second: Any) -> float:
    """Largest difference of the logits of two models, for a short prompt and for one token after it."""
    device = first.lm_head.weight.device
    tokens = torch.randint(_VOCABULARY, (1, _PROMPT + 1), generator=torch.Generator().manual_seed(1)).to(device)
    logits = []
    for model in (first, second):
        prompt = model(tokens[:, :-1], use_cache=True)
        step = model(tokens[:, -1:], past_key_values=prompt.past_key_values, use_cache=True)
        logits.append(torch.cat([prompt.logits, step.logits], 1))
    return (logits[0] - logits[1]).abs().max().item()


def check_same(models: dict[str, Any]) -> float:
    """The difference of mla and deepseek_v3 in fp32, which must be within TOLERANCE.

    Raises:
        click.ClickException: it is not; timing the two against each other would mean nothing.
    """
    found = difference(models["mla"], models["deepseek_v3"])
    if not found <= TOLERANCE:
        raise click.ClickException(
            f"mla and deepseek_v3 should be the same model, but their fp32 logits differ by {found:.2g} "
            f"(at most {TOLERANCE:g} is allowed): nothing was timed"
        )
    return found


def _block_step(model: Any, filled: Filled) -> Callable[[], object]:
    """The first layer's attention, called as its decoder layer calls it."""
    weight, tokens = model.lm_head.weight, filled.held[0][0].shape[2]
    hidden = torch.randn(1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    positions = torch.tensor([[tokens]], device=weight.device)
    arguments: dict[str, Any] = {"position_ids": positions, "past_key_values": filled.cache, "attention_mask": None}
    if hasattr(model.model, "rotary_emb"):  # made once for all layers; our blocks have frequencies of their own
        arguments["position_embeddings"] = model.model.rotary_emb(hidden, positions)
    block = model.model.layers[0].self_attn
    return lambda: block(hidden_states=hidden, **arguments)


def _model_step(model: Any, filled: Filled) -> Callable[[], object]:
    token = torch.tensor([[1]], device=model.lm_head.weight.device)
    return lambda: model(input_ids=token, past_key_values=filled.cache, use_cache=True)


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
def rows(models: dict[str, Any], contexts: list[int], repeats: int, kind: str = "inplace") -> list[dict[str, Any]]:
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
    """What the figures depend on besides the sizes."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": "sdpa",
        "cache": kind,
    }


def _step(spread: dict[str, Any]) -> str:
    quartiles = f"{spread['lower_quartile_ms']:.2f}..{spread['upper_quartile_ms']:.2f}"
    return f"{spread['median_ms']:.2f} ({quartiles})"


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| dtype | context, tokens | contender | block's cache, MB | block step, ms | block / read of its cache "
        "| block: x faster than mha, deepseek_v3 | model step, ms | model: x faster than mha, deepseek_v3 |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        faster = {
            part: ", ".join(f"{row[f'{part}_speedup_over_{other}']:.2f}" for other in ("mha", "deepseek_v3"))
            for part in ("block", "model")
        }
        lines.append(
            f"| {row['dtype']} | {row['context']} | {row['contender']} | {row['block_cache_bytes'] / 1e6:.2f} "
            f"| {_step(row['block'])} | {row['block_over_read']:.2f} | {faster['block']} "
            f"| {_step(row['model'])} | {faster['model']} |"
        )
    return "\n".join(lines)


def _pyplot() -> Any:
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise click.UsageError("--png needs matplotlib: pip install matplotlib, or leave --png out") from None


def draw(table: list[dict[str, Any]], file: Path, pyplot: Any) -> None:
    """Median step time (ms) against context (tokens): a panel for each dtype, block and model."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in table))
    figure, panels = pyplot.subplots(len(dtypes), 2, figsize=(11, 4 * len(dtypes)), squeeze=False)
    for dtype, line in zip(dtypes, panels, strict=True):
        for part, panel in zip(("block", "model"), line, strict=True):
            for name in CONTENDERS:
                own = [row for row in table if (row["dtype"], row["contender"]) == (dtype, name)]
                medians = [row[part]["median_ms"] for row in own]
                panel.loglog([row["context"] for row in own], medians, marker="o", label=name)
            panel.set(title=f"{part}, {dtype}", xlabel="context, tokens", ylabel="decode step, ms")
            panel.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    numbers = [int(part) if part.strip().isdigit() else 0 for part in value.split(",")]
    if min(numbers) < 1:
        raise click.BadParameter(f"expected positive whole numbers with commas between them, got {value!r}")
    return numbers


def _dtypes(context: click.Context, parameter: click.Parameter, value: str) -> list[torch.dtype]:
    names = [part.strip() for part in value.split(",")]
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise click.BadParameter(f"unknown {', '.join(unknown)}; known are {', '.join(DTYPES)}")
    return [DTYPES[name] for name in names]


def _checked(heads: int, head_dim: int, rank: int, rope_dim: int, layers: int) -> Sizes:
    if heads % _SHARING:
        raise click.UsageError(f"--heads must be a multiple of {_SHARING}, the heads that share in gqa: got {heads}")
    if head_dim % 2 or rope_dim % 2:
        raise click.UsageError(f"--head-dim and --rope-dim must be even, got {head_dim} and {rope_dim}")
    return Sizes(heads, head_dim, rank, rope_dim, layers)


def measure(
    sizes: Sizes, contexts: list[int], dtypes: list[torch.dtype], device: torch.device, repeats: int, kind: str
) -> dict[str, Any]:
    """All figures: of the equality check, which comes first, and a row for each dtype, context and contender."""
    longest = max([*contexts, _PROMPT])
    found = check_same(make_models(sizes, longest, torch.float32, device))
    table: list[dict[str, Any]] = []
    for dtype in dtypes:
        table += rows(make_models(sizes, longest, dtype, device), contexts, repeats, kind)
    same = {"largest_logit_difference_mla_deepseek_v3": found}
    return {"environment": environment(device, kind), "sizes": asdict(sizes), **same, "rows": table}


@click.command()
@click.option("--contexts", default="512,2048,8192,32768", show_default=True, callback=_numbers, help="In tokens.")
@click.option("--dtypes", default="float32,bfloat16", show_default=True, callback=_dtypes)
@click.option("--device", default="cpu", show_default=True)
@click.option("--heads", type=click.IntRange(1), default=32, show_default=True)
@click.option("--head-dim", type=click.IntRange(2), default=64, show_default=True)
@click.option("--rank", type=click.IntRange(1), default=512, show_default=True, help="Size of the latent.")
@click.option("--rope-dim", type=click.IntRange(2), default=64, show_default=True, help="Size of the rotary key.")
@click.option("--layers", type=click.IntRange(1), default=2, show_default=True, help="Of the whole models.")
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True, help="Fewer for slow contenders.")
@click.option("--cache", "kind", type=click.Choice(["inplace", "dynamic"]), default="inplace", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep the figures here.")
@click.option("--png", "png_file", type=click.Path(path_type=Path), help="Draw the figures here (matplotlib).")
def main(
    contexts: list[int],
    dtypes: list[torch.dtype],
    device: str,
    repeats: int,
    kind: str,
    json_file: Path | None,
    png_file: Path | None,
    **sizes: int,
) -> None:
    """Time one decode step of MHA, GQA and MLA against the length of the context."""
    transformers.logging.set_verbosity_error()
    pyplot = None if png_file is None else _pyplot()
    figures = measure(_checked(**sizes), contexts, dtypes, torch.device(device), repeats, kind)
    click.echo(markdown(figures["rows"]))
    click.echo("\nmedian (quartiles); " + ", ".join(f"{key} {value}" for key, value in figures["environment"].items()))
    same = figures["largest_logit_difference_mla_deepseek_v3"]
    click.echo(f"fp32 logits of mla and deepseek_v3 differ by at most {same:.1e}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    if png_file is not None:
        draw(figures["rows"], png_file, pyplot)


if __name__ == "__main__":
    main()
