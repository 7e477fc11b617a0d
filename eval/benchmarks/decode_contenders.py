"""What the decode benchmark compares: four models with random weights, their caches, and that two are the same.

mha          LlamaForCausalLM
gqa          LlamaForCausalLM with a quarter of the K/V heads
mla          LlamaMLAForCausalLM, which works on the latents (absorbed)
deepseek_v3  transformers' DeepseekV3ForCausalLM, dense, with the latent weights of mla
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import click
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.planning.class_config import class_config
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.targets import deepseek_v3, llama_mla
from convert_attn.convert.targets.base import Blueprint, Config, Target
from convert_attn.convert.weights.latent import LatentWeights
from convert_attn.eval.measures.decoding import cache_of, with_cache

CONTENDERS = {
    "mha": "MHA (Llama)",
    "gqa": "GQA, 1/4 of the heads (Llama)",
    "mla": "MLA, absorbed (llama_mla)",
    "deepseek_v3": "MLA, expanded (deepseek_v3)",
}
SHARING = 4  # query heads per K/V head of gqa
TOLERANCE = 1e-3  # logits, fp32
PROMPT = 12  # tokens of the equality check
_VOCABULARY = 1000

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
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
        """Give both [1, heads, 1, size], as all that the cache holds."""
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
        """Give bytes of T tokens in one layer, or in all."""
        layers = self.held if layer is None else [self.held[layer]]
        return sum(tensor.nbytes for pair in layers for tensor in pair)


def fill(model: Any, tokens: int, kind: str = "inplace") -> Filled:
    """Give a cache of random content for this model, in its dtype and on its device.

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
    form = LatentCache.of(sizes.rank, sizes.rope_dim, sizes.layers)
    plan = Blueprint(
        arch=arch,
        result_arch=arch,
        config=config,
        sizes=geometry(arch, config, "benchmark"),
        form=form,
        biases=frozenset(),
    )
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
    kv_heads = sizes.heads // SHARING
    shared = {name: kv_heads * sizes.head_dim for name in original if "k_proj" in name or "v_proj" in name}
    found = {
        "mha": (config, original),
        "gqa": (sizes.llama(kv_heads, longest), {name: w[: shared.get(name)] for name, w in original.items()}),
    }
    for target, settings in ((llama_mla.TARGET, {"latent_attention_mode": "absorb"}), (deepseek_v3.TARGET, {})):
        converted = class_config(target, plan, "benchmark")[0] | settings
        name = "mla" if target is llama_mla.TARGET else target.name
        found[name] = converted, _latent_state(target, plan, original, layers)
    return found


def make_models(sizes: Sizes, longest: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Give the contenders; what they have in common exists once.

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
    tokens = torch.randint(_VOCABULARY, (1, PROMPT + 1), generator=torch.Generator().manual_seed(1)).to(device)
    logits = []
    for model in (first, second):
        prompt = model(tokens[:, :-1], use_cache=True)
        step = model(tokens[:, -1:], use_cache=True, **with_cache(model, cache_of(prompt)))
        logits.append(torch.cat([prompt.logits, step.logits], 1))
    return (logits[0] - logits[1]).abs().max().item()


def check_same(models: dict[str, Any]) -> float:
    """Give the difference of mla and deepseek_v3 in fp32, which must be within TOLERANCE.

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
