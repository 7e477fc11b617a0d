"""Sizes by layer: one number is a shorthand, a class without a number for each layer refuses them, ours keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Command, config_of, save_tiny, tensors_of
from tiny import HEADS, assert_same_logits, get_attention, load, logits_of, set_attention, tiny_model
from transformers.generation.continuous_batching import PagedAttentionCache

from convert_attn import UsageError, convert, heal, inspect
from convert_attn.convert.archs.cache_form import LatentCache, SharedHeads, by_layer
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.inspection.serving import verdicts
from convert_attn.convert.verification.cut import cut_config
from convert_attn.convert.verification.folder import verify
from convert_attn.convert.weights.attention import map_kv_heads, replicate_kv_heads
from convert_attn.eval.measures.contenders import predicted_numbers
from convert_attn.eval.measures.decoding import cache_of, with_cache
from convert_attn.modeling.configuration_gpt2_gqa import GPT2GQAConfig
from convert_attn.modeling.transformers_api import CACHE_NAME

GROUPS = (HEADS, 4, 2)
LAYERS = len(GROUPS)
HEAD_DIM = 8
KEY = "num_key_value_heads_per_layer"


def uneven(folder: Path, **options: Any) -> Path:
    """A tiny GPT-2 with as many K/V heads as GROUPS says."""
    source = save_tiny(folder / "in", "gpt2", num_hidden_layers=LAYERS)
    return convert(source, to="gqa", groups=GROUPS, output=folder / "out", **options).output


def test_one_number_is_that_of_every_layer() -> None:
    assert by_layer(4, 3) == by_layer((4,), 3) == (4, 4, 4)
    assert by_layer([4, 2, 1], 3) == (4, 2, 1)
    with pytest.raises(ValueError, match="2 numbers for 3 layers"):
        by_layer((4, 2), 3)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_number_for_each_layer_that_is_the_same_is_one_number(model_type: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", model_type)
    one, each = (plan(source, to="gqa", groups=groups, output=tmp_path / "out") for groups in (4, [4, 4]))
    assert one.form == each.form == SharedHeads((4, 4))
    assert one.form.label(HEADS) == "GQA-4"
    assert one.form.settings() == {"groups": 4}
    assert one.outputs == each.outputs


def test_labels_name_the_fewest_and_the_most_heads() -> None:
    assert SharedHeads(GROUPS).label(HEADS) == "GQA-2..8"
    assert [SharedHeads.of(groups, 3).label(HEADS) for groups in (1, 2, HEADS)] == ["MQA", "GQA-2", "MHA"]


def test_layers_that_keep_their_heads_come_back_bit_for_bit(tmp_path: Path) -> None:
    after, before = tensors_of(uneven(tmp_path)), tensors_of(tmp_path / "in")
    assert before.keys() == after.keys()
    changed = {name.split(".h.")[1][0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1", "2"}
    for name, tensor in before.items():
        if ".h." not in name or ".attn." not in name or ".h.0." in name:
            assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("refit", [False, "mlp"])
def test_heads_that_are_equal_already_convert_without_loss(refit: Any, tmp_path: Path) -> None:
    model = tiny_model("gpt2", num_hidden_layers=LAYERS)
    for layer, groups in enumerate(GROUPS):
        shared = map_kv_heads(get_attention(model, layer), lambda heads, groups=groups: heads[:groups])
        set_attention(model, layer, replicate_kv_heads(shared, HEADS))
    model.save_pretrained(tmp_path / "in")
    text = None if refit is False else str(_text(tmp_path))
    convert(tmp_path / "in", to="gqa", groups=GROUPS, refit=refit, calibration=text, output=tmp_path / "out")
    assert_same_logits(logits_of(load(tmp_path / "out")), logits_of(model))


def _text(folder: Path) -> Path:
    path = folder / "text.npy"
    np.save(path, np.random.default_rng(0).integers(1, 97, (64, 32)))
    return path


def test_a_layer_that_keeps_its_heads_keeps_them_when_others_are_solved_anew(tmp_path: Path) -> None:
    out = uneven(tmp_path, calibration=str(_text(tmp_path)))
    after, before = tensors_of(out), tensors_of(tmp_path / "in")
    kept = [name for name in before if ".h.0." in name]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)


@torch.no_grad()
def test_cached_decode_equals_uncached_and_caches_what_was_said(tmp_path: Path) -> None:
    out = uneven(tmp_path)
    model, tokens = load(out), torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    whole = model(input_ids=tokens).logits
    step = model(input_ids=tokens[:, :5], use_cache=True)
    pieces = [step.logits]
    for t in range(5, 12):
        step = model(input_ids=tokens[:, t : t + 1], **with_cache(model, cache_of(step)), use_cache=True)
        pieces.append(step.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)
    cached = [layer.keys.numel() + layer.values.numel() for layer in cache_of(step).layers]
    assert cached == [2 * 12 * 2 * groups * HEAD_DIM for groups in GROUPS]
    config = config_of(out)
    assert predicted_numbers(config, "out") == sum(cached) // (2 * 12)
    assert config["convert_attn"]["cache"]["bytes_per_token"] == [4 * 2 * HEADS * HEAD_DIM * LAYERS, sum(cached) // 6]


@torch.no_grad()
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_a_static_cache_finds_the_size_of_each_layer(attn: str, tmp_path: Path) -> None:
    model, tokens = load(uneven(tmp_path)), torch.randint(1, 97, (2, 5), generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation(attn)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    dynamic, static = (
        model.generate(tokens, attention_mask=torch.ones_like(tokens), cache_implementation=kind, **settings)
        for kind in (None, "static")
    )
    assert torch.equal(dynamic, static)


def test_what_is_written_says_so(tmp_path: Path, command: Command) -> None:
    out = uneven(tmp_path)
    config, card = config_of(out), (out / "README.md").read_text()
    assert (config[KEY], config["num_key_value_heads"]) == ([*GROUPS], HEADS)
    assert config["convert_attn"]["groups"] == [*GROUPS]
    assert "--groups 8,4,2" in config["convert_attn"]["command"]
    assert "to GQA-2..8: 8 query heads share 2 to 8 (by layer) key/value heads (there were 8)" in card
    again = convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "even").output
    assert KEY not in config_of(again)
    first = inspect(out).rows[0]
    assert (first.name, first.bytes_per_token) == ("GQA-2..8", config["convert_attn"]["cache"]["bytes_per_token"][1])
    shown = command("inspect", out)
    assert shown.code == 0, shown.err
    assert "8,4,2" in shown.out


def test_a_result_of_uneven_layers_saves_and_loads_itself(tmp_path: Path) -> None:
    model = load(uneven(tmp_path))
    model.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again")[KEY] == [*GROUPS]
    assert torch.equal(logits_of(load(tmp_path / "again")), logits_of(model))


def test_a_result_of_uneven_layers_is_verified_healed_and_converted_again(tmp_path: Path) -> None:
    out = uneven(tmp_path)
    assert verify(out, tmp_path / "in").figures["cached_numbers"] == [2.0 * groups * HEAD_DIM for groups in GROUPS]
    fewer = convert(out, to="gqa", groups=(4, 4, 1), output=tmp_path / "fewer").output
    assert config_of(fewer)[KEY] == [4, 4, 1]
    assert config_of(fewer)["convert_attn"]["source_num_key_value_heads"] == [*GROUPS]
    even = config_of(convert(out, to="gqa", groups=2, output=tmp_path / "even").output)
    assert even["num_key_value_heads"] == 2
    assert KEY not in even
    half = config_of(convert(out, to="gqa", cache_ratio=0.5, output=tmp_path / "half").output)
    assert half[KEY] == [4, 2, 1]
    for to in ("mqa", "mla"):
        made = convert(out, to=to, rank=64 if to == "mla" else None, output=tmp_path / to).output
        assert KEY not in config_of(made)
    assert_same_logits(logits_of(load(tmp_path / "mla")), logits_of(load(out)))


def test_layers_that_differ_in_more_than_heads_are_refused_in_numbers(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", "gpt2", num_hidden_layers=LAYERS)
    for groups, match in (
        ((8, 4), "--groups has 2 numbers and the model 3 layers: give one for each layer, or one for all"),
        ((8, 3, 2), "--groups 3 in layer 1 does not divide the model's 8 K/V heads; choose one of 1, 2, 4, 8"),
        ((8, 4, 0), "--groups is 0 in layer 2, expected at least 1"),
        ((16, 4, 2), "--groups is 16 in layer 0 but the model has 8 K/V heads"),
    ):
        with pytest.raises(UsageError, match=match):
            plan(source, to="gqa", groups=groups)


def test_a_class_with_one_number_refuses_several(tmp_path: Path, command: Command) -> None:
    llama, gpt2 = (save_tiny(tmp_path / name, name) for name in ("llama", "gpt2"))
    outcome = command(llama, "--to", "gqa", "--groups", "4,2", "--output", tmp_path / "out")
    assert outcome.code == 2
    assert (
        "--groups 4,2 differs by layer, and the class of llama takes one number for all layers: give one (--groups 4)"
    ) in " ".join(outcome.err.split())
    with pytest.raises(UsageError, match=r"gpt_bigcode takes one number .*, or --layout custom, whose gpt2_gqa takes"):
        plan(gpt2, to="gqa", groups=(4, 2), layout="native")
    with pytest.raises(UsageError, match=r"--rank 32,16 differs by layer, and deepseek_v3 .*whose llama_mla takes"):
        plan(llama, to="mla", rank=(32, 16), rope_dim=8, layout="native")
    with pytest.raises(UsageError, match=r"--rope-dim 8,16 differs by layer, and llama_mla takes one number"):
        plan(llama, to="mla", rank=32, rope_dim=(8, 16), layout="custom")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_ranks_by_layer_as_typed(model_type: str, tmp_path: Path, command: Command) -> None:
    source = save_tiny(tmp_path / "in", model_type)
    rotary = 8 if model_type == "llama" else 0
    more = ["--rope-dim", rotary] if rotary else []
    outcome = command(source, "--to", "mla", "--rank", "48,24", *more, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    config = config_of(tmp_path / "out")
    assert (config["kv_lora_ranks"], config["kv_lora_rank"]) == ([48, 24], 48)
    assert "--rank 48,24" in config["convert_attn"]["command"]
    assert plan(source, to="mla", rank=(48, 24), rope_dim=rotary or None).form == LatentCache.of((48, 24), rotary, 2)
    with pytest.raises(UsageError, match="--rank is 65 in layer 1, more than the hidden size 64"):
        plan(source, to="mla", rank=(48, 65))


def test_a_cut_keeps_each_layer_its_heads() -> None:
    raw = {"model_type": "gpt2_gqa", "n_layer": 4, "n_head": 8, "n_embd": 64, "num_key_value_heads": 8}
    made = cut_config(raw | {KEY: [8, 1, 4, 2]}, (1, 2, 3), 4)
    assert (made[KEY], made["num_key_value_heads"], made["n_layer"]) == ([1, 4, 2], 4, 3)


def test_a_config_has_a_divisor_for_each_layer() -> None:
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 8, "n_embd": 64}
    assert GPT2GQAConfig(**sizes, **{KEY: [2, 4]}).num_key_value_heads == 4
    for wrong in ([4], [4, 3], [4, 0], [4, 4, 4]):
        with pytest.raises(ValueError, match="must hold 2 divisors of n_head=8, the largest num_key_value_heads="):
            GPT2GQAConfig(**sizes, **{KEY: wrong})
    with pytest.raises(ValueError, match="the largest num_key_value_heads=8"):
        GPT2GQAConfig(**sizes, num_key_value_heads=8, **{KEY: [2, 4]})


def test_engines_that_have_one_number_for_all_layers_say_so(tmp_path: Path) -> None:
    out = uneven(tmp_path)
    found = {rule.engine: rule for rule in verdicts(config_of(out))}
    for engine in ("vLLM", "SGLang"):
        assert found[engine].loads == "no"
        assert "one number of K/V heads for all layers" in found[engine].change
    assert "use generate" in found["transformers"].notes[0].text
    assert not {rule.engine: rule for rule in verdicts(config_of(out) | {KEY: None})}["transformers"].notes


def test_pages_of_one_size_are_refused_in_a_sentence(tmp_path: Path) -> None:
    blocks = load(uneven(tmp_path)).transformer.h
    pages = PagedAttentionCache.__new__(PagedAttentionCache)  # its kind is enough
    with pytest.raises(ValueError, match="the layers of this model differ: use generate"):
        blocks[1].attn(torch.zeros(1, 2, 64), **{CACHE_NAME: pages})


def test_heal_trains_layers_that_differ(tmp_path: Path) -> None:
    out = uneven(tmp_path)
    options: dict[str, Any] = {"data": str(_text(tmp_path)), "tokens": 256, "seq_len": 32, "batch_size": 2}
    heal(out, teacher=tmp_path / "in", output=tmp_path / "healed", **options)
    assert config_of(tmp_path / "healed")[KEY] == [*GROUPS]
