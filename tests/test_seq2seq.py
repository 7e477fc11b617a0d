"""Encoder-decoders, found by discovery: what must hold exactly when the heads of their decoders are shared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, tensors_of
from test_identities import _equal_heads
from tiny import (
    HEADS,
    SEQ2SEQ,
    SIZES,
    assert_same_logits,
    auto_class,
    get_attention,
    load,
    logits_of,
    set_attention,
    source_of,
    tiny_geometry,
    tiny_model,
)
from transformers.models.t5.modeling_t5 import T5Attention

from convert_attn import UsageError, convert, modeling
from convert_attn.convert import samples
from convert_attn.convert.archs import architectures
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.fitting.measure import Measured
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.pair_windows import both_sides
from convert_attn.convert.text.windows import shipped_windows
from convert_attn.convert.weights.attention import replicate_kv_heads
from convert_attn.convert.weights.functional import buckets

STOCK = [name for name in SEQ2SEQ if not architectures()[name].config_kv_heads]
every_family = pytest.mark.parametrize("family", STOCK)
FROM_WEIGHTS: dict[str, Any] = {"calibration": None, "measure": False}
SAMPLES = Path(samples.__file__).parent
SITES = 4  # two blocks of the decoder, two attentions each


def test_the_families_that_were_promised_are_here() -> None:
    assert set(STOCK) >= {"t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "whisper"}
    ours = {name for name, family in modeling.FAMILIES.items() if family.two_stacks}
    assert ours == {f"{name}_gqa" for name in STOCK} == set(SEQ2SEQ) - set(STOCK)


def saved(family: str, folder: Path, **options: Any) -> Any:
    model = tiny_model(family, **options)
    model.save_pretrained(folder)
    return model


@every_family
@pytest.mark.parametrize("groups", [1, 4])
def test_heads_that_are_equal_already_convert_without_loss(family: str, groups: int, tmp_path: Path) -> None:
    """And all that is not attention of the decoder keeps its bytes, the whole encoder included."""
    model = tiny_model(family)
    _, sizes = tiny_geometry(model)
    assert sizes.num_layers == SITES
    for site in range(SITES):
        # a head whose scores gain something by its number cannot move
        order = list(range(HEADS)) if sizes.block(site).fixed_order else [5, 0, 3, 6, 1, 7, 2, 4]
        _equal_heads(model, groups, order, layers=[site])
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=groups, output=tmp_path / "out", **FROM_WEIGHTS)
    assert_same_logits(logits_of(load(tmp_path / "out")), logits_of(model))
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    changed = {
        name for name in before if before[name].shape != after[name].shape or (before[name] != after[name]).any()
    }
    assert before.keys() == after.keys()
    assert changed
    attentions = ("self_attn.", "encoder_attn.", "SelfAttention.", "EncDecAttention.")
    assert all("decoder." in name and any(part in name for part in attentions) for name in changed)
    assert not any("relative_attention_bias" in name for name in changed)


@every_family
def test_loaded_class_equals_the_original_class_with_shared_heads_replicated(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "in")
    made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", **FROM_WEIGHTS)
    assert made.verified is not None
    figures = made.verified.figures
    assert max(figures["block_errors"].values()) < 1e-5
    assert len(figures["block_errors"]) == SITES
    assert figures["cached_numbers"] == [2 * 2 * 8] * SITES
    assert sum(figures["cached_numbers"]) * 4 == made.plan.cache_bytes[1] == made.plan.cache_bytes[0] // 4
    converted = load(tmp_path / "out")
    for site in range(SITES):
        set_attention(model, site, replicate_kv_heads(get_attention(converted, site), HEADS))
    assert_same_logits(logits_of(converted), logits_of(model))


def written(model: Any, source: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(**source, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)
    return found


@every_family
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_is_written_by_class_of_ours(family: str, attention: str, tmp_path: Path) -> None:
    """A padded batch is each alone; with a cache as without; by beams too; saved and loaded again."""
    saved(family, tmp_path / "in")
    convert(tmp_path / "in", to="mqa", output=tmp_path / "out", **FROM_WEIGHTS)
    model = load(tmp_path / "out", attn_implementation=attention)
    tokens = torch.randint(3, SIZES["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(1))
    source = source_of(model, tokens)
    if "input_ids" in source:
        source["attention_mask"] = torch.ones_like(tokens)
        source["attention_mask"][1, 6:] = 0
    for beams in (1, 3):
        both = written(model, source, num_beams=beams)
        assert torch.equal(written(model, source, num_beams=beams, use_cache=False), both)
        for row in range(2):
            alone = {name: value[row : row + 1] for name, value in source.items()}
            if row and "attention_mask" in source:
                alone = {name: value[:, :6] for name, value in alone.items()}
            assert torch.equal(written(model, alone, num_beams=beams)[0], both[row])
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(load(tmp_path / "again")), logits_of(load(tmp_path / "out")))


@every_family
def test_the_cache_holds_what_the_plan_says(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path / "in")
    made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", **FROM_WEIGHTS)
    model = load(tmp_path / "out")
    tokens = torch.ones(1, 7, dtype=torch.long)
    with torch.no_grad():
        out = model(**source_of(model, tokens), decoder_input_ids=tokens[:, :5], use_cache=True)
    cache, length = out.past_key_values, out.encoder_last_hidden_state.shape[1]
    held = {
        5: [part for layer in cache.self_attention_cache.layers for part in (layer.keys, layer.values)],
        length: [part for layer in cache.cross_attention_cache.layers for part in (layer.keys, layer.values)],
    }
    per_token = [sum(t.nbytes for t in parts if t is not None) / tokens for tokens, parts in held.items()]
    assert sum(per_token) == made.plan.cache_bytes[1]


@every_family
def test_a_result_converts_further_and_half_precision_is_kept(family: str, tmp_path: Path) -> None:
    tiny_model(family).to(torch.bfloat16).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "four", **FROM_WEIGHTS)
    made = convert(tmp_path / "four", to="mqa", output=tmp_path / "one", trust_remote_code=True, **FROM_WEIGHTS)
    assert made.verified is not None
    assert made.verified.figures["dtype"] == "bfloat16"
    assert config_of(tmp_path / "one")["num_key_value_heads"] == 1


@every_family
def test_what_is_refused_is_said_in_one_true_sentence(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    with pytest.raises(UsageError, match=f"{family} is an encoder-decoder, and no class with a latent"):
        plan(tmp_path, to="mla", rank=16)
    with pytest.raises(UsageError, match="differs by layer"):
        plan(tmp_path, to="gqa", groups=[4, 2, 4, 2])
    with pytest.raises(ValueError, match="must divide the decoder's 8 query heads"):
        tiny_model(f"{family}_gqa", kv_heads=3)


def test_a_class_for_another_task_is_refused(tmp_path: Path) -> None:
    saved("bart", tmp_path)
    config = config_of(tmp_path) | {"architectures": ["BartForSequenceClassification"]}
    model = auto_class(architectures()["bart"])._model_mapping  # the stock class for it exists
    assert model
    from transformers import BartConfig, BartForSequenceClassification

    BartForSequenceClassification(BartConfig.from_dict(config)).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="BartForSequenceClassification has no counterpart"):
        plan(tmp_path / "other", to="mqa")


@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (8, 20)])
def test_buckets_of_distances_are_those_of_the_class(count: int, farthest: int) -> None:
    back = torch.arange(-3, 400)
    expected = T5Attention._relative_position_bucket(
        -back, bidirectional=False, num_buckets=count, max_distance=farthest
    )
    assert torch.equal(buckets(back, count, farthest), expected)


# --- on text

TEXTUAL = [name for name in STOCK if (cross := architectures()[name].cross) and cross.reads == "text"]


def with_tokenizer(family: str, folder: Path, **options: Any) -> Any:
    """A tiny model that reads with the tokenizer of a bundled sample."""
    vocabulary = config_of(SAMPLES / "gpt2")["vocab_size"]
    extra = {"decoder_vocab_size": vocabulary} if hasattr(tiny_model(family).config, "decoder_vocab_size") else {}
    model = tiny_model(family, vocab_size=vocabulary, **extra, **options)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SAMPLES / "gpt2" / name, folder / name)
    return model


def perplexity(model: Any, windows: torch.Tensor) -> float:
    """Of targets given sources, by the whole class at once."""
    source, target = both_sides(windows)
    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=target).logits[:, :-1].log_softmax(-1)
    losses = -logits.gather(-1, target[:, 1:, None]).mean((1, 2)).double()
    return float(losses.mean().exp())


@pytest.mark.parametrize("family", TEXTUAL)
def test_what_is_streamed_is_what_the_class_computes(family: str, tmp_path: Path) -> None:
    """Encoder, both attentions and head, block by block: figures of original and result are those of whole models."""
    model = with_tokenizer(family, tmp_path / "in")
    made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", calibration="auto")
    assert isinstance(made.made.measured, Measured)
    start = next(t for t in (model.config.decoder_start_token_id, model.config.bos_token_id) if t is not None)
    begun = Decoder(start, lambda target: start)
    windows, _ = shipped_windows(
        "auto", tmp_path / "in", "tiny", made.plan.geometry.context, model.config.vocab_size, decoder=begun
    )
    found = made.made.measured
    assert found.original.mean == pytest.approx(perplexity(model, windows), rel=1e-4)
    assert found.perplexity.mean == pytest.approx(perplexity(load(tmp_path / "out"), windows), rel=1e-4)
    assert made.made.tokens > 0
    assert any("plain text has no pairs" in warning for warning in made.warnings)
    assert "as source and target" in found.text


@pytest.mark.parametrize("family", sorted({"bart", "t5"} & {*TEXTUAL}))
def test_text_and_its_refit_bring_the_result_nearer(family: str, tmp_path: Path) -> None:
    with_tokenizer(family, tmp_path / "in")
    lost = {}
    for name, options in {"weights": {"calibration": None}, "fit": {"refit": False}, "refit": {}}.items():
        tokens = {} if name == "weights" else {"calibration_tokens": 8192}
        given = {"calibration": "auto"} | tokens | options
        made = convert(tmp_path / "in", to="mqa", output=tmp_path / name, **given)
        assert isinstance(made.made.measured, Measured)
        lost[name] = made.made.measured.kl.mean
    assert max(lost["fit"], lost["refit"]) < lost["weights"]


@pytest.mark.parametrize("family", TEXTUAL[:1] + TEXTUAL[-1:])
def test_equal_heads_lose_nothing_on_text_either(family: str, tmp_path: Path) -> None:
    model = with_tokenizer(family, tmp_path / "in")
    for site in range(SITES):
        _equal_heads(model, 4, list(range(HEADS)), layers=[site])
    model.save_pretrained(tmp_path / "in")
    made = convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "out", calibration="auto")
    assert isinstance(made.made.measured, Measured)
    assert abs(made.made.measured.kl.mean) < 1e-5
    assert made.made.measured.top1.mean > 0.999


def test_what_is_no_text_of_pairs_is_refused(tmp_path: Path) -> None:
    for family in STOCK:
        saved(family, tmp_path / family)
    for asked in ("self", "tokens.npy"):
        with pytest.raises(UsageError, match="encoder-decoder, whose source and target are made of text"):
            plan(tmp_path / "bart", to="mqa", calibration=asked)
    with pytest.raises(UsageError, match="bart has two"):
        plan(tmp_path / "bart", to="mqa", calibration="auto", refit="mlp")
    with pytest.raises(UsageError, match="whisper reads sounds, of which the package has none: give --cal"):
        plan(tmp_path / "whisper", to="mqa", calibration="sample")
    assert any(
        "reads sounds" in warning for warning in plan(tmp_path / "whisper", to="mqa", calibration="auto").warnings
    )


def test_it_says_what_the_cache_is_of(command: Command, tmp_path: Path) -> None:
    saved("t5", tmp_path / "in")
    done = command("convert", str(tmp_path / "in"), "--to", "mqa", "--output", str(tmp_path / "out"), "--no-measure")
    assert done.code == 0
    said = "KV cache: 2,048 -> 256 bytes per token of the target and one of the source, together (12.5%)."
    assert said in " ".join(done.out.split())
    assert "has no tokenizer" in " ".join((done.out + done.err).split())
    assert '"cache_of": "token of the target' in (tmp_path / "out/config.json").read_text()
    assert command("verify", str(tmp_path / "out"), "--against", str(tmp_path / "in")).code == 0
    assert command("inspect", str(tmp_path / "in")).code == 0
