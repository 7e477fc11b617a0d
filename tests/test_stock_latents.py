"""Latent attention in the blocks of other families: what caps, slopes and norms on keys make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import LATENTS, build, native_type, tokens
from tiny import KINDS, SIZES, assert_same_logits, load, logits_of, tiny_geometry, tiny_model
from transformers import DynamicCache

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.block_facts import alibi_slopes
from convert_attn.convert.errors import UsageError
from convert_attn.convert.targets.latent import read_latent
from convert_attn.convert.verification.folder import verify
from convert_attn.convert.weights.functional import Attention, Rule
from convert_attn.eval.measures.decoding import with_cache
from convert_attn.modeling.latent_attention import LatentAttention

SOURCES = [native_type(name) for name in LATENTS]
LEAST = [name for name in SOURCES if name in KINDS]
SHAPED: dict[str, dict[str, Any]] = {
    "cap": {"score_softcap": 1.5},
    "slopes": {"alibi_slopes": list(alibi_slopes(4))},
    "norm": {"key_norm_heads": 2},
    "norm of all heads": {"key_norm_heads": 4, "key_norm_together": True},
}
# what only some configs of a family have
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "slopes of Falcon": ("falcon", {"alibi": True, "bias": True, "parallel_attn": False}),
    "one K/V head": ("falcon", {"multi_query": True}),
    "two norms and some K/V heads": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "norms are added": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "a number of heads that is no power of two": ("bloom", {"num_attention_heads": 12, "hidden_size": 96}),
    "a scale of its own": ("mpt", {"attn_config": {"softmax_scale": 0.5}}),
    "biases of queries and keys and no norm": ("glm4_moe", {"use_qk_norm": False, "attention_bias": True}),
    "scores as they are": ("gpt_bigcode", {"scale_attn_weights": False, "multi_query": True}),
}
both_functions = pytest.mark.parametrize("attn", ["sdpa", "eager"])


@both_functions
@pytest.mark.parametrize("kind", SHAPED)
def test_both_ways_and_the_definition_agree(kind: str, attn: str) -> None:
    """The attention of a layer is what fits run; absorbed and expanded, whole and in steps, are one."""
    model = build("llama_mla", attn=attn, **SHAPED[kind])
    plain = build("llama_mla", attn=attn)
    ids, found = tokens(), {}
    for mode in ("expand", "absorb"):
        model.config.latent_attention_mode = mode
        cache = DynamicCache(config=model.config)
        steps = [model(ids[:, a:b], **with_cache(model, cache)).logits for a, b in ((0, 5), (5, 6), (6, 9), (9, 11))]
        found[mode] = torch.cat(steps, 1)
    torch.testing.assert_close(found["absorb"], found["expand"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(ids, use_cache=False).logits, found["expand"], atol=1e-5, rtol=1e-5)
    assert (plain(ids).logits - found["expand"]).abs().max() > 1e-3
    attention = next(module for module in model.modules() if isinstance(module, LatentAttention))
    config = model.config
    slopes = None if config.alibi_slopes is None else torch.tensor(config.alibi_slopes)
    rule = Rule(scale=config.softmax_scale, softcap=config.score_softcap, slopes=slopes)
    weights = read_latent(config, {name: tensor.detach() for name, tensor in attention.state_dict().items()}, 0)
    x = torch.randn(2, 7, config.hidden_size, generator=torch.Generator().manual_seed(2))
    mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1)[None, None]
    given, _ = attention(x, position_ids=torch.arange(7)[None], attention_mask=mask)
    torch.testing.assert_close(given, Attention(weights, x, rule).output(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SHAPED)
def test_a_padded_batch_is_each_alone(kind: str) -> None:
    model = build("llama_mla", **SHAPED[kind])
    ids, mask = tokens(), torch.ones(2, 11, dtype=torch.long)
    mask[0, :4] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    both = model(ids, attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(both[0, 4:], model(ids[:1, 4:]).logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1], model(ids[1:]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", LATENTS)
def test_a_layer_tells_attention_functions_of_its_own_window(family: str) -> None:
    """Masks have it, too; engines read what the module says."""
    model = build(family, "AutoModel")
    kinds = getattr(model.config, "layer_types", None)
    if kinds is None:
        pytest.skip("all layers are alike")
    windows = [module.sliding_window for module in model.modules() if isinstance(module, LatentAttention)]
    assert windows == [model.config.sliding_window if kind == "sliding_attention" else None for kind in kinds]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_family_lose_nothing_at_full_rank(name: str, tmp_path: Path) -> None:
    """On a text that is longer than what bfloat16 counts, as Falcon rounds its slopes."""
    source, options = VARIANTS[name]
    model = tiny_model(source, **{architectures()[source].context_key: 512} | options)
    model.save_pretrained(tmp_path / "in")
    sizes = {"rank": model.config.hidden_size, "rope_dim": tiny_geometry(model)[1].turning_keys or None}
    convert(tmp_path / "in", to="mla", output=tmp_path / "out", calibration=None, measure=False, **sizes)
    found = load(tmp_path / "out")
    assert_same_logits(logits_of(found, 400, 1), logits_of(model, 400, 1))
    ids = torch.arange(3, 12)[None]
    greedy: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(found.generate(ids, **greedy), found.generate(ids, **greedy, use_cache=False))
    assert verify(tmp_path / "out").figures["block_errors"]


def test_attention_functions_that_learn_of_no_slopes_are_refused() -> None:
    model = build("llama_mla", alibi_slopes=list(alibi_slopes(4)))
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"'flex_attention' learns of no slopes \(ALiBi\): use eager or sdpa"):
        model.model.layers[0].self_attn(torch.ones(1, 3, 32), position_ids=torch.arange(3)[None])


@pytest.mark.parametrize("source", LEAST)
def test_on_text_the_fit_gets_better(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few windows over and over, so that what is fitted on some does for the others."""
    monkeypatch.setenv("CONVERT_ATTN_CACHE", str(tmp_path / "cache"))
    windows = np.random.default_rng(0).integers(1, SIZES["vocab_size"], (4, 40))
    np.save(tmp_path / "text.npy", np.tile(windows, (8, 1)))
    model = tiny_model(source)
    model.save_pretrained(tmp_path / "in")
    sizes = {"rope_dim": 8} if tiny_geometry(model)[1].turns else {}
    ids, errors = torch.from_numpy(windows), []
    wanted = logits_of(model, tokens=ids)
    for name, options in (("weights", {"calibration": None}), ("text", {"calibration": str(tmp_path / "text.npy")})):
        convert(tmp_path / "in", to="mla", rank=24, output=tmp_path / name, measure=False, **sizes, **options)
        errors.append(float((logits_of(load(tmp_path / name), tokens=ids) - wanted).square().mean()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("source", [name for name in SOURCES if name.startswith(("qwen3", "cohere"))][:1])
def test_a_bias_on_normed_keys_is_refused(source: str, tmp_path: Path) -> None:
    tiny_model(source, attention_bias=True).save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError, match="a bias on its keys, behind which is a norm"):
        convert(tmp_path / "in", to="mla", rank=24, rope_dim=8, output=tmp_path / "out")
    made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", calibration=None, measure=False)
    assert made.verified is not None
    assert max(made.verified.figures["block_errors"].values()) < 1e-4
