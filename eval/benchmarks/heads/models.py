"""Whole models of a few layers: a decode step behind contexts, and a prefill, against the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.eval.benchmarks.decode_contenders import Sizes, fill, states
from convert_attn.eval.benchmarks.heads.attention import Shape
from convert_attn.eval.measures.decoding import with_cache
from convert_attn.eval.measures.timing import Timed, take_turns
from convert_attn.modeling import PACKED

ORIGINAL = "MHA stock"
PREFILL_FACTOR = 1.1


def make(shape: Shape, layers: int, longest: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Models by form and function: Llama with all heads, with some, with one, and with a latent; weights are shared."""
    sizes = Sizes(heads=shape.heads, head_dim=shape.head_dim, rank=shape.rank, rope_dim=shape.rope_dim, layers=layers)
    found = states(sizes, longest)
    original = found["mha"][1]
    placed: dict[tuple[int, ...], torch.Tensor] = {}
    models = {}
    for form, groups in shape.forms.items():
        rows = groups * shape.head_dim
        state = {name: w[:rows] if "k_proj" in name or "v_proj" in name else w for name, w in original.items()}
        for name, attention in (("stock", "sdpa"), ("packed", PACKED)):
            model = _empty(sizes.llama(groups, longest), dtype, attention, device)
            models[f"{form} {name}"] = _loaded(model, state, placed)
    config, state = found["mla"]
    latent = _empty(config | {"latent_attention_mode": "auto"}, dtype, "sdpa", device)
    models[f"{shape.latent} packed"] = _loaded(latent, state, placed)
    return models


def _empty(config: dict[str, Any], dtype: torch.dtype, attention: str, device: torch.device) -> Any:
    typed = typed_config(config, "benchmark")
    with no_init_weights():  # others are loaded
        model = AutoModelForCausalLM.from_config(typed, dtype=dtype, attn_implementation=attention)
    return model.to(device).eval()


def _loaded(model: Any, state: dict[str, torch.Tensor], placed: dict[tuple[int, ...], torch.Tensor]) -> Any:
    like = model.lm_head.weight
    own = {
        name: placed.setdefault((w.data_ptr(), *w.shape), w.to(like.device, like.dtype)) for name, w in state.items()
    }
    model.load_state_dict(own, assign=True)
    return model


def _step(model: Any, context: int) -> Timed:
    """One new token, batch 1, behind so many of random content."""
    filled = fill(model, context)
    token = torch.tensor([[1]], device=model.lm_head.weight.device)
    cached = with_cache(model, filled.cache)
    return Timed(lambda: model(input_ids=token, use_cache=True, **cached), filled.reset)


def _prefill(model: Any, tokens: int) -> Timed:
    ids = torch.randint(0, 1000, (1, tokens), device=model.lm_head.weight.device)
    return Timed(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))


def _rows(models: dict[str, Any], timed: Callable[[Any], Timed], repeats: int, factor: float) -> list[dict[str, Any]]:
    device = models[ORIGINAL].lm_head.weight.device
    times = take_turns({name: timed(model) for name, model in models.items()}, repeats, device)
    allowed = factor * times[ORIGINAL].median_ms
    return [
        {"model": name, "step": asdict(found)}
        | ({} if name == ORIGINAL else {"allowed_ms": allowed, "met": found.median_ms <= allowed})
        for name, found in times.items()
    ]


@torch.inference_mode()
def model_rows(
    models: dict[str, Any], contexts: Sequence[int], prompts: Sequence[int], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Rows of decode steps and of prefills; the target is the original's time, for a prefill PREFILL_FACTOR of it."""
    dtype = {"dtype": str(models[ORIGINAL].dtype).removeprefix("torch.")}
    steps = [
        dtype | {"context": context} | row
        for context in contexts
        for row in _rows(models, partial(_step, context=context), repeats, 1.0)
    ]
    prefills = [
        dtype | {"context": tokens} | row
        for tokens in prompts
        for row in _rows(models, partial(_prefill, tokens=tokens), min(repeats, 5), PREFILL_FACTOR)
    ]
    return {"steps": steps, "prefills": prefills}
