"""Encoders are healed by their original's last hidden states, on text with special tokens at both ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Command, config_of, tensors_of
from tiny import ENCODERS, SIZES, load, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from convert_attn import UsageError, convert, heal, verify
from convert_attn.convert.archs import architectures
from convert_attn.convert.heal.data.texts import Texts
from convert_attn.convert.heal.data.tokens import open_text, pack

SOURCES = [name for name in ENCODERS if architectures()[name].config_kv_heads is None]
LENGTH = 16
FAST: dict[str, Any] = {
    "tokens": LENGTH * 48,
    "batch_size": 4,
    "seq_len": LENGTH,
    "selection_tokens": LENGTH * 8,
    "cpu": True,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(80))]


def save_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A tiny encoder and what a conversion to two K/V heads makes of it."""
    tiny_model(name).save_pretrained(folder / "in")
    convert(folder / "in", to="gqa", groups=2, output=folder / "out", calibration=None, measure=False)
    return folder / "in", folder / "out"


def windows(folder: Path) -> Path:
    drawn = np.random.default_rng(0).integers(5, SIZES["vocab_size"], (120, LENGTH))
    np.save(folder / "tokens.npy", drawn)
    return folder / "tokens.npy"


@torch.no_grad()
def error(ours: Any, theirs: Any, ids: torch.Tensor) -> float:
    """Of the last hidden states, squared, relative to their size."""
    found, wanted = (model.base_model(input_ids=ids).last_hidden_state for model in (ours, theirs))
    return float((found - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("name", SOURCES)
def test_both_stages_bring_hidden_states_nearer(name: str, tmp_path: Path, slow: bool) -> None:
    if not slow and name not in SOURCES[:1]:
        pytest.skip("--slow heals every encoder")
    original, converted = save_pair(tmp_path, name)
    healed = heal(converted, teacher=original, data=windows(tmp_path), output=tmp_path / "healed", **FAST)
    assert healed.best is not None
    assert healed.start is not None
    assert healed.best < healed.start
    assert (healed.unit, healed.perplexity) == ("", None)
    ids = torch.from_numpy(np.load(tmp_path / "tokens.npy")[:8])
    before, after = (error(load(folder), load(original), ids) for folder in (converted, healed.output))
    assert after < before
    # what hidden states do not depend on stays as it was
    there, now = tensors_of(converted), tensors_of(healed.output)
    heads = [stored for stored in there if stored.startswith(("cls.", "lm_head.", "vocab_", "generator_"))]
    tied = {"cls.predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight"}
    assert heads
    assert all(torch.equal(there[stored], now[stored]) for stored in heads if stored not in tied)
    assert verify(healed.output).figures["padding"] < 1e-2
    run = config_of(healed.output)["convert_attn"]["heal"][-1]
    assert run["goal"].startswith("squared error of the last hidden states")
    card = (healed.output / "README.md").read_text()
    assert "squared error of the last hidden states, relative to their size | " in card
    assert "perplexity" not in card


def test_blocks_alone_and_a_run_that_goes_on(tmp_path: Path, command: Command) -> None:
    original, converted = save_pair(tmp_path, SOURCES[0])
    text = windows(tmp_path)
    layers = heal(converted, teacher=original, data=text, output=tmp_path / "layers", stages=("layerwise",), **FAST)
    ids = torch.from_numpy(np.load(text)[:8])
    assert error(load(layers.output), load(original), ids) < error(load(converted), load(original), ids)
    shown = command(
        *("heal", converted, "--teacher", original, "--data", text, "--tokens", "1000", "--seq-len", LENGTH, "--cpu"),
        *("--stages", "distill", "--batch-size", "4", "--selection-tokens", "64", "--output", tmp_path / "again"),
    )
    assert shown.code == 0, shown.err
    assert "squared error of the last hidden states, relative to their size: " in shown.out
    assert "nats" not in shown.out
    assert "Perplexity" not in shown.out


def test_what_has_no_meaning_for_an_encoder_is_refused(tmp_path: Path) -> None:
    original, converted = save_pair(tmp_path, SOURCES[0])
    text = windows(tmp_path)
    with pytest.raises(UsageError, match="it learns from its original alone"):
        heal(converted, data=text, output=tmp_path / "healed", stages=("uptrain",), **FAST)
    with pytest.raises(UsageError, match="--lm-weight is for language models"):
        heal(converted, teacher=original, data=text, output=tmp_path / "healed", lm_weight=0.5, **FAST)
    assert not (tmp_path / "healed").exists()


def test_windows_begin_and_end_as_the_tokenizer_says(tmp_path: Path) -> None:
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    (tmp_path / "model").mkdir()
    fast.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"w{n % 80}" for n in range(400)))
    texts = Texts.of(str(tmp_path / "text.txt"), None, None)
    pack(texts, tmp_path / "model", name="m", length=LENGTH, tokens=400, place=tmp_path, encoder=True)
    text = open_text(tmp_path, LENGTH, vocabulary=len(WORDS), name="m", seed=0)
    found = text.batch(0, 20)
    assert found.shape == (20, LENGTH)
    assert set(found[:, 0].tolist()) == {2}
    assert set(found[:, -1].tolist()) == {3}
    assert not set(found[:, 1:-1].flatten().tolist()) & {0, 1, 2, 3}
