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
    ServingRule,
    activation,
    heads_not_multiple_of,
)

_NAME, _VERSION = "mlx-lm", "0.32.2"

ENGINE = Engine(
    name=_NAME,
    option="mlx-lm",
    rules=(
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=BIGCODE,
            loads="native class",
            kept=True,
            evidence="tried",
            where=ENGINE_TESTS,
            change=EXACT_GELU,
            applies=activation("gelu"),
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=GEMMA,
            loads="native class",
            kept=True,
            evidence="tried",
            where=ENGINE_TESTS,
            change=EXACT_GELU,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=LLAMA_LIKE | BIGCODE | DEEPSEEK,
            loads="native class",
            kept=True,
            evidence="tried",
            where=ENGINE_TESTS,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=CUSTOM,
            loads="no",
            kept=None,
            evidence="tried",
            where=ENGINE_TESTS,
            change=TAKE_NATIVE,
        ),
    ),
    notes=(
        Note(
            types=DEEPSEEK,
            text="leave --kv-bits out: it cannot quantise a latent's cache",
            evidence="tried",
            where=ENGINE_TESTS,
        ),
        Note(
            types=LLAMA_LIKE | BIGCODE,
            text="leave --kv-bits out: it quantises caches in groups of 32, 64 or 128 numbers, and heads of "
            "{head_size} are no multiple",
            evidence="tried",
            where=ENGINE_TESTS,
            applies=heads_not_multiple_of(32),
        ),
    ),
)
