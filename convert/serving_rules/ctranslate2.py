"""CTranslate2."""

from convert_attn.convert.serving_rules.base import (
    BIGCODE,
    CUSTOM,
    DEEPSEEK,
    ENGINE_TESTS,
    LLAMA_LIKE,
    PHI3,
    TAKE_NATIVE,
    Engine,
    ServingRule,
)

_NAME, _VERSION = "CTranslate2", "4.8.5"

ENGINE = Engine(
    name=_NAME,
    option="ctranslate2",
    rules=(
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=LLAMA_LIKE - PHI3 | BIGCODE,
            loads="native class",
            kept=True,
            evidence="tried",
            where=ENGINE_TESTS,
            change="convert with ct2-transformers-converter",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=PHI3,
            loads="no",
            kept=None,
            evidence="tried",
            where=ENGINE_TESTS,
            change="with transformers 5 its converter stops at the rope settings of every Phi-3, the source's too",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=CUSTOM | DEEPSEEK,
            loads="no",
            kept=None,
            evidence="tried",
            where=ENGINE_TESTS,
            change=TAKE_NATIVE,
        ),
    ),
)
