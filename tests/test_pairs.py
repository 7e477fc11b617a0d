"""Pairs of source and target text: read, cut, filled up; and what is fitted and measured on them.

What a padded pair gives must be what it gives alone; what stands where nothing is must count nowhere.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, json_of
from test_identities import _equal_heads
from test_refit import D, H, heads
from test_seq2seq import SAMPLES, SITES, TEXTUAL, with_tokenizer
from tiny import HEADS, load, tiny_model
from transformers import AutoTokenizer

from convert_attn import ConvertAttnError, UsageError, convert, evaluate
from convert_attn.convert.calibration.statistics import Gathering
from convert_attn.convert.classes.decoder_start import shift_of
from convert_attn.convert.fitting.attention_refit import LayerRefit
from convert_attn.convert.fitting.attention_sample import Batch, sample_original
from convert_attn.convert.fitting.measure import Measured
from convert_attn.convert.samples import calibration_text
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.pair_windows import NOTHING, asked, both_sides, paired, readable, trimmed
from convert_attn.convert.text.pairs import holds_pairs, read_pairs
from convert_attn.convert.text.windows import calibration_windows
from convert_attn.convert.weights.functional import Attention, OtherSide, Rule
from convert_attn.eval.measures.passages import make_pairs

every_family = pytest.mark.parametrize("family", TEXTUAL)


def write_pairs(path: Path, count: int = 64) -> Path:
    """Pairs of all lengths: a line of code, and some of what follows it."""
    lines = [line.strip() for line in calibration_text().splitlines() if len(line) > 20]
    rows = ({"source": lines[2 * n], "target": lines[2 * n + 1][: 5 + 7 * n % 60]} for n in range(count))
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


# --- what is read


@pytest.mark.parametrize(
    "row",
    [
        {"source": "a b", "target": "c", "id": 3},
        {"document": "a b", "summary": "c"},
        {"article": "a b", "highlights": "c"},
        {"translation": {"en": "a b", "de": "c"}},
    ],
)
def test_rows_that_are_pairs(row: dict[str, Any], tmp_path: Path) -> None:
    blank = json.dumps({"source": "a", "target": " "} if "source" in row else row)
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n" + blank + "\n")
    assert next(read_pairs(tmp_path / "p.jsonl")) == ("a b", "c")
    assert len([*read_pairs(tmp_path / "p.jsonl")]) == (1 if "source" in row else 2)
    assert holds_pairs(tmp_path / "p.jsonl")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "p.parquet")
    assert [*read_pairs(tmp_path / "p.parquet")] == [("a b", "c")]


def test_rows_of_text_are_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "source": "wikipedia"}\n')
    (tmp_path / "t.txt").write_text("a\n")
    assert not holds_pairs(tmp_path / "t.jsonl")
    assert not holds_pairs(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"question": "a", "answer": "b"}', "line 1 of .* has no pairs, only 'question', 'answer': expected 'source'"),
        ('{"source": "a", "target": 3}', "'target' in line 1 of .* holds int: expected a string"),
        ('{"translation": {"en": "a"}}', "'translation' in line 1 of .* holds 'en': expected two languages"),
        ('{"source": "a", "target": ""}', "is empty: expected at least one pair"),
        ("[1]", 'holds no object but list: expected {"source": ..., "target": ...}'),
    ],
)
def test_rows_that_are_none_are_refused(line: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(ConvertAttnError, match=sentence):
        [*read_pairs(tmp_path / "p.jsonl")]
    (tmp_path / "p.txt").write_text("a\n")
    with pytest.raises(UsageError, match=r"has no rows: give a \.jsonl or .parquet file"):
        read_pairs(tmp_path / "p.txt")


# --- what counts


def test_windows_of_pairs_are_filled_up_and_trimmed() -> None:
    windows = paired([([5, 6, 7], [1, 8]), ([9], [1, 2, 3, 4])], (4, 6))
    source, target = both_sides(windows)
    assert source.tolist() == [[5, 6, 7, NOTHING], [9, NOTHING, NOTHING, NOTHING]]
    assert target[0].tolist() == [1, 8, *[NOTHING] * 4]
    assert asked(target).sum(1).tolist() == [1, 3]
    assert [side.shape[1] for side in both_sides(trimmed(windows))] == [3, 4]


def _filled(garbage: float) -> tuple[torch.Tensor, OtherSide]:
    """Two windows of six tokens, the second shorter on both sides, with some number where nothing is."""
    torch.manual_seed(2)
    x, states = torch.randn(2, 6, D), torch.randn(2, 5, D)
    x[1, 4:], states[1, 3:] = garbage, garbage
    given, counts = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
    given[1, 3:], counts[1, 4:] = False, False
    return x, OtherSide(states, given, counts)


@pytest.mark.parametrize("across", [False, True])
def test_what_fills_up_counts_nowhere(across: bool) -> None:
    """Outputs, statistics and what is solved are those of each window alone, whatever stands where nothing is."""
    torch.manual_seed(1)
    original, converted, rule = heads(), heads(), Rule(scale=0.5, causal=not across, across=across)
    x, side = _filled(3.0)
    alone = [(x[:1], OtherSide(side.states[:1])), (x[1:, :4], OtherSide(side.states[1:, :3]))]
    together = Gathering(D, H, 6, "cpu")
    both, each = together.attend(Attention(original, x, rule, side)), []
    for number, (own, other) in enumerate(alone):
        gathering = Gathering(D, H, own.shape[1], "cpu")
        out = gathering.attend(Attention(original, own, rule, other))
        torch.testing.assert_close(both[number, : own.shape[1]], out[0])
        each.append(gathering.result())
    whole = together.result()
    assert whole.tokens == 10
    for name in ("mean", "second", "keys_mean", "keys", "attended"):
        expected = (6 * getattr(each[0], name) + 4 * getattr(each[1], name)) / 10
        torch.testing.assert_close(getattr(whole, name), expected, atol=1e-6, rtol=1e-5)

    solved = []
    for garbage in (3.0, -20.0):
        x, side = _filled(garbage)
        output = Attention(original, x, rule, side).output()
        batch = Batch(original=x, converted=x, output=output, attended=x + output, side=side)
        moment = torch.eye(D, dtype=torch.float64)
        sample = sample_original(original, [batch], rule, range(H))
        tokens = {"tokens": moment, "key_tokens": moment, "value_tokens": moment}
        solved.append(LayerRefit(weights=replace(converted), sample=sample, rule=rule, **tokens).run())
    for name in ("q", "k", "v", "o"):
        torch.testing.assert_close(getattr(solved[0], name), getattr(solved[1], name))
        assert not torch.equal(getattr(solved[0], name), getattr(converted, name))


# --- what is fitted and measured


def token_losses(model: Any, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the whole class on padded pairs: log-probabilities [N, T, V], and the labels, -100 where there is none."""
    source, target = both_sides(windows)
    labels = torch.where(target[:, 1:] >= 0, target[:, 1:], -100)
    with torch.no_grad():
        out = model(
            input_ids=readable(source),
            attention_mask=(source >= 0).long(),
            labels=labels,  # the class makes the decoder's input of them
        )
    losses = torch.nn.functional.cross_entropy(out.logits.mT, labels, reduction="sum") / (labels >= 0).sum()
    assert float(out.loss) == pytest.approx(float(losses), rel=1e-5)
    return out.logits.log_softmax(-1), labels


@every_family
def test_figures_are_those_of_the_class_on_padded_pairs(family: str, tmp_path: Path) -> None:
    """By the class's own loss on labels: its shift, its masks; streamed block by block, and fitted on the way."""
    model = with_tokenizer(family, tmp_path / "in", max_position_embeddings=512)
    text = write_pairs(tmp_path / "pairs.jsonl")
    made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", calibration=str(text), refit=False)
    found = made.made.measured
    assert isinstance(found, Measured)
    assert found.text == "pairs of pairs.jsonl that nothing was fitted on"
    assert not any("no pairs" in warning for warning in made.warnings)
    shift = shift_of(model.config, "AutoModelForSeq2SeqLM", "tiny")
    windows = calibration_windows(
        str(text),
        tmp_path / "in",
        name="tiny",
        context=made.plan.geometry.context,
        vocabulary=model.config.vocab_size,
        tokens=None,
        seed=0,
        decoder=Decoder(0, shift),
    )
    assert windows.pairs
    assert windows.held is not None
    assert made.made.tokens == windows.tokens
    (p, labels), (q, _) = (token_losses(one, windows.held) for one in (model, load(tmp_path / "out")))
    kept = labels >= 0
    for logits, perplexity in ((p, found.original), (q, found.perplexity)):
        loss = torch.nn.functional.nll_loss(logits[kept], labels[kept])
        assert perplexity.mean == pytest.approx(float(loss.exp()), rel=1e-4)
    kl = (p.exp() * (p - q)).sum(-1)[kept].mean()
    assert found.kl.mean == pytest.approx(float(kl), rel=1e-3)
    assert found.kl.error > 0


@pytest.mark.parametrize("family", TEXTUAL[:1] + TEXTUAL[-1:])
def test_equal_heads_lose_nothing_on_pairs(family: str, tmp_path: Path) -> None:
    model = with_tokenizer(family, tmp_path / "in", max_position_embeddings=512)
    for site in range(SITES):
        _equal_heads(model, 4, list(range(HEADS)), layers=[site])
    model.save_pretrained(tmp_path / "in")
    text = write_pairs(tmp_path / "pairs.jsonl")
    made = convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "out", calibration=str(text))
    assert isinstance(made.made.measured, Measured)
    assert abs(made.made.measured.kl.mean) < 1e-5


def test_pairs_bring_the_result_nearer(tmp_path: Path) -> None:
    with_tokenizer(TEXTUAL[0], tmp_path / "in", max_position_embeddings=512)
    text, lost = write_pairs(tmp_path / "pairs.jsonl", 300), []
    for name, refit in (("fit", False), ("refit", True)):
        made = convert(tmp_path / "in", to="mqa", output=tmp_path / name, calibration=str(text), refit=refit)
        assert isinstance(made.made.measured, Measured)
        lost.append(made.made.measured.kl.mean)
    assert lost[1] < lost[0]


def test_long_sides_are_cut(tmp_path: Path) -> None:
    """To what the model reads, before the special tokens."""
    with_tokenizer(TEXTUAL[0], tmp_path / "in")
    (tmp_path / "p.jsonl").write_text(json.dumps({"source": "x = 1\n" * 90, "target": "y = 2\n" * 90}) + "\n")
    found = calibration_windows(
        str(tmp_path / "p.jsonl"),
        tmp_path / "in",
        name="tiny",
        context=64,
        vocabulary=config_of(tmp_path / "in")["vocab_size"],
        tokens=None,
        seed=0,
        decoder=Decoder(0, lambda target: 0),
    )
    assert [side.shape[1] for side in both_sides(found.fit)] == [64, 64]


def test_a_model_without_an_encoder_refuses_pairs(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=config_of(SAMPLES / "gpt2")["vocab_size"])
    model.save_pretrained(tmp_path / "in")
    AutoTokenizer.from_pretrained(SAMPLES / "gpt2").save_pretrained(tmp_path / "in")
    text = write_pairs(tmp_path / "p.jsonl", 9)
    with pytest.raises(ConvertAttnError, match="has no field 'text', only 'source', 'target'"):
        convert(tmp_path / "in", to="mqa", output=tmp_path / "out", calibration=str(text))


# --- eval


@pytest.fixture(scope="module")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tiny encoder-decoder with a tokenizer, a conversion of it, and pairs."""
    place = tmp_path_factory.mktemp("pairs")
    with_tokenizer("t5", place / "in")
    convert(place / "in", to="gqa", groups=2, output=place / "out", calibration=None, measure=False)
    return place / "in", place / "out", write_pairs(place / "pairs.jsonl", 24)


def test_eval_on_pairs(conversion: tuple[Path, Path, Path], tmp_path: Path, command: Command) -> None:
    original, converted, text = conversion
    fast = ("--contexts", "8", "--repeats", "2", "--device", "cpu", "--output", tmp_path / "eval")
    shown = command("eval", original, converted, "--text", text, *fast)
    assert shown.code == 0, shown.err
    document = json_of(tmp_path / "eval" / "eval.json")
    (model,) = document["models"]
    windows = make_pairs(
        AutoTokenizer.from_pretrained(original), str(text), 512, 65536, Decoder(0, lambda target: 0)
    ).windows
    assert (document["text"]["windows"], document["text"]["pairs"]) == (24, True)
    (p, labels), (q, _) = (token_losses(load(folder), windows) for folder in (original, converted))
    kept, found = labels >= 0, model["quality"]
    assert found["tokens"] == int(kept.sum())
    for logits, name in ((p, "original_loss"), (q, "loss")):
        assert found[name]["mean"] == pytest.approx(float(torch.nn.functional.nll_loss(logits[kept], labels[kept])))
    assert found["kl"]["mean"] == pytest.approx(float((p.exp() * (p - q)).sum(-1)[kept].mean()), rel=1e-4)
    assert found["kl"]["error"] > 0
    assert found["clustered_by"] == "document"
    # two blocks, keys and values of 2 of 8 heads of 8 numbers of 4 bytes, for the target's tokens and the source's
    assert model["cache"] == {
        "source_bytes_per_token": 2 * 2 * 2 * 8 * 4,
        "bytes_per_token": 2 * 2 * 2 * 2 * 8 * 4,
        "predicted_bytes_per_token": 2 * 2 * 2 * 2 * 8 * 4,
    }
    assert document["original"]["cache"]["bytes_per_token"] == 4 * model["cache"]["bytes_per_token"]
    (row,) = model["speed"]["rows"]
    assert row["decode"]["converted"]["median_ms"] > 0
    assert row["decode_attention"]["converted"]["median_ms"] < row["decode"]["converted"]["median_ms"]
    assert model["probe"] is None
    assert "one of the source, together" in (tmp_path / "eval" / "eval.html").read_text()


def test_eval_without_pairs_halves_the_text_and_says_so(conversion: tuple[Path, Path, Path]) -> None:
    original, _, _ = conversion
    found = evaluate(original, original, max_tokens=256, speed=False, device="cpu", window=64)
    assert any(note.startswith("The text has no pairs") for note in found.notes)
    assert found.document["models"][0]["quality"]["kl"]["mean"] == 0


def test_what_eval_has_not_for_them_is_refused(conversion: tuple[Path, Path, Path], tmp_path: Path) -> None:
    original, converted, _ = conversion
    with pytest.raises(UsageError, match=r"--tasks is for language models: '.*in' is an encoder-decoder"):
        evaluate(original, converted, tasks=["convert_attn_next_line"], device="cpu")
    tiny_model("bart").model.save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match="BartModel, which writes no text"):
        evaluate(tmp_path / "base", tmp_path / "base", device="cpu")
