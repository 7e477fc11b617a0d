"""SGLang, read in the wheel of its release."""

from convert_attn.convert.serving_rules.base import (
    BACKEND,
    BIASES,
    DEEPSEEK,
    EXPANDED,
    GITHUB,
    GQA,
    LATENT,
    ONE_NUMBER,
    TAKE_GQA,
    Engine,
    ServingRule,
    biased,
    known,
    uneven_heads,
)

_NAME, _VERSION = "SGLang", "0.5.23"
_MODELS = GITHUB + "sgl-project/sglang/blob/v0.5.23/python/sglang/srt/models/"

ENGINE = Engine(
    name=_NAME,
    option="sglang",
    rules=(
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
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=GQA,
            loads="no",
            kept=None,
            evidence="source",
            where=_MODELS + "transformers.py#L948",
            change=ONE_NUMBER,
            applies=uneven_heads,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=GQA,
            loads="custom code",
            kept=True,
            evidence="source",
            where=_MODELS + "transformers.py#L948",
            change=BACKEND,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=LATENT,
            loads="custom code",
            kept=False,
            evidence="source",
            where=_MODELS + "transformers.py#L948",
            change=EXPANDED,
        ),
        # of any size: the sizes of its kernels (512 + 64 with heads of 128 in TRT-LLM's) come after this
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="no",
            kept=None,
            evidence="source",
            where=_MODELS + "deepseek_common/deepseek_weight_loader.py#L429",
            change=f"{BIASES}: it leaves it out without a word and computes something else; take --layout custom to "
            f"run it, {TAKE_GQA}",
            applies=biased,
        ),
    ),
)
