"""Encoders, found by discovery: what must hold exactly when their heads are shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import Command, config_of
from safetensors.torch import load_file
from test_identities import FAITHFUL, LAYERS, SHARING, _equal_heads
from tiny import (
    ENCODERS,
    HEADS,
    SIZES,
    assert_same_logits,
    get_attention,
    load,
    logits_of,
    set_attention,
    tiny_geometry,
    tiny_model,
)

from convert_attn import UsageError, convert, modeling
from convert_attn.convert.archs import architectures
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.verification.folder import verify
from convert_attn.convert.weights.attention import permute_kv_heads, replicate_kv_heads
from convert_attn.convert.weights.functional import Attention

every_encoder = pytest.mark.parametrize("encoder", ENCODERS)
SOURCES = [name for name in ENCODERS if name not in modeling.FAMILIES]
every_source = pytest.mark.parametrize("encoder", SOURCES)
OF_OURS = [name for name in SOURCES if not architectures()[name].config_kv_heads]  # what becomes a class of ours
every_source_of_ours = pytest.mark.parametrize("encoder", OF_OURS)
FAMILIES = {name: family for name, family in modeling.FAMILIES.items() if family.encoder}
CLASSES = [(name, auto) for name, family in FAMILIES.items() for auto in family.auto_models]
every_class = pytest.mark.parametrize(("family", "auto"), CLASSES)


def test_the_families_that_were_promised_are_here() -> None:
    assert set(ENCODERS) >= {"bert", "roberta", "distilbert", "electra", "xlm-roberta"}
    assert FAMILIES.keys() == {*ENCODERS} - {*SOURCES}


# --- conversions


@every_encoder
@pytest.mark.parametrize("method", SHARING)
def test_as_many_groups_as_heads_returns_the_tensors_bit_for_bit(encoder: str, method: str, tmp_path: Path) -> None:
    model = tiny_model(encoder)
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=HEADS, method=method, output=tmp_path / "out")
    before, after = model.state_dict(), load(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    stored, written = load_file(tmp_path / "in/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    joined = stored.keys() - written.keys()  # which only one family has, whose own class has them apart
    assert all(torch.equal(stored[name], written[name]) for name in stored.keys() - joined)
    assert torch.equal(logits_of(load(tmp_path / "out")), logits_of(model))


@every_source
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("method", FAITHFUL)
def test_heads_that_are_equal_already_convert_without_loss(
    encoder: str, method: str, groups: int, tmp_path: Path
) -> None:
    model = tiny_model(encoder)
    order = [5, 0, 3, 6, 1, 7, 2, 4] if method == "subspace" else list(range(HEADS))
    _equal_heads(model, groups, order)
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=groups, method=method, output=tmp_path / "out")
    # all eight turned into one: their turning is rounded as well
    assert_same_logits(logits_of(load(tmp_path / "out")), logits_of(model), 5e-6 if groups > 1 else 1e-5)


@every_source
def test_loaded_class_equals_the_original_class_with_shared_heads_replicated(encoder: str, tmp_path: Path) -> None:
    model = tiny_model(encoder)
    model.save_pretrained(tmp_path / "in")
    made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out")
    assert made.verified is not None
    assert max(made.verified.figures["block_errors"].values()) < 1e-5
    assert "cached_numbers" not in made.verified.figures
    converted = load(tmp_path / "out")
    for layer in range(LAYERS):
        set_attention(model, layer, replicate_kv_heads(get_attention(converted, layer), HEADS))
    assert_same_logits(logits_of(converted), logits_of(model))


@every_source_of_ours
def test_layers_may_differ_and_a_result_converts_further(encoder: str, tmp_path: Path) -> None:
    tiny_model(encoder).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=[4, 2], output=tmp_path / "uneven")
    assert config_of(tmp_path / "uneven")["num_key_value_heads_per_layer"] == [4, 2]
    made = convert(tmp_path / "uneven", to="mqa", output=tmp_path / "out", trust_remote_code=True)
    assert "num_key_value_heads_per_layer" not in config_of(made.output)
    before, after = made.plan.parameters
    biased = get_attention(tiny_model(encoder), 0).k_bias is not None
    per_head = HEADS * (2 * SIZES["hidden_size"] + 2 * biased)
    assert before - after == per_head * (3 + 1)


@every_encoder
def test_head_permutation_leaves_logits_unchanged(encoder: str) -> None:
    model = tiny_model(encoder)
    before = logits_of(model)
    for layer in range(LAYERS):
        set_attention(model, layer, permute_kv_heads(get_attention(model, layer), [3, 1, 7, 0, 6, 2, 5, 4]))
    torch.testing.assert_close(logits_of(model), before, atol=1e-5, rtol=1e-5)


@every_encoder
def test_every_token_sees_all_in_class_and_rule(encoder: str) -> None:
    """The last token moves what the first one gets, and our arithmetic gives what the class's attention gives."""
    model = tiny_model(encoder)
    arch, sizes = tiny_geometry(model)
    block = model.base_model.get_submodule(arch.block.format(layer=0).rstrip("."))
    seen: list[Any] = []
    first, last = (block.get_submodule(name) for name in (arch.projections[0], arch.parts[-1]))
    handles = [first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))]
    handles += [last.register_forward_hook(lambda module, args, out: seen.append(out))]
    logits_of(model, length=12)
    for handle in handles:
        handle.remove()
    x, of_class = seen[0], seen[1][0] if isinstance(seen[1], tuple) else seen[1]
    other = x.clone()
    other[:, -1] += 1
    weights, rule = get_attention(model, 0).to(torch.float32), sizes.block(0).rule()
    here, there = (Attention(weights, given, rule).output() for given in (x, other))
    assert not sizes.causal
    assert (here - there)[:, 0].abs().max() > 1e-3
    torch.testing.assert_close(here, of_class, atol=1e-5, rtol=1e-5)


@every_source
def test_what_is_refused_is_said_in_one_true_sentence(encoder: str, tmp_path: Path) -> None:
    tiny_model(encoder).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"{encoder} is an encoder: .* keeps no cache"):
        plan(tmp_path, to="mla", rank=16)
    with pytest.raises(UsageError, match="keeps no cache: give --groups"):
        plan(tmp_path, to="gqa", cache_ratio=0.5)
    with pytest.raises(UsageError, match="an encoder writes no text"):
        plan(tmp_path, to="gqa", groups=2, calibration="self")
    if architectures()[encoder].mlp_output is None:
        with pytest.raises(UsageError, match="--refit mlp"):
            plan(tmp_path, to="gqa", groups=2, refit="mlp")


@every_source
def test_a_decoder_of_the_same_type_is_refused(encoder: str, tmp_path: Path) -> None:
    config = tiny_model(encoder).config
    if not hasattr(config, "is_decoder"):
        pytest.skip("it is never a decoder")
    tiny_model(encoder).save_pretrained(tmp_path)
    written = config_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(written | {"is_decoder": True}))
    with pytest.raises(Exception, match="sees only itself and those before it"):
        plan(tmp_path, to="gqa", groups=2)


@every_source
def test_it_verifies_as_a_folder_and_says_what_it_is(encoder: str, tmp_path: Path, command: Command) -> None:
    tiny_model(encoder).save_pretrained(tmp_path / "in")
    outcome = command("convert", tmp_path / "in", "--to", "gqa", "--groups", 2, "--output", tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert "KV cache: none" in outcome.out
    assert "fewer" in outcome.out
    assert verify(tmp_path / "out", tmp_path / "in").figures["padding"] < 1e-2
    card = (tmp_path / "out/README.md").read_text()
    assert "none (an encoder)" in card
    assert "bytes per token" not in card
    inspected = command("inspect", tmp_path / "out")
    assert "parameters fewer" in " ".join(inspected.out.split())


# --- classes


def build(family: str, auto: str, attn: str = "sdpa", **options: Any) -> Any:
    """A small random model."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    values = sizes | {"vocab_size": 61, "pad_token_id": 0, "num_key_value_heads": 2, "initializer_range": 0.2} | options
    config = transformers.AutoConfig.for_model(family, **values)
    torch.manual_seed(0)
    return getattr(transformers, auto).from_config(config, attn_implementation=attn).eval()


def tokens(auto: str, length: int = 11) -> torch.Tensor:
    """Ids [2, S], or of two texts each, [2, 2, S], for a class that chooses."""
    shape = (2, 2, length) if auto.endswith("MultipleChoice") else (2, length)
    return torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(1))


@every_class
def test_save_and_load_gives_the_same_numbers(family: str, auto: str, tmp_path: Path) -> None:
    model, ids = build(family, auto), tokens(auto)
    model.save_pretrained(tmp_path)
    again, info = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids)[0], model(input_ids=ids)[0])


@every_class
def test_as_many_groups_as_heads_is_the_stock_class(family: str, auto: str) -> None:
    model, ids = build(family, auto, num_key_value_heads=4), tokens(auto)
    stock_class = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.models."))
    stock = stock_class(model.config).eval()
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids)[0], stock(input_ids=ids)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_each_alone(family: str, attn: str) -> None:
    model, ids = build(family, "AutoModel", attn), tokens("AutoModel")
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = model.config.pad_token_id, 0
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).last_hidden_state
        alone = [model(input_ids=ids[:1]).last_hidden_state, model(input_ids=ids[1:, :6]).last_hidden_state]
    torch.testing.assert_close(together[:1], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[1:, :6], alone[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_kinds_of_attention_agree_and_one_shows_its_weights(family: str) -> None:
    ids = tokens("AutoModel")
    eager, sdpa = (build(family, "AutoModel", attn) for attn in ("eager", "sdpa"))
    with torch.no_grad():
        shown = eager(input_ids=ids, output_attentions=True)
        torch.testing.assert_close(shown.last_hidden_state, sdpa(input_ids=ids)[0], atol=1e-5, rtol=1e-4)
    assert [tuple(weights.shape) for weights in shown.attentions] == [(2, 4, 11, 11)] * 2
    torch.testing.assert_close(shown.attentions[0].sum(-1), torch.ones(2, 4, 11))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains(family: str) -> None:
    model, ids = build(family, "AutoModelForMaskedLM"), tokens("AutoModel")
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    trained = [part for name, part in model.named_parameters() if ".0." in name or ".1." in name]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide"),
        ({"num_key_value_heads_per_layer": [4]}, "must hold 2 divisors of 4"),
        ({"is_decoder": True}, "is an encoder"),
    ],
)
def test_a_config_that_no_encoder_has_is_refused(family: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(family, "AutoModel", **({"num_key_value_heads": None} | options))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_is_refused(family: str) -> None:
    attention = next(
        part for part in build(family, "AutoModel").modules() if type(part).__name__.endswith("GQASelfAttention")
    )
    with pytest.raises(ValueError, match="has no use for past_key_values"):
        attention(torch.zeros(1, 3, 32), past_key_values=transformers.DynamicCache())
