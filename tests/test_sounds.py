"""Encoder-decoders that read sounds, by discovery: pairs of a WAV file and a text, read, fitted on and healed on."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import config_of
from test_identities import _equal_heads
from test_seq2seq import SAMPLES, SITES, STOCK, TEXTUAL
from tiny import HEADS, load, tiny_model
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperFeatureExtractor

from convert_attn import ConvertAttnError, UsageError, convert, evaluate, heal, verify
from convert_attn.convert.fitting.measure import Measured
from convert_attn.convert.heal.loss.halves import Halves
from convert_attn.convert.samples import calibration_text
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.pair_windows import both_sides, tokenised
from convert_attn.convert.text.sounds import SILENCE, sounds_of
from convert_attn.convert.text.windows import calibration_windows
from convert_attn.eval.measures.passages import make_pairs
from convert_attn.eval.measures.speed import compare_speed

every_family = pytest.mark.parametrize("family", sorted({*STOCK} - {*TEXTUAL}))
RATE, SECONDS, BINS, STATES = 16000, 4, 8, 200


def hearing(family: str, folder: Path, equal: int | None = None) -> Any:
    """A tiny model that hears four seconds, and writes with the tokenizer of a bundled sample.

    Args:
        equal: how many groups its heads are equal in.
    """
    vocabulary = config_of(SAMPLES / "gpt2")["vocab_size"]
    sizes = {"num_mel_bins": BINS, "max_source_positions": STATES, "max_target_positions": STATES}
    model = tiny_model(family, vocab_size=vocabulary, **sizes)
    for site in range(SITES if equal else 0):
        _equal_heads(model, equal, list(range(HEADS)), layers=[site])
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=BINS, chunk_length=SECONDS).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SAMPLES / "gpt2" / name, folder / name)
    return model


def write_wave(path: Path, seconds: float = 1.0, *, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    """A few tones whose heights depend on the file's name."""
    times = np.arange(int(seconds * rate)) / rate
    heights = 200 + 3000 * np.random.default_rng(sum(path.name.encode())).random(4)
    tones = 6000 * np.sin(2 * np.pi * times[:, None] * heights).mean(1) * (1 + np.sin(7 * times))
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.repeat(tones.astype("<i2"), channels).tobytes()[: len(times) * channels * width])
    return path


def write_sounds(folder: Path, count: int = 40) -> Path:
    """Pairs of sounds and lines of code, of all lengths."""
    lines = [line.strip() for line in calibration_text().splitlines() if len(line) > 20]
    rows = []
    for number in range(count):
        write_wave(folder / "wav" / f"{number}.wav", 0.5 + number % 7 / 2)
        rows.append({"source": f"wav/{number}.wav", "target": lines[number][: 5 + 7 * number % 60]})
    text = folder / "pairs.jsonl"
    text.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return text


def log_probabilities(model: Any, folder: Path, text: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the whole class, with labels, on features that its extractor makes here: [N, T, V], and the labels [N, T]."""
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in text.read_text().splitlines()]
    heard = []
    for row in rows:
        with wave.open(str(text.parent / row["source"])) as file:
            heard.append(np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768)
    targets = [tokenizer(row["target"])["input_ids"] for row in rows]
    labels = torch.full((len(rows), max(map(len, targets))), -100)
    for number, target in enumerate(targets):
        labels[number, : len(target)] = torch.tensor(target)
    features = extractor(heard, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        return model(input_features=features, labels=labels).logits.log_softmax(-1), labels


@every_family
def test_figures_are_those_of_the_class_on_what_it_hears(family: str, tmp_path: Path) -> None:
    """By the whole class, on features made without us: what is streamed for calibration, and what eval measures."""
    model = hearing(family, tmp_path / "in")
    text = write_sounds(tmp_path / "sounds")
    made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", calibration=str(text), refit=False)
    found = made.made.measured
    assert isinstance(found, Measured)
    assert found.text == "pairs of pairs.jsonl that nothing was fitted on"
    decoder = Decoder.of(model.config, "AutoModelForSpeechSeq2Seq", tmp_path / "in", "tiny")
    windows = calibration_windows(
        str(text),
        tmp_path / "in",
        name="tiny",
        context=STATES,
        vocabulary=model.config.vocab_size,
        tokens=None,
        seed=0,
        decoder=decoder,
    )
    assert windows.held is not None
    assert made.made.tokens == windows.tokens >= 10 * STATES
    converted, (p, labels) = load(tmp_path / "out"), log_probabilities(model, tmp_path / "in", text)
    q, _ = log_probabilities(converted, tmp_path / "in", text)
    kept = labels >= 0
    held = {tuple(row[row >= 0].tolist()) for row in both_sides(windows.held)[1]}
    rows = [n for n, (row, of) in enumerate(zip(labels, kept, strict=True)) if (2, *row[of].tolist()) in held]
    assert len(rows) == len(windows.held)
    loss = torch.nn.functional.nll_loss(p[rows][kept[rows]], labels[rows][kept[rows]])
    assert found.original.mean == pytest.approx(float(loss.exp()), rel=1e-4)
    kl = (p.exp() * (p - q)).sum(-1)
    assert found.kl.mean == pytest.approx(float(kl[rows][kept[rows]].mean()), rel=1e-3)

    measured = evaluate(tmp_path / "in", tmp_path / "out", text=text, speed=False, device="cpu").document["models"][0]
    assert measured["quality"]["kl"]["mean"] == pytest.approx(float(kl[kept].mean()), rel=1e-4)
    assert measured["cache"]["source_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert measured["cache"]["bytes_per_token"] == measured["cache"]["predicted_bytes_per_token"]


@every_family
def test_heads_that_are_equal_lose_nothing_on_sounds(family: str, tmp_path: Path) -> None:
    hearing(family, tmp_path / "in", equal=4)
    text = write_sounds(tmp_path / "sounds")
    made = convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "out", calibration=str(text))
    assert isinstance(made.made.measured, Measured)
    assert abs(made.made.measured.kl.mean) < 1e-5


@every_family
def test_sounds_bring_it_nearer_to_its_original(family: str, tmp_path: Path) -> None:
    """Fitted on them, or healed on them where it was not; and decoding is timed."""
    hearing(family, tmp_path / "in")
    text = write_sounds(tmp_path / "sounds", 20)
    for name, calibration in (("weights", None), ("out", str(text))):
        convert(tmp_path / "in", to="mqa", output=tmp_path / name, calibration=calibration, measure=False)
    found = evaluate(tmp_path / "in", [tmp_path / "weights", tmp_path / "out"], text=text, speed=False, device="cpu")
    alone, fitted = (model["quality"]["kl"]["mean"] for model in found.document["models"])
    assert fitted < alone
    fast: dict[str, Any] = {"tokens": 9000, "batch_size": 4, "selection_tokens": 1000, "cpu": True, "lr": 3e-3}
    healed = heal(tmp_path / "weights", teacher=tmp_path / "in", data=text, output=tmp_path / "healed", **fast)
    assert healed.start is not None
    assert healed.best is not None
    assert healed.best < healed.start
    assert verify(healed.output).figures["decodes"] < 1e-2
    models = load(tmp_path / "in"), load(tmp_path / "out")
    (row,) = compare_speed(*models, contexts=[8], batch_sizes=[2], repeats=1, advance=lambda done, of: None)
    assert row["decode"]["converted"]["median_ms"] > 0


@every_family
def test_halves_are_the_whole_class_on_sounds(family: str, tmp_path: Path) -> None:
    hearing(family, tmp_path / "in")
    text = write_sounds(tmp_path / "sounds", 3)
    model = load(tmp_path / "in")
    decoder = Decoder.of(model.config, "AutoModelForSpeechSeq2Seq", tmp_path / "in", "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "in")
    windows = make_pairs(tokenizer, str(text), STATES, 10**6, decoder).windows
    halves = Halves(model)
    halves.try_out(windows)
    assert not halves.together
    p, labels = log_probabilities(model, tmp_path / "in", text)
    made = halves.states(windows).last
    for row, states, of in zip(p, made, labels >= 0, strict=True):
        ours = halves.logits(states[: int(of.sum())]).log_softmax(-1)
        torch.testing.assert_close(ours, row[of], atol=1e-4, rtol=1e-4)


# --- what is read


def _sides(folder: Path, target: str = "x = 1") -> tuple[list[int], ...]:
    """What the first of these pairs becomes."""
    model = folder / "in"
    if not model.exists():
        hearing("whisper", model)
    config = load(model).config
    decoder = Decoder.of(config, "AutoModelForSpeechSeq2Seq", model, "tiny")
    tokenizer = AutoTokenizer.from_pretrained(model)
    return next(tokenised([("a.wav", target)], tokenizer, 100, decoder, str(folder / "p.jsonl")))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "p.jsonl").write_text('{"source": "a.wav", "target": "x = 1"}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rate": 8000}, "has 1 channel of 16 bits at 8,000 Hz, expected one channel of 16 bits at 16,000 Hz: convert"),
        ({"channels": 2}, "has 2 channels of 16 bits at 16,000 Hz"),
        ({"width": 1}, "has 1 channel of 8 bits"),
        ({"seconds": 4.5}, "has 4.5 seconds and 'tiny' hears at most 4: cut it"),
        ({"seconds": 0}, "is empty: leave it out"),
    ],
)
def test_sounds_of_another_kind_are_refused(options: dict[str, Any], sentence: str, place: Path) -> None:
    write_wave(place / "a.wav", **options)
    with pytest.raises(ConvertAttnError, match=sentence):
        _sides(place)


def test_what_is_no_sound_of_that_folder_is_refused(place: Path) -> None:
    with pytest.raises(ConvertAttnError, match=r"source 'a.wav' is no file in '.*': the model reads sounds"):
        _sides(place)
    (place / "a.wav").write_bytes(b"ID3 not a WAV file at all")
    with pytest.raises(ConvertAttnError, match="cannot be read as WAV with PCM samples"):
        _sides(place)
    (place / "a.wav").unlink()
    outside = write_wave(place.parent / f"{place.name}-outside.wav")
    sounds = sounds_of(load(place / "in"))
    assert sounds is not None
    (place / "link.wav").symlink_to(outside)
    for name in (str(outside), f"../{outside.name}", "link.wav", "a\0b", ""):
        with pytest.raises(ConvertAttnError, match="is no file in"):
            sounds.numbers(Path(name), place)


def test_a_sound_is_known_by_its_file(place: Path) -> None:
    write_wave(place / "a.wav")
    source, target = _sides(place)
    assert (len(source), source[-1]) == (STATES, SILENCE)
    assert target[0] == 2
    sounds = sounds_of(load(place / "in"))
    assert sounds is not None
    features = sounds.features(torch.tensor([source, source]))
    assert features.shape == (2, BINS, 2 * STATES)
    write_wave(place / "a.wav", 2.0)
    with pytest.raises(ConvertAttnError, match="was changed or taken away since the text was read"):
        sounds.features(torch.tensor([source]))
    assert _sides(place)[0] != source


def test_a_target_may_bring_special_tokens_of_its_own(place: Path) -> None:
    """As Whisper's do, that name a language: in place of what the tokenizer puts in front, the end as ever."""
    write_wave(place / "a.wav")
    hearing("whisper", place / "in")
    path = place / "in" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    start, end = (token["id"] for token in tokenizer["added_tokens"][:1] * 2)
    first = tokenizer["added_tokens"][0]["content"]
    made = AutoTokenizer.from_pretrained(place / "in")
    made.add_special_tokens({"additional_special_tokens": ["<|en|>"]} | {"eos_token": first})
    special = {"id": first, "ids": [start], "tokens": [first]}
    pieces = [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    made.save_pretrained(place / "in")
    tokenizer = json.loads(path.read_text())
    single = [*pieces, pieces[0]]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {first: special}}
    path.write_text(json.dumps(tokenizer | {"post_processor": template}))
    language = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|en|>")
    plain, named = (_sides(place, target)[1] for target in ("x = 1", "<|en|>x = 1"))
    assert plain[:2] == [2, start]
    assert named == [2, language, *plain[2:]]
    assert named[-1] == end


def test_texts_without_sounds_are_refused(place: Path) -> None:
    hearing("whisper", place / "in")
    convert(place / "in", to="mqa", output=place / "out", calibration=None, measure=False)
    (place / "plain.txt").write_text("a = 1\n" * 99)
    with pytest.raises(UsageError, match=r"'.*in' reads sounds and calibration text '.*plain.txt' has none"):
        convert(place / "in", to="mqa", output=place / "other", calibration=str(place / "plain.txt"))
    for given in (None, place / "plain.txt"):
        with pytest.raises(UsageError, match=r"reads sounds: give --text a .jsonl file of pairs"):
            evaluate(place / "in", place / "out", text=given, device="cpu")
    with pytest.raises(UsageError, match=r"--data .*plain.txt: '.*out' reads sounds; give a .jsonl file of pairs"):
        heal(place / "out", teacher=place / "in", data=place / "plain.txt", tokens=4000, cpu=True)
    (place / "in" / "preprocessor_config.json").unlink()
    write_wave(place / "a.wav")
    with pytest.raises(ConvertAttnError, match="has no feature extractor that can be loaded"):
        convert(place / "in", to="mqa", output=place / "other", calibration=str(place / "p.jsonl"))
