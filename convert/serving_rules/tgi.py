"""text-generation-inference, read at the commit of its release 3.3.7."""

from convert_attn.convert.serving_rules.base import (
    EXACT_GELU,
    GITHUB,
    HEAD_SIZE,
    NOT_INSIDE,
    TAKE_GQA,
    Engine,
    Learned,
    Note,
)
from convert_attn.convert.serving_rules.conditions import activation, biased, heads_not_in, odd_heads, one_head
from convert_attn.convert.serving_rules.results import (
    BIGCODE,
    DEEPSEEK,
    FALCON,
    LARGER,
    NATIVE,
    OWN,
)

_CODE = GITHUB + "huggingface/text-generation-inference/blob/dfb3fbe78e0d1d69251bd33065591c61bafdfaa8/"
_MODELS = "server/text_generation_server/models/"
_OWN = _MODELS + "custom_modeling/"
_READ = Learned(engine="TGI", version="3.3.7", evidence="source", folder=_CODE)
_OLD = "it comes with transformers 4.51, our classes need 5.16: convert to a native class, where the family has one"
_FALLS_BACK = (
    "it has no class of its own for {model_type}: where transformers 4.51, which it comes with, has one, it runs that, "
    "which was not followed"
)
_MOST_LAYOUTS = "it was read for the layout with one K/V head alone"
_AROUND = frozenset({"llama", "mistral", "gemma", "gemma2", "gemma3_text"})
_TANH = f"{EXACT_GELU}, unless config.json calls it gelu_pytorch_tanh, the same function"


def _dispatched(lines: dict[str, str]) -> dict[str, str]:
    return {name: f"{_MODELS}__init__.py{line}" for name, line in lines.items()}


ENGINE = Engine(
    name=_READ.engine,
    option="tgi",
    rules=(
        _READ.refuses(
            frozenset({"llama", "phi3", "qwen2", "granite"}),
            _OWN + "flash_llama_modeling.py#L148",
            HEAD_SIZE,
            odd_heads,
        ),
        _READ.takes(
            BIGCODE,
            _OWN + "flash_santacoder_modeling.py#L333",
            _TANH,
            applies=activation("gelu", "gelu_fast", "gelu_pytorch_tanh"),
        ),
        *_READ.knows(
            _dispatched(
                {
                    "llama": "#L993",
                    "mistral": "#L1335",
                    "qwen2": "#L1439",
                    "gemma": "#L1071",
                    "phi3": "#L993",
                    "gpt_bigcode": "#L772",
                    "granite": "#L993",
                    "gemma2": "#L1106",
                    "gemma3_text": "#L1141",
                    "gemma3": "#L1179",
                    "qwen2_vl": "#L1512",
                    "qwen2_5_vl": "#L1543",
                }
            )
        ),
        *_READ.knows(
            _dispatched(
                {
                    "cohere": "#L1223",
                    "mixtral": "#L1369",
                    "phi": "#L929",
                    "phimoe": "#L952",
                    "starcoder2": "#L1403",
                }
            ),
            sizes_heads=False,
        ),
        *_READ.takes_larger(dict.fromkeys(("idefics3", "llava_next"), (_OWN + "vlm.py#L1", _AROUND))),
        *_READ.takes_larger({"mllama": (_OWN + "mllama.py#L928", frozenset({"mllama_text_model"}))}),
        _READ.leaves_open(frozenset({"idefics3", "llava_next"}), _OWN + "vlm.py#L1", NOT_INSIDE),
        _READ.takes(FALCON, _OWN + "flash_rw_modeling.py#L137", applies=one_head),
        _READ.leaves_open(FALCON, _OWN + "flash_rw_modeling.py#L137", _MOST_LAYOUTS),
        _READ.refuses(OWN, "server/uv.lock#L2990", _OLD),
        _READ.refuses(
            DEEPSEEK,
            _OWN + "flash_deepseek_v3_modeling.py#L240",
            f"where attention has biases it looks for one on kv_b_proj too; and it caches every head: {TAKE_GQA}",
            biased,
        ),
        _READ.leaves_open(NATIVE | LARGER, _MODELS + "__init__.py#L1742", _FALLS_BACK),
    ),
    notes=(
        Note(
            types=NATIVE | BIGCODE,
            text="its FlashInfer takes heads of 64, 128 or 256, here {head_size}: slower kernels step in, without "
            "reuse of prefixes",
            evidence="source",
            where=_CODE + "launcher/src/main.rs#L155",
            applies=heads_not_in(64, 128, 256),
        ),
    ),
)
