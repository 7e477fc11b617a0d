"""SGLang, read in the wheel of its release, and at a commit of August 2026 where the version says so."""

from convert_attn.convert.serving_rules.asked import biased_head, keeps_its_attention, named_apart
from convert_attn.convert.serving_rules.base import (
    BACKEND,
    BIASES,
    EVERY_HEAD,
    EXPANDED,
    GITHUB,
    NO_BOUND,
    NOT_ALONE,
    ONE_NUMBER,
    OTHER_NAMES,
    OWN_ATTENTION,
    TAKE_GQA,
    TWO_ATTENTIONS,
    UNDIVIDED,
    UNNORMED,
    Engine,
    Learned,
    Note,
)
from convert_attn.convert.serving_rules.conditions import (
    biased,
    called,
    divided_logits,
    says,
    uneven_heads,
    unlisted_window,
)
from convert_attn.convert.serving_rules.results import (
    DEEPSEEK,
    ENCODERS,
    FALCON,
    GQA,
    GROUPED,
    INSIDE,
    LARGER,
    LATENT,
    NATIVE,
    NATIVE_TOO,
    SINKS,
    TRIED_OWN,
    TWO_STACKS,
)

_MODELS = "sgl-project/sglang/blob/{}/python/sglang/srt/models/"
_RELEASED = Learned(engine="SGLang", version="0.5.23", evidence="source", folder=GITHUB + _MODELS.format("v0.5.23"))
_READ = Learned(
    engine="SGLang",
    version="d3589a725",
    evidence="source",
    folder=GITHUB + _MODELS.format("d3589a7251e4df6710e14ac55071585e80ae62c7"),
)
_NEITHER = f"{EVERY_HEAD}, and stops at tensors of fewer, and its transformers backend gives the head no bias"
_BY_TRANSFORMERS = f"{EVERY_HEAD}, and stops at tensors of fewer: start it with --model-impl transformers"
_PREFIX = "its transformers backend finds tensors by names that begin with model or transformer, and these do not"
_HEAD_BIAS = "its transformers backend makes no bias for the map to logits, which this class has, and stops there"
_UNCAPPED = "its transformers backend has no cap on scores, and computes something else"
_NO_SINKS = "its transformers backend leaves sinks out without a word, and computes something else"
_BACK = "transformers' class, through its transformers backend"
_AS_CROSS = "its transformers backend gives encoders an attention that it has for encoders' states: not followed"
_GATE = "transformers.py#L622"

_RELEASED_CLASSES = {
    "llama": "llama.py#L968",
    "mistral": "mistral.py#L191",
    "qwen2": "qwen2.py#L797",
    "gemma": "gemma.py#L413",
    "phi3": "llama.py#L970",
    "gpt_bigcode": "gpt_bigcode.py#L63",
}
_CLASSES = {
    "apertus": "apertus.py#L239",
    "arcee": "arcee.py#L217",
    "cohere2_moe": "cohere2_moe.py#L130",
    "ernie4_5_moe": "ernie4.py#L172",
    "exaone4": "exaone4.py#L246",
    "gemma2": "gemma2.py#L220",
    "gemma3_text": "gemma3_causal.py#L135",
    "glm4": "glm4.py#L229",
    "glm4_moe": "glm4_moe.py#L791",
    "gpt_oss": "gpt_oss.py#L545",
    "granite": "granite.py#L207",
    "hy_v3": "hunyuan_v3.py#L411",
    "internlm3": "llama.py#L318",
    "iquestcoder": "llama.py#L318",
    "mellum": "mellum.py#L383",
    "minimax_m2": "minimax_m2.py#L752",
    "ministral3": "ministral3.py#L119",
    "qwen3": "qwen3.py#L337",
    "qwen3_moe": "qwen3_moe.py#L739",
}
_WITH_EVEN_HEADS = {
    "cohere": "commandr.py#L159",
    "cohere2": "commandr.py#L159",
    "granitemoe": "granitemoe.py#L195",
    "mixtral": "mixtral.py#L218",
    "olmo2": "olmo2.py#L87",
    "qwen2_moe": "qwen2_moe.py#L767",
    "starcoder2": "starcoder2.py#L71",
}
_LARGER_CLASSES = {
    "gemma3": ("gemma3_mm.py#L194", frozenset({"gemma3_text"})),
    "llava": ("llava.py#L776", frozenset({"llama", "mistral", "qwen2"})),
    "mistral3": ("llava.py#L776", frozenset({"mistral"})),
    "mllama": ("mllama.py#L837", frozenset({"mllama_text_model"})),
    "qwen2_vl": ("qwen2_vl.py#L483", INSIDE),
    "qwen2_5_vl": ("qwen2_5_vl.py#L625", INSIDE),
}
# what it has no class of its own for
_BACKED = NATIVE - {*_RELEASED_CLASSES, *_CLASSES, *_WITH_EVEN_HEADS, "olmoe", "phi", "stablelm"}

ENGINE = Engine(
    name=_READ.engine,
    option="sglang",
    rules=(
        *_RELEASED.knows(_RELEASED_CLASSES),
        _RELEASED.refuses(GQA, "transformers.py#L948", ONE_NUMBER, uneven_heads),
        _RELEASED.takes(GQA, "transformers.py#L948", BACKEND, code=True),
        _RELEASED.takes(LATENT & TRIED_OWN, "transformers.py#L948", EXPANDED, code=True, kept=False),
        # of any size: the sizes of its kernels (512 + 64 with heads of 128 in TRT-LLM's) come after this
        _RELEASED.refuses(
            DEEPSEEK,
            "deepseek_common/deepseek_weight_loader.py#L429",
            f"{BIASES}: it leaves it out without a word and computes something else; take --layout custom to "
            f"run it, {TAKE_GQA}",
            biased,
        ),
        *_READ.knows(_CLASSES),
        *_READ.knows(_WITH_EVEN_HEADS, sizes_heads=False),
        _READ.refuses(frozenset({"stablelm"}), "stablelm.py#L102", UNNORMED, says("qk_layernorm")),
        *_READ.knows({"stablelm": "stablelm.py#L102"}, sizes_heads=False),
        _READ.refuses(frozenset({"olmoe"}), "olmoe.py#L217", NO_BOUND, says("clip_qkv")),
        *_READ.knows({"olmoe": "olmoe.py#L217"}, sizes_heads=False),
        _READ.takes(frozenset({"phimoe"}), "phimoe.py#L343", applies=called("PhiMoEForCausalLM")),
        _READ.refuses(frozenset({"phi"}), "phi.py#L81", _NEITHER),
        _READ.takes(frozenset({"olmo"}), "olmo.py#L98", _BY_TRANSFORMERS),
        _READ.leaves_open(frozenset({"sarvam_moe"}), "sarvam_moe.py#L1463", OTHER_NAMES),
        *_READ.takes_larger(_LARGER_CLASSES),
        _READ.leaves_open(LARGER, "transformers.py#L1307", "its transformers backend for larger models was not read"),
        _READ.leaves_open(INSIDE, "transformers.py#L1565", NOT_ALONE),
        _READ.leaves_open(ENCODERS, "transformers.py#L925", _AS_CROSS),
        _READ.refuses(TWO_STACKS, _GATE, TWO_ATTENTIONS, keeps_its_attention),
        _READ.refuses(LATENT & NATIVE_TOO, _GATE, f"{OWN_ATTENTION}; {TAKE_GQA}", keeps_its_attention),
        _READ.refuses(NATIVE | GROUPED | LATENT | FALCON, _GATE, OWN_ATTENTION, keeps_its_attention),
        _READ.refuses(GROUPED | LATENT, "transformers.py#L539", _PREFIX, named_apart("model", "transformer")),
        _READ.refuses(GROUPED | LATENT, "transformers.py#L1111", _HEAD_BIAS, biased_head),
        _READ.refuses(GROUPED, "transformers.py#L903", ONE_NUMBER, uneven_heads),
        _READ.refuses(NATIVE | LATENT, "transformers.py#L940", _UNCAPPED, says("attn_logit_softcapping")),
        _READ.refuses(SINKS, "transformers.py#L306", _NO_SINKS),
        _READ.takes(GROUPED, "transformers.py#L940", BACKEND, code=True),
        _READ.takes(LATENT, "transformers.py#L940", EXPANDED, code=True, kept=False),
        _READ.takes(NATIVE, "transformers.py#L940", _BACK),
    ),
    notes=(
        Note(
            types=GROUPED | LATENT | _BACKED,
            text="its transformers backend reads windows from layer_types alone, which config.json has not got: tokens "
            "farther back than {sliding_window} are seen",
            evidence="source",
            where=_READ.folder + "transformers.py#L929",
            applies=unlisted_window,
        ),
        Note(
            types=LATENT | _BACKED,
            text=UNDIVIDED,
            evidence="source",
            where=_READ.folder + "transformers.py#L1120",
            applies=divided_logits,
        ),
    ),
)
