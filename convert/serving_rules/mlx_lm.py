"""mlx-lm, tried, and read at a commit of August 2026 where nothing else is said."""

from convert_attn.convert.serving_rules.base import (
    ENGINE_TESTS,
    EXACT_GELU,
    GITHUB,
    NO_CLASS,
    NOT_INSIDE,
    TEXT_ALONE,
    Engine,
    Learned,
    Note,
)
from convert_attn.convert.serving_rules.conditions import activation, heads_not_multiple_of
from convert_attn.convert.serving_rules.results import (
    BIGCODE,
    DEEPSEEK,
    FALCON,
    GEMMA,
    INSIDE,
    LARGER,
    LLAMA_LIKE,
    NATIVE,
    OWN,
    TRIED_OWN,
)

_TRIED = Learned(engine="mlx-lm", version="0.32.2", evidence="tried")
_READ = Learned(
    engine="mlx-lm",
    version="d78bf58e2",
    evidence="source",
    folder=GITHUB + "ml-explore/mlx-lm/blob/d78bf58e217c904ec282ed8da9b947491f78c022/mlx_lm/",
)
_REGISTRY = "utils.py#L188"
_OLD_NAMES = "its class of that name reads OLMo's first code on the Hub (hf_olmo), not transformers' class"
_STARCODER = frozenset({"starcoder2"})

_CLASSES = {
    "cohere2": "cohere2.py#L41",
    "dots1": "dots1.py#L51",
    "ernie4_5": "ernie4_5.py#L37",
    "ernie4_5_moe": "ernie4_5_moe.py#L48",
    "exaone4": "exaone4.py#L41",
    "exaone_moe": "exaone_moe.py#L170",
    "gemma2": "gemma2.py#L46",
    "gemma3_text": "gemma3_text.py#L41",
    "glm": "glm.py#L36",
    "glm4": "glm4.py#L52",
    "glm4_moe": "glm4_moe.py#L55",
    "gpt_oss": "gpt_oss.py#L76",
    "iquestcoder": "llama.py#L51",
    "mellum": "mellum.py#L61",
    "minimax_m2": "minimax.py#L93",
    "ministral3": "ministral3.py#L61",
    "nemotron": "nemotron.py#L67",
    "olmo2": "olmo2.py#L44",
    "olmo3": "olmo3.py#L48",
    "olmoe": "olmoe.py#L47",
    "qwen3": "qwen3.py#L39",
    "qwen3_moe": "qwen3_moe.py#L44",
    "seed_oss": "seed_oss.py#L41",
    "smollm3": "llama.py#L51",
    "solar_open": "glm4_moe.py#L55",
}
_WITH_EVEN_HEADS = {
    "apertus": "apertus.py#L55",
    "cohere": "cohere.py#L48",
    "granite": "granite.py#L42",
    "granitemoe": "granitemoe.py#L43",
    "helium": "helium.py#L38",
    "internlm3": "internlm3.py#L94",
    "mixtral": "mixtral.py#L41",
    "phi": "phi.py#L38",
    "phimoe": "phimoe.py#L38",
    "qwen2_moe": "qwen2_moe.py#L53",
    "stablelm": "stablelm.py#L51",
    "starcoder2": "starcoder2.py#L33",
}
_AROUND_LLAMA = frozenset({"llama", "mistral"})
_LARGER_CLASSES = {
    "gemma3": ("models/gemma3.py#L35", frozenset({"gemma3_text"})),
    "llava": ("models/mistral3.py#L29", _AROUND_LLAMA),
    "mistral3": ("models/mistral3.py#L29", _AROUND_LLAMA | {"ministral3"}),
    "qwen2_vl": ("models/qwen2_vl.py#L31", INSIDE),
    "qwen2_5_vl": ("models/qwen2_vl.py#L31", INSIDE),
}


def _in_models(places: dict[str, str]) -> dict[str, str]:
    return {name: f"models/{place}" for name, place in places.items()}


ENGINE = Engine(
    name=_TRIED.engine,
    option="mlx-lm",
    rules=(
        _TRIED.takes(BIGCODE, ENGINE_TESTS, EXACT_GELU, applies=activation("gelu")),
        _TRIED.takes(GEMMA, ENGINE_TESTS, EXACT_GELU),
        _TRIED.takes(LLAMA_LIKE | BIGCODE | DEEPSEEK, ENGINE_TESTS),
        *_TRIED.runs_no_code(ENGINE_TESTS, TRIED_OWN),
        *_READ.knows(_in_models(_CLASSES)),
        *_READ.knows(_in_models(_WITH_EVEN_HEADS), sizes_heads=False),
        _READ.refuses(frozenset({"olmo"}), "models/olmo.py#L14", _OLD_NAMES),
        *_READ.takes_larger(_LARGER_CLASSES, TEXT_ALONE),
        _READ.leaves_open(frozenset(_LARGER_CLASSES), _REGISTRY, NOT_INSIDE),
        *_READ.runs_no_code(_REGISTRY, OWN - TRIED_OWN),
        _READ.refuses(NATIVE | FALCON | LARGER, _REGISTRY, NO_CLASS),
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
        Note(
            types=_STARCODER,
            text=EXACT_GELU,
            evidence="source",
            where=_READ.folder + "models/starcoder2.py#L82",
            applies=activation("gelu"),
        ),
    ),
)
