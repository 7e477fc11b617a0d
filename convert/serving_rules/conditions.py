"""What a rule can ask of a config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER

Config = dict[str, Any]
Condition = Callable[[Config], bool]


def always(config: Config) -> bool:
    """Give no condition."""
    return True


def both(first: Condition, second: Condition) -> Condition:
    """Give two conditions at once."""
    return lambda config: first(config) and second(config)


def says(key: str) -> Condition:
    """Give a config with this key, whose value is not nothing."""
    return lambda config: bool(config.get(key))


def called(*names: str) -> Condition:
    """Give a checkpoint whose class has one of these names, or is not named."""
    return lambda config: (config.get("architectures") or names)[0] in names


def bare(config: Config) -> bool:
    """Tell whether a checkpoint is of a base model, without a head."""
    return bool((config.get("architectures") or ("Model",))[0].endswith("Model"))


def around(types: frozenset[str]) -> Condition:
    """Give a larger model with a language model of one of these types inside."""
    return lambda config: (config.get("text_config") or {}).get("model_type") in types


def head_size(config: Config) -> int | None:
    """Give the size of a head where K and V are cached; None where the file does not tell."""
    size, heads, hidden = (config.get(key) for key in ("head_dim", "num_attention_heads", "hidden_size"))
    if size is None:  # GPTBigCode's names
        heads, hidden = heads or config.get("n_head"), hidden or config.get("n_embd")
        size = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    return size if isinstance(size, int) else None


def odd_heads(config: Config) -> bool:
    """Tell whether the size of a head is not what readers that do not look for it think."""
    size, heads, hidden = (config.get(key) for key in ("head_dim", "num_attention_heads", "hidden_size"))
    return not (size is None or heads is None or hidden is None) and size * heads != hidden


def heads_not_in(*sizes: int) -> Condition:
    """Give heads of a size that kernels for a fixed list of sizes do not take."""
    return lambda config: head_size(config) not in (None, *sizes)


def heads_not_multiple_of(step: int, most: int | None = None) -> Condition:
    """Give heads whose size is no multiple of `step`, or is above `most`."""

    def applies(config: Config) -> bool:
        size = head_size(config)
        return size is not None and (size % step != 0 or (most is not None and size > most))

    return applies


def activation(*without: str) -> Condition:
    """Give an activation that an engine does not compute as it is meant."""
    return lambda config: config.get("activation_function", config.get("hidden_act")) not in without


def biased(config: Config) -> bool:
    """Tell whether attention has biases, as the conversion's DeepSeek-V3 has."""
    return bool(config.get("attention_bias"))


def one_head(config: Config) -> bool:
    """Falcon with one K/V head, in the layout that is for one."""
    return bool(config.get("multi_query", True)) and not config.get("new_decoder_architecture")


def uneven_heads(config: Config) -> bool:
    """Tell whether layers of our class have other numbers of K/V heads."""
    return len(set(config.get(HEADS_BY_LAYER) or ())) > 1


def unlisted_window(config: Config) -> bool:
    """Tell whether there is a window, and no list of the layers that have it."""
    return bool(config.get("sliding_window")) and not config.get("layer_types")


def divided_logits(config: Config) -> bool:
    """Tell whether logits are divided by a number at the end."""
    return config.get("logits_scaling") not in (None, 1, 1.0)
