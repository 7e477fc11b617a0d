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
    ServingRule,
    biased,
)

_NAME, _VERSION = "llama.cpp", "0c1e57098, of llama-cpp-python 0.3.36"

ENGINE = Engine(
    name=_NAME,
    option="llama.cpp",
    rules=(
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=LLAMA_LIKE - GEMMA,
            loads="native class",
            kept=True,
            evidence="tried",
            where=ENGINE_TESTS,
            change="convert with convert_hf_to_gguf.py",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=GEMMA | BIGCODE,
            loads="native class",
            kept=True,
            evidence="tried",
            where=ENGINE_TESTS,
            change="convert with convert_hf_to_gguf.py; on the CPU it computes GELU in fp16, which shows in the logits",
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
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="no",
            kept=None,
            evidence="tried",
            where=ENGINE_TESTS,
            change=f"{BIASES}, and stops: {TAKE_GQA}",
            applies=biased,
        ),
    ),
)
