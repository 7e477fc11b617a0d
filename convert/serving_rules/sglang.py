"""SGLang, read in the wheel of its release."""

from convert_attn.convert.serving_rules.base import (
    BACKEND,
    BIASES,
    DEEPSEEK,
    EXPANDED,
    GITHUB,
    GQA,
    LATENT,
    TAKE_GQA,
    Engine,
    Rule,
    biased,
    known,
)

_NAME, _VERSION = "SGLang", "0.5.23"
_MODELS = GITHUB + "sgl-project/sglang/blob/v0.5.23/python/sglang/srt/models/"

ENGINE = Engine(
    _NAME,
    "sglang",
    (
        *known(
            _NAME,
            _VERSION,
            _MODELS,
            {
                "llama": "llama.py#L968",
                "mistral": "mistral.py#L191",
                "qwen2": "qwen2.py#L797",
                "gemma": "gemma.py#L413",
                "phi3": "llama.py#L970",
                "gpt_bigcode": "gpt_bigcode.py#L63",
            },
        ),
        Rule(_NAME, _VERSION, GQA, "custom code", True, "source", _MODELS + "transformers.py#L948", BACKEND),
        Rule(_NAME, _VERSION, LATENT, "custom code", False, "source", _MODELS + "transformers.py#L948", EXPANDED),
        # of any size: the sizes of its kernels (512 + 64 with heads of 128 in TRT-LLM's) come after this
        Rule(
            _NAME,
            _VERSION,
            DEEPSEEK,
            "no",
            None,
            "source",
            _MODELS + "deepseek_common/deepseek_weight_loader.py#L429",
            f"{BIASES}: it leaves it out without a word and computes something else; take --layout custom to run it, "
            f"{TAKE_GQA}",
            biased,
        ),
    ),
)
