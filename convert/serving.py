"""What serving engines make of a converted checkpoint: rules as data, each with where it was learned.

A rule says of one engine and some model types whether the checkpoint loads, by a class of the engine's own or by our
code, whether the engine then keeps the small cache, and if not what to do. `evidence` is how it is known:

    tried          by tests of this repository, with that version
    source         read in the engine's source, not run
    documentation  the engine's documentation says so, not run
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from convert_attn import modeling
from convert_attn.convert.errors import UsageError
from convert_attn.convert.hub import resolve
from convert_attn.convert.source import Source

Loads = Literal["native class", "custom code", "no"]
Evidence = Literal["tried", "source", "documentation"]
Config = dict[str, Any]

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "gemma", "phi3"})
CUSTOM = frozenset(modeling.FAMILIES)
_GQA = frozenset({"gpt2_gqa"})
_LATENT = frozenset({"gpt2_mla", "llama_mla"})
_BIGCODE = frozenset({"gpt_bigcode"})
_DEEPSEEK = frozenset({"deepseek_v3"})

_TAKE_GQA = "for a small cache here convert --to gqa or mqa"
_TAKE_NATIVE = "convert to a native class: --to mqa for GPT-2; --to gqa or mqa for Llama and its relatives"
_BACKEND = "through its transformers backend: start it with --trust-remote-code"
_EXPANDED = f"{_BACKEND}; it is handed K and V of every head, so its cache is larger than the original's: {_TAKE_GQA}"
_NO_BIAS = (
    "its DeepSeek-V3 has no bias on kv_a_proj_with_mqa, which carries the constant that undoes the latent's norm: "
    f"take --layout custom to run it, {_TAKE_GQA}"
)


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


def _gelu(config: Config) -> bool:
    return config.get("activation_function") != "gelu"


_VLLM = "https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/"
_SGLANG = "https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/models/"
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/blob/master/"
_TGI = "https://github.com/huggingface/text-generation-inference/blob/main/server/text_generation_server/models/"
_CT2 = "ctranslate2/converters/transformers.py"
_ENGINE_TESTS = "tests/test_engines.py"

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
    Rule("vLLM", "0.32", LLAMA_LIKE | _BIGCODE, "native class", True, "source", _VLLM + "registry.py"),
    Rule("vLLM", "0.32", _GQA, "custom code", True, "source", _VLLM + "transformers/base.py", _BACKEND),
    Rule("vLLM", "0.32", _LATENT, "custom code", False, "source", _VLLM + "transformers/base.py", _EXPANDED),
    Rule("vLLM", "0.32", _DEEPSEEK, "no", None, "source", _VLLM + "deepseek_v2.py", _NO_BIAS),
    Rule("SGLang", "0.5", LLAMA_LIKE | _BIGCODE, "native class", True, "source", _SGLANG),
    Rule("SGLang", "0.5", _GQA, "custom code", True, "source", _SGLANG + "transformers.py", _BACKEND),
    Rule("SGLang", "0.5", _LATENT, "custom code", False, "source", _SGLANG + "transformers.py", _EXPANDED),
    Rule("SGLang", "0.5", _DEEPSEEK, "no", None, "source", _SGLANG + "deepseek_v2.py", _NO_BIAS),
    Rule(
        "llama.cpp",
        "2026",
        LLAMA_LIKE | _BIGCODE,
        "native class",
        True,
        "source",
        _LLAMA_CPP + "conversion/__init__.py",
        "convert with convert_hf_to_gguf.py",
    ),
    Rule("llama.cpp", "2026", CUSTOM, "no", None, "source", _LLAMA_CPP + "conversion/__init__.py", _TAKE_NATIVE),
    Rule("llama.cpp", "2026", _DEEPSEEK, "no", None, "source", _LLAMA_CPP + "src/models/deepseek2.cpp", _NO_BIAS),
    Rule(
        "CTranslate2",
        "4.8.5",
        frozenset({"llama", "qwen2", "gpt_bigcode"}),
        "native class",
        True,
        "tried",
        _ENGINE_TESTS,
        "convert with ct2-transformers-converter",
    ),
    Rule(
        "CTranslate2",
        "4.8.5",
        LLAMA_LIKE,
        "native class",
        True,
        "source",
        _CT2,
        "convert with ct2-transformers-converter",
    ),
    Rule("CTranslate2", "4.8.5", CUSTOM | _DEEPSEEK, "no", None, "tried", _ENGINE_TESTS, _TAKE_NATIVE),
    Rule(
        "mlx-lm",
        "0.32.2",
        _BIGCODE,
        "native class",
        True,
        "tried",
        _ENGINE_TESTS,
        "its logits differ: it has the exact GELU where GPT-2's is the tanh approximation",
        _gelu,
    ),
    Rule("mlx-lm", "0.32.2", frozenset({"llama", "qwen2"}) | _DEEPSEEK, "native class", True, "tried", _ENGINE_TESTS),
    Rule("mlx-lm", "0.32.2", LLAMA_LIKE | _BIGCODE, "native class", True, "source", "mlx_lm/models/"),
    Rule("mlx-lm", "0.32.2", CUSTOM, "no", None, "tried", _ENGINE_TESTS, _TAKE_NATIVE),
    Rule("TGI", "3", LLAMA_LIKE | _BIGCODE, "native class", True, "source", _TGI + "custom_modeling/"),
    Rule(
        "TGI",
        "3",
        CUSTOM,
        "no",
        None,
        "source",
        "https://github.com/huggingface/text-generation-inference/blob/main/server/pyproject.toml",
        f"it comes with transformers 4, our classes need 5.16: {_TAKE_NATIVE}",
    ),
    Rule(
        "TGI",
        "3",
        _DEEPSEEK,
        "no",
        None,
        "source",
        _TGI + "custom_modeling/flash_deepseek_v3_modeling.py",
        f"where attention has biases it looks for one on kv_b_proj too; and it caches every head: {_TAKE_GQA}",
    ),
)


def verdicts(config: Config) -> list[Rule]:
    """The rule of every engine for a checkpoint with this config.json; an engine without one is left out."""
    found: dict[str, Rule] = {}
    for rule in RULES:
        if config.get("model_type") in rule.types and rule.applies(config):
            found.setdefault(rule.engine, rule)
    return list(found.values())


def engines() -> list[str]:
    """Every engine that there are rules for."""
    return list(dict.fromkeys(rule.engine for rule in RULES))


def as_dict(rule: Rule) -> dict[str, Any]:
    """For --json."""
    return {key: value for key, value in asdict(rule).items() if key not in ("types", "applies")}


def serving(model: str | Path, revision: str | None = None, subfolder: str | None = None) -> tuple[str, list[Rule]]:
    """The model type of a checkpoint and what engines make of it, from config.json alone.

    Raises:
        ConvertAttnError: it is not there, or no rule knows its type.
    """
    source = Source.open(resolve(str(model), revision, subfolder, weights=False))
    rules = verdicts(source.config)
    if not rules:
        known = ", ".join(sorted(frozenset().union(*(rule.types for rule in RULES))))
        raise UsageError(
            f"no rules for '{source.config['model_type']}', which no conversion makes; there are rules for {known}"
        )
    return str(source.config["model_type"]), rules
