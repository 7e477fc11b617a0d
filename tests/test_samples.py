"""The bundled checkpoints: their size, that they load, and that they know what they were trained to know.

The perplexities are computed here anew, not with the training script's functions.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from convert_attn.convert import samples

CONTEXT = 512
WINDOWS = 16


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that needs the network is not bundled."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(params=samples.SAMPLES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(name: str) -> tuple[Any, Any]:
    """A sample's model, computing in fp32, and its tokenizer."""
    folder = samples.sample_path(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def record(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((samples.sample_path(name) / "training.json").read_text(encoding="utf-8"))
    return content


def heldout_windows(tokenizer: Any) -> Tensor:
    """All whole windows of the held-out text: [windows, CONTEXT]."""
    ids = tokenizer(samples.heldout_text(), add_special_tokens=False, verbose=False)["input_ids"]
    count = len(ids) // CONTEXT
    return torch.tensor(ids[: count * CONTEXT]).view(count, CONTEXT)


def best_unigram_entropy(ids: Tensor) -> float:
    """Nats per token of the unigram model fitted to the very tokens it is measured on: none can be better."""
    frequency = torch.bincount(ids.flatten()).double() / ids.numel()
    frequency = frequency[frequency > 0]
    return float(-(frequency * frequency.log()).sum())


def module_names(text: str) -> set[str]:
    return set(re.findall(r"^# Lib/(\S+\.py)$", text, flags=re.MULTILINE))


def test_both_samples_are_there() -> None:
    assert samples.SAMPLES == ("gpt2", "llama")


def test_unknown_sample_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no bundled sample is named 'bert'; there are gpt2, llama"):
        samples.sample_path("bert")


def test_size_on_disk(name: str) -> None:
    files = [path for path in samples.sample_path(name).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000


def test_loads_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    logging.disable_progress_bar()
    try:
        load(name)
    finally:
        logging.enable_progress_bar()
    assert "warn" not in capfd.readouterr().err.lower()


def test_plain_multi_head_with_a_million_parameters(name: str) -> None:
    model, _ = load(name)
    config = model.config
    assert config.model_type == name
    assert 1.0e6 <= model.num_parameters() <= 1.2e6
    assert config.num_attention_heads == 8
    assert getattr(config, "num_key_value_heads", 8) == 8
    assert getattr(config, "head_dim", config.hidden_size // 8) == 16
    assert config.max_position_embeddings == CONTEXT
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_configuration_has_the_keys_of_older_readers(name: str) -> None:
    config = json.loads((samples.sample_path(name) / "config.json").read_text(encoding="utf-8"))
    key, value = {"gpt2": ("n_ctx", 512), "llama": ("rope_theta", 10000.0)}[name]
    assert config[key] == value


def test_tokenizer(name: str) -> None:
    _, tokenizer = load(name)
    assert (len(tokenizer), tokenizer.model_max_length) == (2048, CONTEXT)
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    text = "def é(x):\n\treturn  x + 1  # 日本\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_heldout_perplexity_is_far_below_any_unigrams(name: str) -> None:
    model, tokenizer = load(name)
    every = heldout_windows(tokenizer)
    some = every[:: len(every) // WINDOWS][:WINDOWS]
    with torch.inference_mode():
        logits = model(input_ids=some).logits[:, :-1]
    ours = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten()))
    written = record(name)["heldout"]

    assert ours == pytest.approx(written["cross_entropy"], abs=0.3)  # a part of the text stands for all of it
    assert written["times_better"] >= 5
    assert math.exp(written["unigram_cross_entropy"] - ours) >= 5
    assert math.exp(best_unigram_entropy(some[:, 1:]) - ours) >= 5


def test_recorded_unigram_is_worse_than_the_best_one(name: str) -> None:
    _, tokenizer = load(name)
    targets = heldout_windows(tokenizer)[:, 1:]
    written = record(name)["heldout"]
    assert written["tokens"] == targets.numel()
    assert written["unigram_cross_entropy"] > best_unigram_entropy(targets)


def test_generates_text(name: str) -> None:
    model, tokenizer = load(name)
    prompt = tokenizer("class Queue:\n    def __init__(self", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    written = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert re.search(r"\w{2}", written)


@pytest.mark.parametrize("text", [samples.heldout_text(), samples.calibration_text()], ids=["heldout", "calibration"])
def test_excerpts_fit_their_limit_and_are_listed(text: str) -> None:
    assert 150_000 <= len(text.encode()) <= 200_000
    overview = (samples.sample_path("gpt2").parent / "README.md").read_text(encoding="utf-8")
    assert module_names(text)
    assert all(f"`{module}`" in overview for module in module_names(text))


def test_nothing_held_out_is_in_the_calibration_text() -> None:
    heldout, calibration = samples.heldout_text(), samples.calibration_text()
    assert not module_names(heldout) & module_names(calibration)
    passages = (heldout[start : start + 400] for start in range(0, len(heldout) - 400, 400))
    assert not any(passage in calibration for passage in passages)


def test_no_absolute_path_in_the_written_files(name: str) -> None:
    for path in [*samples.sample_path(name).glob("*.json"), *samples.sample_path(name).glob("*.md")]:
        if path.name != "tokenizer.json":
            assert os.getcwd() not in path.read_text(encoding="utf-8")
