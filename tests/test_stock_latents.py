"""Latent attention in the blocks of other families: what caps, slopes and norms on keys make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import LATENTS, build, native_type, tokens
from tiny import KINDS, SIZES, load, logits_of, tiny_geometry, tiny_model
from transformers import DynamicCache

from convert_attn import convert
from convert_attn.convert.archs.block_facts import alibi_slopes
from convert_attn.convert.errors import UsageError
from convert_attn.convert.targets.latent import read_latent
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
