"""Quality figures against independent computations, and what a comparison of a model with itself must give."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert_attn import ConvertAttnError
from convert_attn.convert.samples import sample_path
from convert_attn.eval.measures.losses import compare_on_text, position_edges, probe, probe_distances, sequences
from convert_attn.eval.measures.passages import Passages, bundled_documents, documents_of, make_passages
from convert_attn.eval.measures.quality import FIGURES, Tally, measure, ratio, token_figures


def _ignore(done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def sample() -> tuple[Any, Any]:
    folder = sample_path("llama")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _random_passages(windows: int = 6, length: int = 48, documents: int = 3) -> Passages:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 97, (windows, length), generator=generator)
    owner = torch.arange(windows * length).reshape(windows, length) * documents // (windows * length)
    return Passages(tokens, owner, 2.5)


def _noisy(model: Any, scale: float) -> Any:
    """The model with noise on its weights."""
    other = tiny_model(model.config.model_type)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += scale * torch.randn_like(parameter)
    return other


def test_perplexity_is_what_transformers_own_loss_gives(sample: tuple[Any, Any]) -> None:
    model, tokenizer = sample
    passages = make_passages(tokenizer, documents_of(None), 128, 128 * 20)
    found = compare_on_text(model, model, passages, _ignore)

    ids = [id_ for text in bundled_documents() for id_ in tokenizer(text)["input_ids"]]
    losses = []
    for begin in range(0, 20 * 128, 128):
        window = torch.tensor([ids[begin : begin + 128]])
        with torch.no_grad():
            losses.append(model(window, labels=window).loss.item())
    expected = math.exp(sum(losses) / len(losses))

    assert found["perplexity"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert measure(model, passages.windows).perplexity == pytest.approx(expected, rel=1e-4)
    assert found["tokens"] == 20 * 127


def test_bits_per_byte_counts_the_bytes_of_the_text(sample: tuple[Any, Any]) -> None:
    model, tokenizer = sample
    text = bundled_documents()[0]
    ids = tokenizer(text)["input_ids"]
    passages = make_passages(tokenizer, [text], 128, 10**9)
    found = compare_on_text(model, model, passages, _ignore)
    assert passages.bytes_per_token == len(text.encode()) / len(ids)
    bits = found["loss"]["mean"] / math.log(2)
    assert found["bits_per_byte"]["mean"] == pytest.approx(bits / passages.bytes_per_token)


def test_a_model_compared_with_itself_loses_nothing(model_type: str) -> None:
    model = tiny_model(model_type)
    found = compare_on_text(model, model, _random_passages(), _ignore)
    for figure in ("kl", "loss_difference", "bits_per_byte_difference"):
        assert found[figure] == {"mean": 0.0, "error": 0.0}
    for figure in ("top1", "top5", "perplexity_ratio"):
        assert found[figure] == {"mean": 1.0, "error": 0.0}
    assert found["perplexity"] == found["original_perplexity"]
    assert all(row["kl"]["mean"] == 0 for row in found["positions"])


def test_figures_are_those_of_the_textbook() -> None:
    model = tiny_model("llama")
    other, batch = _noisy(model, 0.05), _random_passages().windows
    figures = token_figures(other, batch, model)
    with torch.no_grad():
        p = model(batch).logits[:, :-1].double().log_softmax(-1)
        q = other(batch).logits[:, :-1].double().log_softmax(-1)
    target = batch[:, 1:, None]
    likely, ours = (x.topk(5).indices.flatten(0, 1).tolist() for x in (p, q))
    five = [set(row) & set(like) for row, like in zip(likely, ours, strict=True)]
    expected = {
        "loss": -q.gather(-1, target)[..., 0],
        "reference_loss": -p.gather(-1, target)[..., 0],
        "kl": torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1),
        "top1": (p.argmax(-1) == q.argmax(-1)).double(),
        "top5": torch.tensor([len(common) / 5 for common in five], dtype=torch.float64).reshape(target.shape[:2]),
        "correct": (q.argmax(-1) == target[..., 0]).double(),
        "reference_correct": (p.argmax(-1) == target[..., 0]).double(),
    }
    assert set(expected) == set(FIGURES)
    for index, name in enumerate(FIGURES):
        torch.testing.assert_close(figures[index], expected[name], atol=1e-5, rtol=1e-4)
    assert figures[FIGURES.index("kl")].mean() > 0.01  # the models do differ


def test_slices_and_batches_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    other, passages = _noisy(model, 0.05), _random_passages()
    whole = compare_on_text(model, other, passages, _ignore)
    monkeypatch.setattr("convert_attn.eval.measures.quality._SLICE_NUMBERS", 500)
    monkeypatch.setattr("convert_attn.eval.measures.quality._BATCH_BYTES", {"cpu": 1})
    parts = compare_on_text(model, other, passages, _ignore)
    assert parts["kl"]["mean"] == pytest.approx(whole["kl"]["mean"], rel=1e-5)
    assert parts["kl"]["error"] == pytest.approx(whole["kl"]["error"], rel=1e-4)


def test_positions_and_clusters_add_up_to_the_whole() -> None:
    model = tiny_model("llama")
    found = compare_on_text(model, _noisy(model, 0.05), _random_passages(), _ignore)
    rows, windows = found["positions"], 6
    assert [row["from"] for row in rows[1:]] == [row["to"] + 1 for row in rows[:-1]]
    assert (rows[0]["from"], rows[-1]["to"]) == (1, 47)
    total = sum(row["kl"]["mean"] * (row["to"] - row["from"] + 1) * windows for row in rows)
    assert total == pytest.approx(found["kl"]["mean"] * found["tokens"])
    assert sum(found["per_cluster"]["kl"]) == pytest.approx(total)
    assert sum(found["per_cluster"]["tokens"]) == found["tokens"]
    assert (found["clusters"], found["clustered_by"]) == (3, "document")


@pytest.mark.parametrize("length", [2, 3, 8, 48, 64, 512, 1024, 2048])
def test_every_position_is_in_one_range(length: int) -> None:
    edges = position_edges(length)
    assert (edges[0], edges[-1]) == (1, length)
    assert edges == sorted(set(edges))


def test_the_standard_error_is_that_of_drawing_other_documents() -> None:
    """Documents of equal length: the textbook's standard error of a mean of document means."""
    means = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ratio(means * 7, torch.full_like(means, 7))
    assert found.mean == pytest.approx(means.mean().item())
    assert found.error == pytest.approx((means.std() / 40**0.5).item())
    assert ratio(means[:1], torch.ones(1)).error is None


def test_tally_keeps_tokens_apart() -> None:
    tally = Tally(2, 2)
    figures = torch.arange(len(FIGURES) * 4, dtype=torch.float64).reshape(len(FIGURES), 2, 2)
    tally.add(figures, torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [0, 1]]))
    tally.add(figures, torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [0, 1]]))
    assert torch.equal(tally.sums, 2 * figures)
    assert torch.equal(tally.counts, torch.full((2, 2), 2.0, dtype=torch.float64))


def test_one_document_is_clustered_by_window(sample: tuple[Any, Any]) -> None:
    passages = make_passages(sample[1], bundled_documents()[:1], 64, 640)
    clusters, kind = passages.clusters()
    assert (kind, int(clusters.max()) + 1) == ("window", 10)


class _WithBos:
    """A tokenizer that begins every text with token 1."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


def test_windows_begin_as_the_tokenizer_begins_a_text() -> None:
    passages = make_passages(_WithBos(), ["abcdef", "ghijkl"], 4, 10**6)
    assert passages.windows.tolist() == [[1, *map(ord, part)] for part in ("abc", "def", "ghi", "jkl")]
    assert passages.documents[:, 1].tolist() == [0, 0, 1, 1]
    assert passages.tokens == 12


def test_a_text_shorter_than_a_window_says_so(sample: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("import os\n")
    with pytest.raises(ConvertAttnError, match=r"the text has \d tokens, fewer than one window of 512: give a longer"):
        make_passages(sample[1], documents_of(str(tmp_path / "short.txt")), 512, 65536)


# --- the copy probe


def test_a_passage_comes_back_at_its_distance() -> None:
    pool = torch.arange(1000)
    for distance in probe_distances(256, 32):
        found = sequences(pool, distance, 32, 5)
        assert found.shape == (5, distance + 32)
        assert torch.equal(found[:, :32], found[:, distance:])
    assert probe_distances(256, 32) == [64, 128, 224]


class _Copier:
    """A model that predicts what came `distance` tokens before, if it can look back as far as `reach`."""

    def __init__(self, distance: int, reach: int) -> None:
        self._distance, self._reach = distance, reach
        self.device, self.config = torch.device("cpu"), SimpleNamespace(vocab_size=97)

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        logits = torch.zeros(*input_ids.shape, 97)
        back = self._distance - 1
        if self._distance <= self._reach:
            logits[:, back:].scatter_(2, input_ids[:, : input_ids.shape[1] - back, None], 20.0)
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("reach", [10, 1000])
def test_the_probe_sees_whether_far_tokens_are_reached(reach: int) -> None:
    passages = _random_passages(20, 128)
    (row,) = [
        row
        for row in probe(_Copier(96, 1000), _Copier(96, reach), passages=passages, advance=_ignore)
        if row["distance"] == 96
    ]
    assert row["original_accuracy"]["mean"] == 1
    assert row["original_gain"]["mean"] == pytest.approx(math.log(97), rel=1e-3)
    if reach > 96:
        assert row["accuracy"]["mean"] == 1
        assert row["loss_difference"]["mean"] == 0
    else:
        assert row["accuracy"]["mean"] < 0.1
        assert row["gain"]["mean"] == pytest.approx(0, abs=1e-6)
        assert row["loss_difference"]["mean"] == pytest.approx(math.log(97), rel=1e-3)


def test_windows_too_short_for_the_probe_have_none() -> None:
    model = tiny_model("gpt2")
    assert probe(model, model, passages=_random_passages(length=48), advance=_ignore) == []
