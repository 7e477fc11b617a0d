"""mlx-lm."""

from convert_attn.convert.serving_rules.base import (
    BIGCODE,
    CUSTOM,
    DEEPSEEK,
    ENGINE_TESTS,
    EXACT_GELU,
    GEMMA,
    LLAMA_LIKE,
    TAKE_NATIVE,
    Engine,
    Note,
    Rule,
    activation,
    heads_not_multiple_of,
)

_NAME, _VERSION = "mlx-lm", "0.32.2"

ENGINE = Engine(
    _NAME,
    "mlx-lm",
    (
        Rule(_NAME, _VERSION, BIGCODE, "native class", True, "tried", ENGINE_TESTS, EXACT_GELU, activation("gelu")),
        Rule(_NAME, _VERSION, GEMMA, "native class", True, "tried", ENGINE_TESTS, EXACT_GELU),
        Rule(_NAME, _VERSION, LLAMA_LIKE | BIGCODE | DEEPSEEK, "native class", True, "tried", ENGINE_TESTS),
        Rule(_NAME, _VERSION, CUSTOM, "no", None, "tried", ENGINE_TESTS, TAKE_NATIVE),
    ),
    notes=(
        Note(DEEPSEEK, "leave --kv-bits out: it cannot quantise a latent's cache", "tried", ENGINE_TESTS),
        Note(
            LLAMA_LIKE | BIGCODE,
            "leave --kv-bits out: it quantises caches in groups of 32, 64 or 128 numbers, and heads of {head_size} are "
            "no multiple",
            "tried",
            ENGINE_TESTS,
            heads_not_multiple_of(32),
        ),
    ),
)
