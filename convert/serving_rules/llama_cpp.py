"""llama.cpp, tried, and read at a commit of August 2026 where nothing else is said."""

from convert_attn.convert.serving_rules.base import (
    BIASES,
    ENGINE_TESTS,
    EVERY_HEAD,
    GITHUB,
    HEAD_SIZE,
    NO_CLASS,
    NOT_INSIDE,
    OTHER_NAMES,
    TAKE_GQA,
    Engine,
    Learned,
)
from convert_attn.convert.serving_rules.conditions import biased, called, odd_heads
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

_TRIED = Learned(engine="llama.cpp", version="0c1e57098, of llama-cpp-python 0.3.36", evidence="tried")
_READ = Learned(
    engine="llama.cpp",
    version="3f545becc",
    evidence="source",
    folder=GITHUB + "ggml-org/llama.cpp/blob/3f545beccee69d9975f466ec7e45fd9aacd8ba90/",
)
_REGISTRY = "conversion/__init__.py#L19"
_CONVERT = "convert with convert_hf_to_gguf.py"
_HALF_GELU = f"{_CONVERT}; on the CPU it computes GELU in fp16, which shows in the logits"
_STOPS = f"{EVERY_HEAD}, and stops at tensors of fewer"
_PHIMOE = frozenset({"phimoe"})

# where the tensors of keys and values are made, of as many heads as config.json says: its converter carries the number
# over for every class (conversion/base.py, line 1287)
_CLASSES = {
    "apertus": "apertus.cpp#L38",
    "arcee": "arcee.cpp#L32",
    "cohere2_moe": "cohere2moe.cpp#L87",
    "ernie4_5": "ernie4-5.cpp#L41",
    "ernie4_5_moe": "ernie4-5.cpp#L41",
    "exaone4": "exaone4.cpp#L53",
    "exaone_moe": "exaone-moe.cpp#L60",
    "gemma2": "gemma2.cpp#L46",
    "gemma3_text": "gemma3.cpp#L60",
    "glm": "chatglm.cpp#L42",
    "glm4": "glm4.cpp#L42",
    "glm4_moe": "glm4-moe.cpp#L64",
    "gpt_oss": "openai-moe.cpp#L41",
    "granite": "granite.cpp#L69",
    "granite_swa": "granite-swa.cpp#L75",
    "granitemoe": "granite-moe.cpp#L40",
    "granitemoe_swa": "granite-swa.cpp#L75",
    "granitemoeshared": "granite-moe.cpp#L40",
    "hy_v3": "hy-v3.cpp#L57",
    "internlm3": "llama.cpp#L53",
    "iquestcoder": "llama.cpp#L53",
    "mellum": "mellum.cpp#L47",
    "minimax_m2": "minimax-m2.cpp#L26",
    "ministral3": "mistral3.cpp#L48",
    "mixtral": "llama.cpp#L53",
    "qwen3": "qwen3.cpp#L36",
    "qwen3_moe": "qwen3moe.cpp#L32",
    "seed_oss": "seed-oss.cpp#L32",
    "smollm3": "smollm3.cpp#L32",
    "solar_open": "glm4-moe.cpp#L64",
}
_WITH_EVEN_HEADS = {
    "cohere": "command-r.cpp#L33",
    "cohere2": "cohere2.cpp#L39",
    "nemotron": "nemotron.cpp#L28",
    "olmo": "olmo.cpp#L30",
    "olmo2": "olmo2.cpp#L43",
    "olmo3": "olmo2.cpp#L43",
    "olmoe": "olmoe.cpp#L26",
    "qwen2_moe": "qwen2moe.cpp#L30",
    "stablelm": "stablelm.cpp#L30",
    "starcoder2": "starcoder2.cpp#L37",
}
_AROUND_LLAMA = frozenset({"llama", "mistral"})
_LARGER_CLASSES = {
    "gemma3": ("src/models/gemma3.cpp#L60", frozenset({"gemma3_text"})),
    "llava": ("conversion/__init__.py#L161", _AROUND_LLAMA),
    "mistral3": ("conversion/__init__.py#L181", _AROUND_LLAMA | {"ministral3"}),
    "qwen2_vl": ("src/models/qwen2vl.cpp#L27", INSIDE),
    "qwen2_5_vl": ("src/models/qwen2vl.cpp#L27", INSIDE),
}


def _in_src(places: dict[str, str]) -> dict[str, str]:
    return {name: f"src/models/{place}" for name, place in places.items()}


ENGINE = Engine(
    name=_TRIED.engine,
    option="llama.cpp",
    rules=(
        _TRIED.takes(LLAMA_LIKE - GEMMA, ENGINE_TESTS, _CONVERT),
        _TRIED.takes(GEMMA | BIGCODE, ENGINE_TESTS, _HALF_GELU),
        *_TRIED.runs_no_code(ENGINE_TESTS, TRIED_OWN),
        _TRIED.refuses(DEEPSEEK, ENGINE_TESTS, f"{BIASES}, and stops: {TAKE_GQA}", biased),
        *_READ.knows(_in_src(_CLASSES), _CONVERT),
        *_READ.knows(_in_src(_WITH_EVEN_HEADS), _CONVERT, sizes_heads=False),
        _READ.takes(FALCON, "conversion/falcon.py#L23", _CONVERT),
        _READ.refuses(frozenset({"phi"}), "conversion/phi.py#L32", _STOPS),
        _READ.refuses(frozenset({"dots1"}), "src/models/dots1.cpp#L34", _STOPS),
        _READ.refuses(_PHIMOE, "src/models/phimoe.cpp#L31", HEAD_SIZE, odd_heads),
        _READ.takes(_PHIMOE, "src/models/phimoe.cpp#L31", _CONVERT, applies=called("PhiMoEForCausalLM")),
        _READ.refuses(_PHIMOE, _REGISTRY, "it looks for a class named PhiMoEForCausalLM: write that to architectures"),
        *_READ.takes_larger(_LARGER_CLASSES, f"{_CONVERT}, and once more with --mmproj"),
        _READ.refuses(frozenset({"mllama"}), _REGISTRY, NO_CLASS),
        _READ.leaves_open(LARGER, _REGISTRY, NOT_INSIDE),
        _READ.leaves_open(frozenset({"sarvam_moe"}), "conversion/__init__.py#L249", OTHER_NAMES),
        *_READ.runs_no_code(_REGISTRY, OWN - TRIED_OWN),
        _READ.refuses(NATIVE, _REGISTRY, NO_CLASS),
    ),
)
