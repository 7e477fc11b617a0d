"""Encoder-decoders are healed on pairs: the target's logits given the source, towards the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, tensors_of
from test_pairs import token_losses, write_pairs
from test_seq2seq import TEXTUAL, with_tokenizer
from tiny import load, tiny_model
from transformers import AutoTokenizer

from convert_attn import ConvertAttnError, UsageError, convert, heal, verify
from convert_attn.convert.heal.data.pair_texts import PairTexts
from convert_attn.convert.heal.data.texts import Texts
from convert_attn.convert.heal.data.tokens import open_text
from convert_attn.convert.heal.loss.halves import Halves
from convert_attn.convert.heal.loss.objective import Objective, attach, predicted
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.pair_windows import both_sides, count_tokens, paired
from convert_attn.convert.text.pairs import read_pairs
from convert_attn.eval.measures.passages import make_pairs

FAST: dict[str, Any] = {"tokens": 4000, "batch_size": 4, "selection_tokens": 1000, "cpu": True, "lr": 3e-3}


def save_pair(folder: Path, family: str) -> tuple[Path, Path]:
    """A tiny encoder-decoder with a tokenizer, and what a conversion to two K/V heads makes of it."""
    with_tokenizer(family, folder / "in", max_position_embeddings=128)
    convert(folder / "in", to="gqa", groups=2, output=folder / "out", calibration=None, measure=False)
    return folder / "in", folder / "out"


@pytest.mark.parametrize("family", TEXTUAL)
def test_the_objective_is_the_whole_class_on_padded_pairs(family: str) -> None:
    """In halves: KL and loss are those of whole logits, with gradients for both stacks, whatever fills up."""
    student, teacher = (tiny_model(family, seed=seed) for seed in (0, 1))
    pairs = [([*range(5, 14)], [2, 8, 9, 10, 11]), ([20, 21, 22], [2, 5]), ([30, 31, 32, 33], [2, 40, 41])]
    windows = paired(pairs, (12, 9))
    (p, labels), (q, _) = (token_losses_of(model, windows) for model in (teacher, student))
    kept = labels >= 0
    halves, theirs = attach(student), Halves(teacher)
    for one in (halves, theirs):
        one.try_out(windows)
        assert not one.together
    found = Objective(kl=1.0, lm=0.5, hidden=0.1).parts(student, theirs, windows)
    assert predicted(windows) == int(kept.sum()) == 7
    assert float(found["kl"]) == pytest.approx(float((p.exp() * (p - q)).sum(-1)[kept].mean()), rel=1e-5)
    assert float(found["lm"]) == pytest.approx(float(torch.nn.functional.nll_loss(q[kept], labels[kept])), rel=1e-5)
    found["loss"].backward()
    for name in ("encoder", "decoder"):
        grads = [p.grad for n, p in student.named_parameters() if f"{name}." in n and p.grad is not None]
        assert grads
        assert all(torch.isfinite(grad).all() for grad in grads)


def token_losses_of(model: Any, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `token_losses`, of windows that begin their targets as they like."""
    source, target = both_sides(windows)
    with torch.no_grad():
        out = model(
            input_ids=source.clamp_min(0),
            attention_mask=(source >= 0).long(),
            decoder_input_ids=target[:, :-1].clamp_min(0),
        )
    return out.logits.log_softmax(-1), target[:, 1:]


@pytest.mark.parametrize("family", TEXTUAL)
def test_pairs_bring_it_nearer_to_its_original(family: str, tmp_path: Path, slow: bool) -> None:
    if not slow and family not in ("bart", "t5"):
        pytest.skip("--slow heals every encoder-decoder")
    original, converted = save_pair(tmp_path, family)
    text = write_pairs(tmp_path / "pairs.jsonl", 200)
    healed = heal(converted, teacher=original, data=text, output=tmp_path / "healed", **FAST)
    assert healed.start is not None
    assert healed.best is not None
    assert healed.best < healed.start
    assert healed.perplexity is not None
    assert any("stage layerwise is left out" in warning for warning in healed.warnings)
    windows = make_pairs(
        AutoTokenizer.from_pretrained(original), str(text), 100, 4000, Decoder(0, lambda target: target[-1])
    ).windows
    (p, labels), *both = (token_losses_of(load(folder), windows) for folder in (original, converted, healed.output))
    kept = labels >= 0
    before, after = (float((p.exp() * (p - q)).sum(-1)[kept].mean()) for q, _ in both)
    assert after < before
    assert verify(healed.output).figures["decodes"] < 1e-2
    run = config_of(healed.output)["convert_attn"]["heal"][-1]
    assert run["stages"] == ["distill"]


def test_only_attention_is_trained_where_that_was_asked_for(tmp_path: Path) -> None:
    original, converted = save_pair(tmp_path, "t5")
    text = write_pairs(tmp_path / "pairs.jsonl", 200)
    out = heal(converted, teacher=original, data=text, output=tmp_path / "healed", train="attention", **FAST).output
    before, after = tensors_of(converted), tensors_of(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("Attention." in name for name in changed)


def test_a_run_counts_real_tokens_and_leaves_out_what_is_excluded(tmp_path: Path) -> None:
    with_tokenizer("t5", tmp_path / "in")
    text, others = write_pairs(tmp_path / "pairs.jsonl", 60), write_pairs(tmp_path / "other.jsonl", 20)
    given = Texts.of([str(text)], None, str(others))
    texts = PairTexts(given, tmp_path / "in", "tiny", Decoder(0, lambda target: 0))
    length = texts.length(512)
    assert 10 < length < 100
    known = {side for pair in read_pairs(others) for side in pair}
    fresh = [pair for pair in read_pairs(text) if known.isdisjoint(pair)]
    assert texts.pack(length, 10**6, tmp_path) == 60 - len(fresh) >= 20
    made = open_text(tmp_path, 500, vocabulary=config_of(tmp_path / "in")["vocab_size"], name="tiny", seed=0)
    assert (made.length, made.side) == (2 * length + 1, length)
    whole = torch.cat([made.batch(0, len(made.parts[0].order)), made.selection])
    assert len(whole) == len(fresh)
    assert made.tokens_each == round(count_tokens(whole) / len(whole))
    with pytest.raises(ConvertAttnError, match="gives 0 pairs besides 60 that --exclude has too"):
        PairTexts(Texts.of([str(text)], None, str(text)), tmp_path / "in", "t", texts.decoder).pack(9, 99, tmp_path)


def test_what_has_no_meaning_for_them_is_refused(tmp_path: Path, command: Command) -> None:
    original, converted = save_pair(tmp_path, "t5")
    (tmp_path / "plain.txt").write_text("a = 1\n" * 2000)
    with pytest.raises(UsageError, match="whose blocks read two texts and are not trained one by one"):
        heal(converted, teacher=original, data=tmp_path / "plain.txt", stages=("layerwise",), **FAST)
    (tmp_path / "ids.npy").write_bytes(b"")
    with pytest.raises(UsageError, match="whose source and target are made of text"):
        heal(converted, teacher=original, data=tmp_path / "ids.npy", **FAST)
    plain = ("--data", tmp_path / "plain.txt", "--tokens", "2000", "--batch-size", "4", "--cpu", "--seq-len", "16")
    shown = command("heal", converted, "--teacher", original, *plain, "--output", tmp_path / "healed")
    assert shown.code == 0, shown.err
    assert "has no pairs: the first half of each window was the source" in " ".join(shown.out.split())
    tiny_model("bart").model.save_pretrained(tmp_path / "base")
    convert(tmp_path / "base", to="mqa", output=tmp_path / "shared", calibration=None, measure=False)
    with pytest.raises(UsageError, match="heal trains language models, encoders, and what writes a text for a text"):
        heal(tmp_path / "shared", teacher=tmp_path / "base", data=tmp_path / "plain.txt", **FAST)


def test_losses_of_labels_are_those_of_windows() -> None:
    """`token_losses` of the other file stands on labels; here on windows that begin as the class shifts them."""
    model = tiny_model("t5")
    windows = paired([([5, 6, 7], [0, 8, 9]), ([9], [0, 4, 3, 2])])
    (p, labels), (q, others) = token_losses(model, windows), token_losses_of(model, windows)
    assert torch.equal(labels.clamp_min(-1), others)
    torch.testing.assert_close(p[labels >= 0], q[labels >= 0])
