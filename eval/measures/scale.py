"""Speed where weights cannot be had: random weights at published shapes, and the same conversions of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convert_attn import modeling
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads, form_of
from convert_attn.convert.archs.class_reading import class_biases, facts_of
from convert_attn.convert.archs.geometry import Geometry, geometry
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import UsageError
from convert_attn.convert.planning.class_config import class_config
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.request import Request
from convert_attn.convert.planning.sizes import choose_latent, divisors
from convert_attn.convert.targets import choose
from convert_attn.convert.targets.base import Blueprint, Config
from convert_attn.eval.measures.contenders import Contender, predicted_numbers


def _llama(hidden: int, inner: int, *, layers: int, heads: int, kv: int, vocabulary: int, **more: Any) -> Config:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        **more,
    }


def _gpt2(width: int, layers: int, heads: int) -> Config:
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": 50257,
    }


# as in the config.json that each was published with
SHAPES: dict[str, Config] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "llama-2-7b": _llama(4096, 11008, layers=32, heads=32, kv=32, vocabulary=32000, max_position_embeddings=4096),
    "llama-2-13b": _llama(5120, 13824, layers=40, heads=40, kv=40, vocabulary=32000, max_position_embeddings=4096),
    "llama-3-8b": _llama(
        4096,
        14336,
        layers=32,
        heads=32,
        kv=8,
        vocabulary=128256,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 5e5},
    ),
    "mistral-7b": _llama(
        4096,
        14336,
        layers=32,
        heads=32,
        kv=8,
        vocabulary=32768,
        max_position_embeddings=32768,
        rope_parameters={"rope_theta": 1e6},
    )
    | {"model_type": "mistral", "sliding_window": None},
}
_LAYERS = ("n_layer", "num_hidden_layers")
_CONTEXT = ("n_positions", "max_position_embeddings")


def scale_shape(name: str) -> Config:
    """config.json of a published shape: NAME, or NAME:LAYERS with fewer layers.

    Raises:
        UsageError: not known, or not a number of layers that it has.
    """
    plain, _, layers = name.partition(":")
    if plain not in SHAPES:
        raise UsageError(f"--scale '{plain}' is not known: choose one of {', '.join(SHAPES)}, or NAME:LAYERS")
    shape = dict(SHAPES[plain])
    key = next(key for key in _LAYERS if key in shape)
    if layers:
        if not layers.isdecimal() or not 1 <= int(layers) <= shape[key]:
            raise UsageError(f"--scale '{name}' asks for {layers} layers: expected 1 to {shape[key]}")
        shape[key] = int(layers)
    return shape


def at_scale(contenders: tuple[Contender, ...], name: str, longest: int) -> tuple[Contender, ...]:
    """Give the original and its conversions with random weights at a published shape.

    A conversion keeps its kind (GQA, MQA, or a latent, in a native or custom class) and, but for MQA, its share of the
    cache as far as the heads can be divided so.

    Args:
        longest: context in tokens that the models must take; nothing was trained, so any is right.

    Raises:
        UsageError: a conversion has no counterpart at that shape.
    """
    shape = scale_shape(name)
    key = next(key for key in _CONTEXT if key in shape)
    shape[key] = max(shape[key], longest)
    arch = architecture(shape["model_type"])
    sizes = geometry(arch, shape, name)
    original = contenders[0]
    found = [_scaled(original, name, shape)]
    for contender in contenders[1:]:
        form = _form(contender, original, shape, sizes, name)
        if form == SharedHeads(sizes.kv_by_layer):
            found.append(_scaled(contender, name, shape))
            continue
        native = isinstance(form, LatentCache) and contender.config.model_type not in modeling.FAMILIES
        layout = "native" if native else "auto"
        target = choose(arch, sizes, form, layout)
        result_arch = architecture(target.becomes) if target.becomes and isinstance(form, SharedHeads) else arch
        plan = Blueprint(
            arch=arch,
            result_arch=result_arch,
            config=shape,
            sizes=sizes,
            form=form,
            biases=class_biases(arch, facts_of(arch, shape, name)),
        )
        if isinstance(form, LatentCache) and form.rope_dim:
            frequencies = target.frequencies(plan) or sizes.inv_freq[: form.rope_dim // 2]
            frequencies += (0.0,) * (form.rope_dim // 2 - len(frequencies))
            plan = replace(plan, inv_freq=(tuple(frequencies),) * sizes.num_layers)
        found.append(_scaled(contender, name, class_config(target, plan, name)[0]))
    return tuple(found)


def _form(contender: Contender, original: Contender, shape: Config, sizes: Geometry, name: str) -> Form:
    """The contender's kind of cache at its share of the original's, or the nearest share below; MQA stays MQA.

    Where its layers differ, all get the share that the contender has as a whole: the shape has other layers.
    """
    own, whole = form_of(contender.config), form_of(original.config)
    if isinstance(own, SharedHeads) and isinstance(whole, SharedHeads):
        if set(own.groups) == {1}:
            return SharedHeads.of(1, sizes.num_layers)
        share = (sum(own.groups) / len(own.groups)) / (sum(whole.groups) / len(whole.groups))
        most = sizes.num_kv_heads * share + 1e-9
        several = [groups for groups in divisors(sizes.num_kv_heads) if groups > 1]
        chosen = max([groups for groups in several if groups <= most] or several[:1])
        return SharedHeads.of(chosen, sizes.num_layers)
    ours = predicted_numbers(contender.config.to_dict(), contender.name)
    theirs = predicted_numbers(original.config.to_dict(), original.name)
    if ours is None or theirs is None:
        raise UsageError(f"--scale cannot tell what share of the cache '{contender.name}' has: leave it out")
    ratio = min(1.0, ours / theirs)
    return choose_latent(Request(to="mla", cache_ratio=ratio), architecture(shape["model_type"]), sizes)


def _scaled(contender: Contender, name: str, config: Config) -> Contender:
    recipe = replace(contender.recipe, model=None, commit=None, config=config, trust_remote_code=False)
    return replace(contender, config=typed_config(config, name), recipe=recipe)
