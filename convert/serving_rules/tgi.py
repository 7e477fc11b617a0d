"""text-generation-inference, read at the commit of its release 3.3.7."""

from convert_attn.convert.serving_rules.base import (
    BIGCODE,
    CUSTOM,
    DEEPSEEK,
    EXACT_GELU,
    GITHUB,
    HEAD_SIZE,
    LLAMA_LIKE,
    TAKE_GQA,
    TAKE_NATIVE,
    Engine,
    Note,
    ServingRule,
    activation,
    biased,
    heads_not_in,
    known,
    odd_heads,
)

_NAME, _VERSION = "TGI", "3.3.7"
_CODE = GITHUB + "huggingface/text-generation-inference/blob/dfb3fbe78e0d1d69251bd33065591c61bafdfaa8/"
_MODELS = _CODE + "server/text_generation_server/models/"
_OWN = _MODELS + "custom_modeling/"

ENGINE = Engine(
    name=_NAME,
    option="tgi",
    rules=(
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=frozenset({"llama", "phi3", "qwen2"}),
            loads="no",
            kept=None,
            evidence="source",
            where=_OWN + "flash_llama_modeling.py#L148",
            change=HEAD_SIZE,
            applies=odd_heads,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=BIGCODE,
            loads="native class",
            kept=True,
            evidence="source",
            where=_OWN + "flash_santacoder_modeling.py#L333",
            change=f"{EXACT_GELU}, unless config.json calls it gelu_pytorch_tanh, the same function",
            applies=activation("gelu", "gelu_fast", "gelu_pytorch_tanh"),
        ),
        *known(
            _NAME,
            _VERSION,
            _MODELS + "__init__.py",
            {
                "llama": "#L993",
                "mistral": "#L1335",
                "qwen2": "#L1439",
                "gemma": "#L1071",
                "phi3": "#L993",
                "gpt_bigcode": "#L772",
            },
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=CUSTOM,
            loads="no",
            kept=None,
            evidence="source",
            where=_CODE + "server/uv.lock#L2990",
            change=f"it comes with transformers 4.51, our classes need 5.16: {TAKE_NATIVE}",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="no",
            kept=None,
            evidence="source",
            where=_OWN + "flash_deepseek_v3_modeling.py#L240",
            change=f"where attention has biases it looks for one on kv_b_proj too; and it caches every head: "
            f"{TAKE_GQA}",
            applies=biased,
        ),
    ),
    notes=(
        Note(
            types=LLAMA_LIKE | BIGCODE,
            text="its FlashInfer takes heads of 64, 128 or 256, here {head_size}: slower kernels step in, without "
            "reuse of prefixes",
            evidence="source",
            where=_CODE + "launcher/src/main.rs#L155",
            applies=heads_not_in(64, 128, 256),
        ),
    ),
)
