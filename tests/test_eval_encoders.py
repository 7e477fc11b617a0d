"""`convert-attn eval` of encoders: likeness of embeddings, time of a forward pass, parameters; nothing that decodes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import Command, config_of, edit_config, json_of
from tiny import load, tiny_model
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer

from convert_attn import UsageError, convert, evaluate
from convert_attn.convert.samples import sample_path
from convert_attn.eval.measures.passages import documents_of, make_texts

FAST = ("--max-tokens", "512", "--contexts", "8", "--repeats", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny encoder with a tokenizer, and a conversion of it."""
    place = tmp_path_factory.mktemp("encoder")
    vocabulary = config_of(sample_path("llama"))["vocab_size"]
    tiny_model("bert", vocab_size=vocabulary).save_pretrained(place / "in")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample_path("llama") / file, place / "in")
    convert(place / "in", to="gqa", groups=2, output=place / "out", calibration=None, measure=False)
    return place / "in", place / "out"


def test_the_report_says_what_an_encoder_gains_and_loses(
    pair: tuple[Path, Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    original, converted = pair
    shown = command("eval", original, converted, *FAST, "--output", tmp_path / "eval")
    assert shown.code == 0, shown.err
    assert "no perplexity" in " ".join(shown.out.split())
    document = json_of(tmp_path / "eval" / "eval.json")
    (model,) = document["models"]
    found, ours, theirs = model["embeddings"], load(converted), load(original)
    texts = make_texts(AutoTokenizer.from_pretrained(original), documents_of(None, encoder=True), 64, 512).windows
    assert [found["texts"], found["length"]] == list(texts.shape)
    with torch.no_grad():
        a, b = (one.base_model(input_ids=texts).last_hidden_state.double() for one in (theirs, ours))
    cosine = cosine_similarity(a.mean(1), b.mean(1), dim=-1)
    assert found["cosine"]["mean"] == pytest.approx(float(cosine.mean()), rel=1e-6)
    assert found["cosine"]["error"] == pytest.approx(float(cosine.std() / len(cosine) ** 0.5), rel=1e-5)
    assert found["least"] == pytest.approx(float(cosine.min()), rel=1e-6)
    counts = [sum(p.numel() for p in one.parameters()) for one in (theirs, ours)]
    assert [document["original"]["parameters"], model["parameters"]] == counts
    (row,) = model["forward"]
    assert row["forward"]["original"]["median_ms"] > 0
    assert row["forward_attention"]["original"]["median_ms"] < row["forward"]["original"]["median_ms"]
    assert (model["cache"], model["quality"], model["speed"], model["peak_memory"]) == (None,) * 4
    page = (tmp_path / "eval" / "eval.html").read_text()
    assert "cosine of embeddings" in page
    assert "KL" not in (tmp_path / "eval" / "eval.md").read_text()


def test_it_goes_into_the_card(pair: tuple[Path, Path], tmp_path: Path) -> None:
    original, converted = pair
    shutil.copytree(converted, tmp_path / "out")
    evaluate(original, tmp_path / "out", max_tokens=256, speed=False, update_card=True, device="cpu")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| cosine similarity of embeddings | 1 | " in card
    assert "feature-extraction" in card
    assert "perplexity" not in card


def test_a_model_is_like_itself(pair: tuple[Path, Path]) -> None:
    document = evaluate(pair[0], pair[0], max_tokens=256, speed=False, device="cpu").document
    found = document["models"][0]["embeddings"]
    assert found["cosine"]["mean"] == pytest.approx(1.0)
    assert found["hidden_error"]["mean"] == 0


def test_what_is_about_models_that_write_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    original, converted = pair
    with pytest.raises(UsageError, match=r"--tasks is for language models: '.*in' is an encoder"):
        evaluate(original, converted, tasks=["convert_attn_next_line"], device="cpu")
    with pytest.raises(UsageError, match="--scale is for language models"):
        evaluate(original, converted, scale="llama-2-7b", device="cpu")
    tiny_model("llama", vocab_size=config_of(original)["vocab_size"]).save_pretrained(tmp_path / "writes")
    edit_config(tmp_path / "writes", architectures=["LlamaForCausalLM"])
    with pytest.raises(UsageError, match="one is an encoder and the other is not"):
        evaluate(original, tmp_path / "writes", device="cpu")
