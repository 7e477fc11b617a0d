"""transformers itself."""

from convert_attn.convert.serving_rules.base import (
    BIGCODE,
    CUSTOM,
    DEEPSEEK,
    ENCODERS,
    FALCON,
    GQA,
    GROUPED,
    LLAMA_LIKE,
    SAME_CLASS,
    Engine,
    Note,
    ServingRule,
    one_head,
    uneven_heads,
)

_NAME, _VERSION = "transformers", ">= 5.16"

ENGINE = Engine(
    name=_NAME,
    option="transformers",
    rules=(
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=LLAMA_LIKE | BIGCODE | SAME_CLASS,
            loads="native class",
            kept=True,
            evidence="tried",
            where="tests/test_identities.py",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="native class",
            kept=True,
            evidence="tried",
            where="eval/benchmarks/decode.py",
            change="it expands the latent to all keys and values at every step, which is slow: --layout "
            "custom does not",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=CUSTOM | GROUPED,
            loads="custom code",
            kept=True,
            evidence="tried",
            where="tests/test_hub.py",
            change="load with trust_remote_code=True, or import convert_attn first",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=FALCON,
            loads="native class",
            kept=True,
            evidence="tried",
            where="tests/test_shared_heads.py",
            applies=one_head,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=FALCON,
            loads="native class",
            kept=False,
            evidence="tried",
            where="tests/test_shared_heads.py",
            change="its class caches keys and values of every query head: convert --to gqa; with as many --groups as "
            "there are K/V heads that changes no weight",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=ENCODERS,
            loads="custom code",
            kept=True,
            evidence="tried",
            where="tests/test_encoders.py",
            change="an encoder keeps no cache; load with trust_remote_code=True, or import convert_attn first",
        ),
    ),
    notes=(
        Note(
            types=GQA | GROUPED,
            text="use generate: its continuous batching (generate_batch) keeps one number of K/V heads for all layers",
            evidence="tried",
            where="tests/test_by_layer.py",
            applies=uneven_heads,
        ),
    ),
)
