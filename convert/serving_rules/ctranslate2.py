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
    Rule,
)

_NAME, _VERSION = "CTranslate2", "4.8.5"

ENGINE = Engine(
    _NAME,
    "ctranslate2",
    (
        Rule(
            _NAME,
            _VERSION,
            LLAMA_LIKE - PHI3 | BIGCODE,
            "native class",
            True,
            "tried",
            ENGINE_TESTS,
            "convert with ct2-transformers-converter",
        ),
        Rule(
            _NAME,
            _VERSION,
            PHI3,
            "no",
            None,
            "tried",
            ENGINE_TESTS,
            "with transformers 5 its converter stops at the rope settings of every Phi-3, the source's too",
        ),
        Rule(_NAME, _VERSION, CUSTOM | DEEPSEEK, "no", None, "tried", ENGINE_TESTS, TAKE_NATIVE),
    ),
)
