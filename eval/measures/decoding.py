"""Calls of models with an encoder and without, with an attention cache, whatever the model calls it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.isolated.pairs import source_of
from convert_attn.convert.text.pair_windows import both_sides, readable
from convert_attn.convert.text.sounds import read_source, sounds_of
from convert_attn.modeling.transformers_api import CACHE_NAME, cache_argument


def with_cache(module: Any, cache: Any) -> dict[str, Any]:
    """Name a cache as the forward of this model, block or attention declares it: keyword arguments for a call."""
    return {cache_argument(module.forward) or CACHE_NAME: cache}


def cache_of(output: Any) -> Any:
    """Find the cache in what a model returned.

    Raises:
        ConvertAttnError: there is none.
    """
    found = next((value for value in output.values() if isinstance(value, Cache | EncoderDecoderCache)), None)
    if found is None:
        raise ConvertAttnError(
            f"the model was asked for its attention cache and returned only {', '.join(output)}: its decoding cannot "
            "be measured"
        )
    return found


def cache_layers(cache: Any) -> list[Any]:
    """List the layers of a cache: of an encoder-decoder's those of the target's tokens, then those of the source's."""
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(cache.layers)


def has_encoder(model: Any) -> bool:
    """Tell whether a model reads a source before it writes."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def reading(model: Any, tokens: Tensor, written: Tensor | None = None) -> dict[str, Any]:
    """Give what a model is called with: token ids [B, T], and of an encoder-decoder as many that are written.

    One that reads sounds is given random ones, which are as long as any.

    Args:
        written: [B, S] what stands in their place there.
    """
    written = tokens if written is None else written
    if not has_encoder(model):
        return {"input_ids": written}
    if sounds_of(model) is None:
        return {"input_ids": tokens, "decoder_input_ids": written}
    heard = {name: sound.expand(len(tokens), -1, -1) for name, sound in source_of(model, tokens[:1]).items()}
    return {name: sound.to(tokens.device) for name, sound in heard.items()} | {"decoder_input_ids": written}


def continuing(model: Any, made: Any, token: Tensor) -> dict[str, Any]:
    """Give what a model is called with that has read and written already, for one token [B, 1] more."""
    cached = with_cache(model, cache_of(made))
    if not has_encoder(model):
        return {"input_ids": token} | cached
    return {"encoder_outputs": (made.encoder_last_hidden_state,), "decoder_input_ids": token} | cached


def logits_on(model: Any, windows: Tensor) -> Tensor:
    """Give the logits of windows [B, T]; of pairs those of targets [B, T'], with nothing read of what fills up."""
    device = model.device
    given = {"input_ids": windows.to(device)}
    if has_encoder(model):
        source, target = (side.to(device) for side in both_sides(windows))
        given = read_source(model, source) | {"decoder_input_ids": readable(target)}
    found: Tensor = model(**given, use_cache=False).logits
    return found


__all__ = ["cache_layers", "cache_of", "continuing", "has_encoder", "logits_on", "reading", "with_cache"]
