"""Converted checkpoints in engines that are not ours: the same logits, the same greedy text.

Skipped where an engine is not installed: `pip install "convert-attn[engines]"`, then `pytest tests/test_engines.py`.
"""

from __future__ import annotations

import json
import shutil
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


BOTH = ("ctranslate2", "mlx_lm")
CASES = {
    "llama GQA": Case("llama", {"to": "gqa", "groups": 2}, "llama", BOTH),
    "llama MQA": Case("llama", {"to": "mqa"}, "llama", BOTH),
    "qwen2 GQA": Case("qwen2", {"to": "gqa", "groups": 2}, "qwen2", BOTH),
    "gpt2 MQA": Case("gpt2", {"to": "mqa", "layout": "native"}, "gpt_bigcode", ("ctranslate2",)),
    "llama MLA": Case(
        "llama", {"to": "mla", "rank": 96, "rope_dim": 32, "layout": "native"}, "deepseek_v3", ("mlx_lm",)
    ),
    "qwen2 MLA": Case(
        "qwen2", {"to": "mla", "rank": 48, "rope_dim": 16, "layout": "native"}, "deepseek_v3", ("mlx_lm",)
    ),
}


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


ENGINES: dict[str, type[Engine]] = {"ctranslate2": CTranslate2, "mlx_lm": MlxLm}


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


def test_mlx_lm_computes_gpt_bigcode_with_another_gelu(tmp_path: Path) -> None:
    """It has the exact GELU whatever the config says; GPT-2's is the tanh approximation. Nothing else differs."""
    pytest.importorskip("mlx_lm")
    folder = converted(CASES["gpt2 MQA"], tmp_path)
    other = MlxLm(folder, tmp_path).logits(PROMPT)
    assert np.abs(Ours(folder, tmp_path).logits(PROMPT) - other).max() > TOLERANCE
    edit_config(folder, activation_function="gelu")
    assert np.abs(Ours(folder, tmp_path).logits(PROMPT) - other).max() < TOLERANCE


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


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2_gqa": ("gpt2", {"to": "gqa", "groups": 2}),
    "gpt2_mla": ("gpt2", {"to": "mla"}),
    "llama_mla": ("llama", {"to": "mla", "rank": 96, "rope_dim": 32}),
    "deepseek_v3": ("llama", {"to": "mla", "rank": 96, "rope_dim": 32, "layout": "native"}),
}


@pytest.mark.parametrize(
    ("result", "engine"), [(r, e) for r in REFUSED for e in ENGINES if (r, e) != ("deepseek_v3", "mlx_lm")]
)
def test_an_engine_refuses_what_it_does_not_know(result: str, engine: str, tmp_path: Path) -> None:
    """Rather than to read it as something else; the rules of `inspect --serving` say so."""
    pytest.importorskip(engine)
    source, options = REFUSED[result]
    folder = converted(Case(source, options, result, ()), tmp_path)
    with pytest.raises(ValueError, match=r"not supported|No conversion is registered"):
        ENGINES[engine](folder, tmp_path)
