"""transformers itself."""

from convert_attn.convert.serving_rules.base import Engine, Learned, Note
from convert_attn.convert.serving_rules.conditions import one_head, uneven_heads
from convert_attn.convert.serving_rules.results import (
    BIGCODE,
    DEEPSEEK,
    ENCODERS,
    EXPERIMENTS,
    FALCON,
    GROUPED,
    INSIDE,
    LARGER,
    LATENT,
    NATIVE,
    TWO_STACKS,
)

_TRIED = Learned(engine="transformers", version=">= 5.16", evidence="tried")
_FLAG = "load with trust_remote_code=True, or import convert_attn first"
_EVERY_HEAD = (
    "its class caches keys and values of every query head: convert --to gqa; with as many --groups as there are K/V "
    "heads that changes no weight"
)
_SLOW = "it expands the latent to all keys and values at every step, which is slow: --layout custom does not"

ENGINE = Engine(
    name=_TRIED.engine,
    option="transformers",
    rules=(
        _TRIED.takes(NATIVE - INSIDE | BIGCODE, "tests/test_identities.py"),
        _TRIED.takes(INSIDE | LARGER, "tests/test_larger.py"),
        _TRIED.takes(DEEPSEEK, "eval/benchmarks/decode.py", _SLOW),
        _TRIED.takes(FALCON, "tests/test_shared_heads.py", applies=one_head),
        _TRIED.takes(FALCON, "tests/test_shared_heads.py", _EVERY_HEAD, kept=False),
        _TRIED.takes(EXPERIMENTS, "tests/test_experiments.py", _FLAG, code=True),
        _TRIED.takes(GROUPED - EXPERIMENTS | LATENT, "tests/test_hub.py", _FLAG, code=True),
        _TRIED.takes(TWO_STACKS, "tests/test_seq2seq.py", _FLAG, code=True),
        _TRIED.takes(ENCODERS, "tests/test_encoders.py", f"an encoder keeps no cache; {_FLAG}", code=True),
    ),
    notes=(
        Note(
            types=GROUPED,
            text="use generate: its continuous batching (generate_batch) keeps one number of K/V heads for all layers",
            evidence="tried",
            where="tests/test_by_layer.py",
            applies=uneven_heads,
        ),
    ),
)
