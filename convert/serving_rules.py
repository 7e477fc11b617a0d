"""What serving engines make of a converted checkpoint: rules as data, each with where it was learned.

A rule says of one engine and some model types whether the checkpoint loads, by a class of the engine's own or by our
code, whether the engine then keeps the small cache, and if not what to do. `evidence` is how it is known:

    tried   by tests of this repository, with that version
    source  read in the engine's source, at the line that `where` names, not run
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from convert_attn import modeling

Loads = Literal["native class", "custom code", "no"]
Evidence = Literal["tried", "source"]
Config = dict[str, Any]

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "gemma", "phi3"})
CUSTOM = frozenset(modeling.FAMILIES)
_GQA = frozenset({"gpt2_gqa"})
_LATENT = frozenset({"gpt2_mla", "llama_mla"})
_BIGCODE = frozenset({"gpt_bigcode"})
_DEEPSEEK = frozenset({"deepseek_v3"})
_GEMMA = frozenset({"gemma"})
_PHI3 = frozenset({"phi3"})

_TAKE_GQA = "for a small cache here convert --to gqa or mqa"
_TAKE_NATIVE = "convert to a native class: --to mqa for GPT-2; --to gqa or mqa for Llama and its relatives"
_BACKEND = "through its transformers backend: start it with --trust-remote-code"
_EXPANDED = f"{_BACKEND}; it is handed K and V of every head, so its cache is no smaller than before: {_TAKE_GQA}"
_BIASES = "its DeepSeek-V3 has no bias on kv_a_proj_with_mqa, which carries the constant that undoes the latent's norm"
_EXACT_GELU = "its logits differ: it has the exact GELU where the model's is the tanh approximation"
_HEAD_SIZE = "it takes a head's size to be hidden_size / num_attention_heads, which is not so here, nor in the source"


@dataclass(frozen=True)
class Rule:
    """What one engine does with some model types.

    Attributes:
        version: of the engine, as far as it is known.
        types: values of `model_type`.
        kept: whether the engine's cache is the small one; None where it does not load.
        change: what to know or to do, "" where all is well.
        where: address or file of the evidence.
        applies: a further condition on config.json.
    """

    engine: str
    version: str
    types: frozenset[str]
    loads: Loads
    kept: bool | None
    evidence: Evidence
    where: str
    change: str = ""
    applies: Callable[[Config], bool] = lambda config: True


def _odd_heads(config: Config) -> bool:
    """Whether the size of a head is not what readers that do not look for it think."""
    size, heads, hidden = (config.get(key) for key in ("head_dim", "num_attention_heads", "hidden_size"))
    return not (size is None or heads is None or hidden is None) and size * heads != hidden


def _activation(*without: str) -> Callable[[Config], bool]:
    """GPTBigCode with an activation that an engine does not compute as it is meant."""
    return lambda config: config.get("activation_function") not in without


# Sources were read in the releases of these tags (vLLM's wheel says commit 4ba787ec9).
_GITHUB = "https://github.com/"
_VLLM = _GITHUB + "vllm-project/vllm/blob/v0.33.0/vllm/model_executor/models/"
_SGLANG = _GITHUB + "sgl-project/sglang/blob/v0.5.23/python/sglang/srt/models/"
_TGI = _GITHUB + "huggingface/text-generation-inference/blob/dfb3fbe78e0d1d69251bd33065591c61bafdfaa8/server/"
_TGI_MODELS = _TGI + "text_generation_server/models/"
_TGI_CODE = _TGI_MODELS + "custom_modeling/"
_LLAMA_CPP = "0c1e57098, of llama-cpp-python 0.3.36"
_ENGINE_TESTS = "tests/test_engines.py"


def _known(engine: str, version: str, folder: str, where: dict[str, str]) -> list[Rule]:
    """An engine has classes of its own for these types, and they keep as many K/V heads as there are."""
    return [
        Rule(engine, version, frozenset({name}), "native class", True, "source", folder + place)
        for name, place in where.items()
    ]


# In the order of engines as they are shown. Of several rules that apply to an engine the first one counts.
RULES: tuple[Rule, ...] = (
    Rule("transformers", ">= 5.16", LLAMA_LIKE | _BIGCODE, "native class", True, "tried", "tests/test_identities.py"),
    Rule(
        "transformers",
        ">= 5.16",
        _DEEPSEEK,
        "native class",
        True,
        "tried",
        "eval/benchmarks/decode.py",
        "it expands the latent to all keys and values at every step, which is slow: --layout custom does not",
    ),
    Rule(
        "transformers",
        ">= 5.16",
        CUSTOM,
        "custom code",
        True,
        "tried",
        "tests/test_hub.py",
        "load with trust_remote_code=True, or import convert_attn first",
    ),
    Rule(
        "vLLM",
        "0.33.0",
        frozenset({"qwen2"}),
        "no",
        None,
        "source",
        _VLLM + "qwen2.py#L150",
        _HEAD_SIZE,
        _odd_heads,
    ),
    *_known(
        "vLLM",
        "0.33.0",
        _VLLM + "registry.py",
        {"llama": "#L155", "mistral": "#L179", "qwen2": "#L200", "gemma": "#L112", "phi3": "#L197"},
    ),
    Rule(
        "vLLM",
        "0.33.0",
        _BIGCODE,
        "native class",
        True,
        "source",
        _VLLM + "registry.py#L753",
        "transformers' class, through its transformers backend",
    ),
    Rule("vLLM", "0.33.0", _GQA, "custom code", True, "source", _VLLM + "transformers/base.py#L638", _BACKEND),
    Rule("vLLM", "0.33.0", _LATENT, "custom code", False, "source", _VLLM + "transformers/base.py#L732", _EXPANDED),
    Rule(
        "vLLM",
        "0.33.0",
        _DEEPSEEK,
        "native class",
        True,
        "source",
        _VLLM + "deepseek_v2.py#L1807",
        "start it with --model-impl transformers, which keeps the latent and reads our biases: its own class leaves "
        "them out without a word and computes something else",
    ),
    *_known(
        "SGLang",
        "0.5.23",
        _SGLANG,
        {
            "llama": "llama.py#L968",
            "mistral": "mistral.py#L191",
            "qwen2": "qwen2.py#L797",
            "gemma": "gemma.py#L413",
            "phi3": "llama.py#L970",
            "gpt_bigcode": "gpt_bigcode.py#L63",
        },
    ),
    Rule("SGLang", "0.5.23", _GQA, "custom code", True, "source", _SGLANG + "transformers.py#L948", _BACKEND),
    Rule("SGLang", "0.5.23", _LATENT, "custom code", False, "source", _SGLANG + "transformers.py#L948", _EXPANDED),
    Rule(
        "SGLang",
        "0.5.23",
        _DEEPSEEK,
        "no",
        None,
        "source",
        _SGLANG + "deepseek_common/deepseek_weight_loader.py#L429",
        f"{_BIASES}: it leaves it out without a word and computes something else; take --layout custom to run it, "
        f"{_TAKE_GQA}",
    ),
    Rule(
        "llama.cpp",
        _LLAMA_CPP,
        LLAMA_LIKE - _GEMMA,
        "native class",
        True,
        "tried",
        _ENGINE_TESTS,
        "convert with convert_hf_to_gguf.py",
    ),
    Rule(
        "llama.cpp",
        _LLAMA_CPP,
        _GEMMA | _BIGCODE,
        "native class",
        True,
        "tried",
        _ENGINE_TESTS,
        "convert with convert_hf_to_gguf.py; on the CPU it computes GELU in fp16, which shows in the logits",
    ),
    Rule("llama.cpp", _LLAMA_CPP, CUSTOM, "no", None, "tried", _ENGINE_TESTS, _TAKE_NATIVE),
    Rule("llama.cpp", _LLAMA_CPP, _DEEPSEEK, "no", None, "tried", _ENGINE_TESTS, f"{_BIASES}, and stops: {_TAKE_GQA}"),
    Rule(
        "CTranslate2",
        "4.8.5",
        LLAMA_LIKE - _PHI3 | _BIGCODE,
        "native class",
        True,
        "tried",
        _ENGINE_TESTS,
        "convert with ct2-transformers-converter",
    ),
    Rule(
        "CTranslate2",
        "4.8.5",
        _PHI3,
        "no",
        None,
        "tried",
        _ENGINE_TESTS,
        "with transformers 5 its converter stops at the rope settings of every Phi-3, the source's too",
    ),
    Rule("CTranslate2", "4.8.5", CUSTOM | _DEEPSEEK, "no", None, "tried", _ENGINE_TESTS, _TAKE_NATIVE),
    Rule("mlx-lm", "0.32.2", _BIGCODE, "native class", True, "tried", _ENGINE_TESTS, _EXACT_GELU, _activation("gelu")),
    Rule("mlx-lm", "0.32.2", _GEMMA, "native class", True, "tried", _ENGINE_TESTS, _EXACT_GELU),
    Rule("mlx-lm", "0.32.2", LLAMA_LIKE | _BIGCODE | _DEEPSEEK, "native class", True, "tried", _ENGINE_TESTS),
    Rule("mlx-lm", "0.32.2", CUSTOM, "no", None, "tried", _ENGINE_TESTS, _TAKE_NATIVE),
    Rule(
        "TGI",
        "3.3.7",
        frozenset({"llama", "phi3", "qwen2"}),
        "no",
        None,
        "source",
        _TGI_CODE + "flash_llama_modeling.py#L148",
        _HEAD_SIZE,
        _odd_heads,
    ),
    Rule(
        "TGI",
        "3.3.7",
        _BIGCODE,
        "native class",
        True,
        "source",
        _TGI_CODE + "flash_santacoder_modeling.py#L333",
        f"{_EXACT_GELU}, unless config.json calls it gelu_pytorch_tanh, the same function",
        _activation("gelu", "gelu_fast", "gelu_pytorch_tanh"),
    ),
    *_known(
        "TGI",
        "3.3.7",
        _TGI_MODELS + "__init__.py",
        {
            "llama": "#L993",
            "mistral": "#L1335",
            "qwen2": "#L1439",
            "gemma": "#L1071",
            "phi3": "#L993",
            "gpt_bigcode": "#L772",
        },
    ),
    Rule(
        "TGI",
        "3.3.7",
        CUSTOM,
        "no",
        None,
        "source",
        _TGI + "uv.lock#L2990",
        f"it comes with transformers 4.51, our classes need 5.16: {_TAKE_NATIVE}",
    ),
    Rule(
        "TGI",
        "3.3.7",
        _DEEPSEEK,
        "no",
        None,
        "source",
        _TGI_CODE + "flash_deepseek_v3_modeling.py#L240",
        f"where attention has biases it looks for one on kv_b_proj too; and it caches every head: {_TAKE_GQA}",
    ),
)
