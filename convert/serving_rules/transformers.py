"""transformers itself."""

from convert_attn.convert.serving_rules.base import BIGCODE, CUSTOM, DEEPSEEK, LLAMA_LIKE, Engine, Rule

_NAME, _VERSION = "transformers", ">= 5.16"

ENGINE = Engine(
    _NAME,
    "transformers",
    (
        Rule(_NAME, _VERSION, LLAMA_LIKE | BIGCODE, "native class", True, "tried", "tests/test_identities.py"),
        Rule(
            _NAME,
            _VERSION,
            DEEPSEEK,
            "native class",
            True,
            "tried",
            "eval/benchmarks/decode.py",
            "it expands the latent to all keys and values at every step, which is slow: --layout custom does not",
        ),
        Rule(
            _NAME,
            _VERSION,
            CUSTOM,
            "custom code",
            True,
            "tried",
            "tests/test_hub.py",
            "load with trust_remote_code=True, or import convert_attn first",
        ),
    ),
)
