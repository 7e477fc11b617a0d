"""llama.cpp."""

from convert_attn.convert.serving_rules.base import (
    BIASES,
    BIGCODE,
    CUSTOM,
    DEEPSEEK,
    ENGINE_TESTS,
    GEMMA,
    LLAMA_LIKE,
    TAKE_GQA,
    TAKE_NATIVE,
    Engine,
    Rule,
    biased,
)

_NAME, _VERSION = "llama.cpp", "0c1e57098, of llama-cpp-python 0.3.36"

ENGINE = Engine(
    _NAME,
    "llama.cpp",
    (
        Rule(
            _NAME,
            _VERSION,
            LLAMA_LIKE - GEMMA,
            "native class",
            True,
            "tried",
            ENGINE_TESTS,
            "convert with convert_hf_to_gguf.py",
        ),
        Rule(
            _NAME,
            _VERSION,
            GEMMA | BIGCODE,
            "native class",
            True,
            "tried",
            ENGINE_TESTS,
            "convert with convert_hf_to_gguf.py; on the CPU it computes GELU in fp16, which shows in the logits",
        ),
        Rule(_NAME, _VERSION, CUSTOM, "no", None, "tried", ENGINE_TESTS, TAKE_NATIVE),
        Rule(_NAME, _VERSION, DEEPSEEK, "no", None, "tried", ENGINE_TESTS, f"{BIASES}, and stops: {TAKE_GQA}", biased),
    ),
)
