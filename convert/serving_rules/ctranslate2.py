"""CTranslate2, tried, and read at the commit of its release 4.8.1 where nothing else is said."""

from convert_attn.convert.serving_rules.base import ENGINE_TESTS, GITHUB, NO_CLASS, TEXT_ALONE, Engine, Learned
from convert_attn.convert.serving_rules.conditions import one_head, says
from convert_attn.convert.serving_rules.results import (
    BIGCODE,
    DEEPSEEK,
    FALCON,
    INSIDE,
    LARGER,
    LLAMA_LIKE,
    NATIVE,
    OWN,
    PHI3,
    TRIED_OWN,
)

_TRIED = Learned(engine="CTranslate2", version="4.8.5", evidence="tried")
_READ = Learned(
    engine="CTranslate2",
    version="4.8.1",
    evidence="source",
    folder=GITHUB + "OpenNMT/CTranslate2/blob/0d8bcd362ac75ef860ef161d6f0efad0ae439ff0/python/ctranslate2/converters/",
)
_LOOKED_UP = "transformers.py#L57"  # loaders are registered by the names of configs
_CONVERT = "convert with ct2-transformers-converter"
_ROPE = "with transformers 5 its converter stops at the rope settings of every Phi-3, the source's too"
_OLD_PHI = "its loader reads the tensors' names of Phi's first code on the Hub, not those of transformers' class"
_UNCAPPED = "it has no cap on scores, which config.json sets (attn_logit_softcapping), and computes something else"

ENGINE = Engine(
    name=_TRIED.engine,
    option="ctranslate2",
    rules=(
        _TRIED.takes(LLAMA_LIKE - PHI3 | BIGCODE, ENGINE_TESTS, _CONVERT),
        _TRIED.refuses(PHI3, ENGINE_TESTS, _ROPE),
        *_TRIED.runs_no_code(ENGINE_TESTS, TRIED_OWN),
        _TRIED.refuses(DEEPSEEK, ENGINE_TESTS, "it has no latent: convert --to gqa or mqa"),
        _READ.refuses(frozenset({"gemma2"}), "transformers.py#L1611", _UNCAPPED, says("attn_logit_softcapping")),
        _READ.takes(frozenset({"gemma2"}), "transformers.py#L1603", _CONVERT),
        _READ.takes(frozenset({"gemma3_text"}), "transformers.py#L1864", _CONVERT),
        _READ.takes(frozenset({"gemma3"}), "transformers.py#L1864", f"{_CONVERT}; {TEXT_ALONE}"),
        _READ.takes(frozenset({"qwen3"}), "transformers.py#L2663", _CONVERT),
        _READ.takes(FALCON, "transformers.py#L3226", _CONVERT, applies=one_head),
        _READ.leaves_open(FALCON, "transformers.py#L3226", "it was read for the layout with one K/V head alone"),
        _READ.refuses(frozenset({"phi"}), "transformers.py#L2865", _OLD_PHI),
        *_READ.runs_no_code(_LOOKED_UP, OWN - TRIED_OWN),
        _READ.refuses(NATIVE | INSIDE | LARGER, _LOOKED_UP, NO_CLASS),
    ),
)
