"""Latent attention: both ways to compute it agree, the cache holds the latent and nothing else, and models whose
attention has an exact latent form keep their logits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from remote import loads_without_the_package
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from convert_attn import modeling
from convert_attn.convert.heal.training.loop import checkpoint_activations
from convert_attn.eval.measures.decoding import with_cache
from convert_attn.modeling import latent_kernels
from convert_attn.modeling.configuration_gpt2_mla import GPT2MLAConfig
from convert_attn.modeling.configuration_llama_mla import LlamaMLAConfig
from convert_attn.modeling.latent_attention import LatentAttention, absorbing_is_cheaper
from convert_attn.modeling.latent_kernel import Kernel
from convert_attn.modeling.latent_kernel_triton import TRITON
from convert_attn.modeling.latent_kernels import KERNELS
from convert_attn.modeling.modeling_gpt2_mla import (
    GPT2MLAForCausalLM,
    GPT2MLAForSequenceClassification,
    GPT2MLAModel,
)
from convert_attn.modeling.modeling_llama_mla import (
    LlamaMLAForCausalLM,
    LlamaMLAForSequenceClassification,
    LlamaMLAModel,
)

D, H, LAYERS, VOCAB = 64, 4, 2, 97
R_LATENT, NOPE, ROPE, VALUE = 24, 10, 6, 12
FREQUENCIES = [[1.0, 0.3, 0.3], [0.7, 0.05, 0.002]]  # a plane's may repeat, and every layer has its own

CLASSES: dict[str, dict[str, Any]] = {
    "gpt2_mla": {
        "AutoModel": GPT2MLAModel,
        "AutoModelForCausalLM": GPT2MLAForCausalLM,
        "AutoModelForSequenceClassification": GPT2MLAForSequenceClassification,
    },
    "llama_mla": {
        "AutoModel": LlamaMLAModel,
        "AutoModelForCausalLM": LlamaMLAForCausalLM,
        "AutoModelForSequenceClassification": LlamaMLAForSequenceClassification,
    },
}
FAMILIES = list(CLASSES)
both_families = pytest.mark.parametrize("family", FAMILIES)
both_functions = pytest.mark.parametrize("attn", ["eager", "sdpa"])
both_ways = pytest.mark.parametrize("mode", ["absorb", "expand"])
both_caches = pytest.mark.parametrize("kind", ["dynamic", "static"])


def make_config(family: str, **changes: Any) -> Any:
    """Two small layers, GPT-2's without a rotary position; weights large enough for attention to be uneven."""
    latent = {"kv_lora_rank": R_LATENT, "qk_nope_head_dim": NOPE, "v_head_dim": VALUE, "o_bias": True}
    tokens = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    common = {**latent, **tokens, "initializer_range": 0.2}
    if family == "gpt2_mla":
        sizes = {"n_positions": 64, "n_embd": D, "n_layer": LAYERS, "n_head": H, "q_bias": True}
        dropouts = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        return GPT2MLAConfig(**{**common, **sizes, **dropouts} | changes)
    sizes = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H, "intermediate_size": 80}
    rotary = {"qk_rope_head_dim": ROPE, "rope_inv_freq": FREQUENCIES, "kv_a_bias": True}
    return LlamaMLAConfig(**{**common, **sizes, **rotary} | changes)


def build(
    family: str, attn: str = "sdpa", mode: str = "auto", auto: str = "AutoModelForCausalLM", **changes: Any
) -> Any:
    torch.manual_seed(0)
    config = make_config(family, latent_attention_mode=mode, **changes)
    model = CLASSES[family][auto]._from_config(config, attn_implementation=attn).eval()
    with torch.no_grad():  # biases and gains start at zero or one, which would hide a wrong one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def tokens(batch: int = 2, length: int = 11) -> Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def left_padded(batch: int = 2, length: int = 11, pad: int = 4) -> dict[str, Tensor]:
    """The first row has `pad` tokens less than the others, which are made up for on the left."""
    ids, mask = tokens(batch, length), torch.ones(batch, length, dtype=torch.long)
    ids[0, :pad] = 0
    mask[0, :pad] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def make_cache(kind: str, model: Any, length: int) -> Any:
    return DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, length)


def in_steps(model: Any, batch: dict[str, Tensor], ends: tuple[int, ...], cache: Any) -> Tensor:
    """The logits of a text that is fed in pieces, [B, S, vocabulary]."""
    logits, start = [], 0
    for end in ends:
        piece = {name: tensor[:, start:end] for name, tensor in batch.items()}
        if "attention_mask" in batch:  # covers what is in the cache, too
            piece["attention_mask"] = batch["attention_mask"][:, :end]
        logits.append(model(**piece, **with_cache(model, cache)).logits)
        start = end
    return torch.cat(logits, dim=1)


def set_mode(model: Any, mode: str) -> None:
    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.latent_attention_mode = mode


def assert_close(left: Tensor, right: Tensor, tolerance: float) -> None:
    assert left.shape == right.shape
    assert (left - right).abs().max().item() <= tolerance


# --- configs


@both_families
def test_config_fills_in_what_others_read_and_survives_json(family: str, tmp_path: Path) -> None:
    config = make_config(family)
    rope = config.qk_rope_head_dim
    assert config.softmax_scale == pytest.approx((NOPE + rope) ** -0.5)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == family
    assert [written[name] for name in ("num_key_value_heads", "qk_head_dim")] == [H, NOPE + rope]
    assert written["head_dim"] == max(NOPE + rope, VALUE)
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()
    type(config)()  # transformers compares with the defaults when it saves


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_lora_rank": 0}, "kv_lora_rank must be at least 1, got 0"),
        ({"qk_nope_head_dim": -1}, "qk_nope_head_dim must be at least 0"),
        ({"v_head_dim": 0}, "v_head_dim must be at least 1"),
        ({"qk_rope_head_dim": 5}, "qk_rope_head_dim must be even, got 5"),
        ({"qk_nope_head_dim": 0, "qk_rope_head_dim": 0}, "are both 0"),
        ({"qk_rope_head_dim": 0}, r"hold 0 inverse frequencies .* each of 2 layers, got lists of \[3, 3\]"),
        ({"rope_inv_freq": None}, r"rope_inv_freq must hold 3 inverse frequencies .* got lists of \[\]"),
        ({"rope_inv_freq": [[1.0, 1.0, 1.0]]}, r"each of 2 layers, got lists of \[3\]"),
        ({"rope_inv_freq": [[1.0, 1.0, 1.0], [1.0]]}, r"got lists of \[3, 1\]"),
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 4 with these sizes, got 2: leave it out"),
        ({"head_dim": 8}, "head_dim must be 16"),
        ({"latent_attention_mode": "fast"}, "must be one of auto, absorb, expand, got 'fast'"),
        ({"norm_gain_offset": 0.5}, "norm_gain_offset must be 0 or 1"),
        ({"fused_gate_up": True, "mlp_bias": True}, "fused_gate_up and mlp_bias cannot both be set"),
        ({"sliding_window": 0}, "sliding_window must be at least 1"),
    ],
)
def test_config_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config("llama_mla", **changes)


def test_models_refuse_what_they_have_not() -> None:
    with pytest.raises(ValueError, match="no cross attention"):
        build("gpt2_mla", add_cross_attention=True)
    with pytest.raises(ValueError, match="no cross attention"):
        build("gpt2_mla")(tokens(), encoder_hidden_states=torch.zeros(2, 3, D))
    for family in FAMILIES:
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            build(family)(tokens(), inputs_embeds=torch.zeros(2, 11, D))


# --- against the definition


def reference_attention(attention: LatentAttention, x: Tensor, inv_freq: list[float]) -> Tensor:
    """Causal latent attention in float64, one head, query and key at a time. x [S, D] -> [S, D]."""
    weights = {name: tensor.double() for name, tensor in attention.state_dict().items()}
    rank, n, rope, v = R_LATENT, NOPE, 2 * len(inv_freq), VALUE

    def linear(name: str, vector: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ vector + weights.get(f"{name}.bias", 0.0)

    def turn(vector: Tensor, position: int) -> Tensor:
        turned = vector.clone()
        for p, frequency in enumerate(inv_freq):
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            first, second = vector[p], vector[p + rope // 2]
            turned[p], turned[p + rope // 2] = first * cos - second * sin, second * cos + first * sin
        return turned

    x = x.double()
    up = weights["kv_b_proj.weight"].view(H, n + v, rank)
    latents, rope_keys = [], []
    for t in range(len(x)):
        compressed = linear("kv_a_proj_with_mqa", x[t])
        latent = compressed[:rank]
        if "kv_a_layernorm.weight" in weights:
            latent = latent / (latent.pow(2).mean() + 1e-6).sqrt() * weights["kv_a_layernorm.weight"]
        latents.append(latent)
        rope_keys.append(turn(compressed[rank:], t))
    rows = []
    for s in range(len(x)):
        query, heads = linear("q_proj", x[s]).view(H, n + rope), []
        for i in range(H):
            asked = torch.cat([query[i, :n], turn(query[i, n:], s)])
            keys = [torch.cat([up[i, :n] @ latents[t], rope_keys[t]]) for t in range(s + 1)]
            scores = torch.stack([asked @ key for key in keys]) * (n + rope) ** -0.5
            values = torch.stack([up[i, n:] @ latents[t] for t in range(s + 1)])
            heads.append(scores.softmax(0) @ values)
        rows.append(linear("o_proj", torch.cat(heads)))
    return torch.stack(rows)


@both_functions
@both_ways
@pytest.mark.parametrize("latent_norm", [False, True])
@both_families
def test_attention_is_what_the_definition_says(family: str, latent_norm: bool, mode: str, attn: str) -> None:
    model = build(family, attn, mode, latent_norm=latent_norm)
    assert any("kv_a_layernorm" in name for name in model.state_dict()) == latent_norm
    attentions = [module for module in model.modules() if isinstance(module, LatentAttention)]
    frequencies = model.config.rope_inv_freq or [[]] * LAYERS
    torch.manual_seed(3)
    x = torch.randn(1, 9, D)
    mask = torch.full((9, 9), -torch.inf).triu(1)[None, None] if attn == "eager" else None
    for attention, inv_freq in zip(attentions, frequencies, strict=True):
        output, _ = attention(x, position_ids=torch.arange(9)[None], attention_mask=mask)
        assert_close(output[0].double(), reference_attention(attention, x[0], inv_freq), 1e-5)


# --- absorb and expand agree


@both_functions
@both_caches
@pytest.mark.parametrize("padded", [False, True])
@both_families
def test_absorb_equals_expand(family: str, padded: bool, kind: str, attn: str) -> None:
    model = build(family, attn)
    batch = left_padded(length=20) if padded else {"input_ids": tokens(length=20)}
    ends = (6, 7, 8, 12, 19, 20)  # a prompt, single tokens and chunks
    results = {}
    for mode in ("expand", "absorb", "auto"):
        set_mode(model, mode)
        results[mode] = in_steps(model, batch, ends, make_cache(kind, model, 24))
    seen = batch.get("attention_mask", torch.ones(2, 20)).bool()
    assert_close(results["absorb"][seen], results["expand"][seen], 1e-5)
    assert_close(results["auto"][seen], results["expand"][seen], 1e-5)
    assert_close(model(**batch, use_cache=False).logits[seen], results["expand"][seen], 1e-5)


@pytest.mark.parametrize(
    "kernel",
    [kernel for kernel in KERNELS if kernel is not TRITON],
    ids=lambda kernel: kernel.run.__module__.rpartition("_")[2],
)
@pytest.mark.parametrize("padded", [False, True])
@both_caches
@both_families
def test_every_kernel_gives_the_same_steps(
    family: str, kind: str, padded: bool, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one is taken depends on the computer's threads: here each is forced, for one new token."""
    batch = left_padded(length=12) if padded else {"input_ids": tokens(length=12)}
    taken: list[bool] = []

    def applies(query: Tensor, training: bool, weights: bool) -> bool:
        taken.append(query.shape[2] == 1)
        return taken[-1]

    monkeypatch.setattr(latent_kernels, "KERNELS", (Kernel(applies, kernel.run), KERNELS[-1]))
    model = build(family, "sdpa", "absorb")
    ends = (1, 2, 3, 8, 9, 12)  # one token by itself, too: with padding, one that may see nothing
    seen = batch.get("attention_mask", torch.ones(2, 12)).bool()
    result = in_steps(model, batch, ends, make_cache(kind, model, 16))
    assert result.isfinite().all()
    assert_close(result[seen], build(family, "sdpa", "expand")(**batch).logits[seen], 1e-5)
    assert any(taken)


def test_the_last_kernel_always_applies() -> None:
    query = torch.zeros(1, 2, 3, 4, dtype=torch.float16)
    assert all(KERNELS[-1].applies(query, training, weights) for training in (True, False) for weights in (True, False))


def test_what_is_imported_behind_a_guard_travels(tmp_path: Path) -> None:
    file = tmp_path / "modeling_x.py"
    file.write_text(
        "import torch\nfrom .a import A\ntry:\n    from .b import B\nexcept ImportError:\n    B = None\n"
        'def f():\n    from .c import C\n# from .no import D\n"""\nfrom .neither import E\n"""\n'
    )
    assert sorted(modeling.siblings(file)) == ["a", "b", "c"]
    assert {"latent_kernel_plain.py", "latent_kernel.py"} <= {file.name for file in modeling.source_files("llama_mla")}


@both_functions
@both_caches
def test_absorb_equals_expand_in_a_sliding_window(kind: str, attn: str) -> None:
    model = build("llama_mla", attn, sliding_window=5)
    batch, ends = {"input_ids": tokens(length=20)}, (3, 4, 9, 10, 11, 20)
    expected = model(**batch, use_cache=False).logits
    assert (build("llama_mla", attn)(**batch).logits - expected).abs().max() > 1e-2
    for mode in ("expand", "absorb"):
        set_mode(model, mode)
        assert_close(in_steps(model, batch, ends, make_cache(kind, model, 24)), expected, 1e-5)


@both_families
def test_the_config_and_the_module_choose_the_way(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for way in ("_absorb", "_expand"):
        original = getattr(LatentAttention, way)

        def note(self: Any, *args: Any, way: str = way, original: Any = original, **kwargs: Any) -> Any:
            taken.append(way)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(LatentAttention, way, note)

    def ways(model: Any, **options: Any) -> list[str]:
        taken.clear()
        in_steps(model, {"input_ids": tokens(length=20)}, (18, 19, 20), DynamicCache(config=model.config))
        return taken[::LAYERS]

    model = build(family)
    assert ways(model) == ["_expand", "_absorb", "_absorb"]
    model.config.latent_attention_mode = "expand"
    assert ways(model) == ["_expand"] * 3
    set_mode(model, "absorb")
    assert ways(model) == ["_absorb"] * 3

    model = build(family)
    for module in model.modules():  # adapters and quantizers replace the layer: its weight is not all there is
        if isinstance(module, LatentAttention):
            module.kv_b_proj.__class__ = type("Adapted", (nn.Linear,), {})
    assert ways(model) == ["_expand"] * 3

    model = build(family)
    sharded = type("Sharded", (nn.Parameter,), {})
    for module in model.modules():  # as DTensor, and as the tensors of quantizers that keep the layer
        if isinstance(module, LatentAttention):
            module.kv_b_proj.weight = sharded(module.kv_b_proj.weight.detach())
    assert ways(model) == ["_expand"] * 3
    set_mode(model, "absorb")
    with pytest.raises(ValueError, match="here is quantized, adapted, sharded or offloaded"):
        model(tokens())
    taken.clear()
    build(family).train()(tokens())
    assert set(taken) == {"_expand"}


def test_the_automatic_choice_counts_multiplications() -> None:
    rank, head_size, rope, keys = 512, 128, 64, 4096
    sizes = rank, head_size, rope
    cheaper = [tokens for tokens in range(1, keys + 1) if absorbing_is_cheaper(tokens, keys, *sizes)]
    assert cheaper == list(range(1, len(cheaper) + 1))
    assert len(cheaper) == 67
    for new in (*cheaper[-2:], len(cheaper) + 1):
        expand = keys * rank * head_size + new * keys * (head_size + rope)
        absorb = new * rank * head_size + new * keys * 2 * (rank + rope)
        assert (absorb < expand) == (new in cheaper)
    assert not absorbing_is_cheaper(keys, keys, *sizes)
    assert absorbing_is_cheaper(1, 2, *sizes)
    # A small latent would always be cheaper, but the scores of a long prompt would not fit.
    assert absorbing_is_cheaper(head_size, keys, 32, head_size, rope)
    assert not absorbing_is_cheaper(head_size + 1, keys, 32, head_size, rope)


# --- the cache


@both_caches
@both_families
def test_cache_holds_latent_and_rotary_key_and_nothing_else(family: str, kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = build(family).to(dtype)
        cache = make_cache(kind, model, 23)
        in_steps(model, {"input_ids": tokens(batch=3, length=23)}, (21, 22, 23), cache)
        held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        numbers = LAYERS * (R_LATENT + model.config.qk_rope_head_dim) * 3 * 23
        assert sum(tensor.untyped_storage().nbytes() for tensor in held) == numbers * dtype.itemsize
    assert model(tokens(), use_cache=False).keys() == {"logits"}


@both_functions
@pytest.mark.parametrize("beams", [1, 3])
@both_families
def test_generation_is_the_same_with_every_cache(family: str, beams: int, attn: str) -> None:
    model = build(family, attn)
    batch = left_padded()
    del batch["position_ids"]  # generate makes them from the mask
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams}
    expected = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(model.generate(**batch, **options), expected)
    assert torch.equal(model.generate(**batch, **options, cache_implementation="static"), expected)
    chunks = {"prefill_chunk_size": 4}
    assert torch.equal(model.generate(**batch, **options, **chunks), expected)
    set_mode(model, "absorb")
    assert torch.equal(model.generate(**batch, **options), expected)


@both_families
def test_static_cache_with_a_prompt_in_chunks_finds_its_own_sizes(family: str) -> None:
    """transformers allocates such a cache from the config, unless `qk_head_dim` tells it not to."""
    model = build(family)
    options = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static", "prefill_chunk_size": 4}
    expected = model.generate(tokens(), max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(tokens(), **options), expected)


@both_functions
@both_ways
@both_families
def test_left_padding_changes_nothing(family: str, mode: str, attn: str) -> None:
    model = build(family, attn, mode)
    batch = left_padded(pad=4)
    padded = model(**batch).logits
    assert padded.isfinite().all()
    assert_close(padded[:1, 4:], model(batch["input_ids"][:1, 4:]).logits, 1e-5)
    assert_close(padded[1:], model(batch["input_ids"][1:]).logits, 1e-5)


@both_ways
@both_families
def test_eager_equals_sdpa_and_shows_its_weights(family: str, mode: str) -> None:
    model = build(family, "eager", mode)
    batch = left_padded()
    eager = model(**batch, output_attentions=True, output_hidden_states=True)
    allowed = batch["attention_mask"].bool()
    for weights in eager.attentions:
        assert weights.shape == (2, H, 11, 11)
        assert_close(weights.sum(-1), torch.ones(2, H, 11), 1e-5)
        assert weights[0, :, 4:, :4].max() == 0
        assert weights.triu(1)[1].max() == 0
    assert len(eager.attentions) == LAYERS
    assert len(eager.hidden_states) == LAYERS + 1
    set_mode(model, "expand" if mode == "absorb" else "absorb")
    other = model(**batch, output_attentions=True).attentions
    for left, right in zip(eager.attentions, other, strict=True):
        assert_close(left.transpose(1, 2)[allowed], right.transpose(1, 2)[allowed], 1e-5)
    set_mode(model, mode)
    model.set_attn_implementation("sdpa")
    sdpa = model(**batch, output_attentions=True)
    assert not sdpa.attentions  # as elsewhere in transformers, whichever way it is computed
    assert_close(sdpa.logits[allowed], eager.logits[allowed], 1e-5)


@both_families
def test_a_prompt_expands_no_more_than_itself(family: str) -> None:
    """A static cache hands back all its room."""
    model = build(family)
    attention = next(module for module in model.modules() if isinstance(module, LatentAttention))
    seen: list[int] = []
    attention.kv_b_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    in_steps(model, {"input_ids": tokens()}, (10, 11), StaticCache(model.config, 40))
    assert seen == [10]


# --- models whose attention has an exact latent form


def copy_rest(model: Any, source: Any) -> None:
    """Everything but the attention, by name."""
    names = {name for name in model.state_dict() if ".attn." not in name and ".self_attn." not in name}
    missing, unexpected = model.load_state_dict(
        {name: tensor for name, tensor in source.state_dict().items() if name in names}, strict=False
    )
    assert not unexpected
    assert all(".attn." in name or ".self_attn." in name for name in missing)
    assert names <= set(source.state_dict())


def randomize(model: Any) -> Any:
    """Norm gains and biases away from one and zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


GPT2_KNOBS: list[dict[str, Any]] = [
    {},
    {"activation_function": "relu", "n_inner": 80, "layer_norm_epsilon": 1e-2},
    {"tie_word_embeddings": False},
]


@both_functions
@both_ways
@pytest.mark.parametrize("knobs", GPT2_KNOBS, ids=lambda knobs: "-".join(knobs) or "default")
def test_gpt2_with_a_latent_of_full_size(knobs: dict[str, Any], mode: str, attn: str) -> None:
    """The latent is the block's input. The key bias drops, the value bias moves into the output bias."""
    d = D // H
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": D, "n_layer": LAYERS, "n_head": H, **knobs}
    gpt2 = randomize(
        transformers.GPT2LMHeadModel._from_config(transformers.GPT2Config(**sizes), attn_implementation=attn)
    )
    latent = {"kv_lora_rank": D, "qk_nope_head_dim": d, "v_head_dim": d}
    model = build("gpt2_mla", attn, mode, **latent, **knobs)
    copy_rest(model, gpt2)
    with torch.no_grad():
        for ours, theirs in zip(model.transformer.h, gpt2.transformer.h, strict=True):
            query, key, value = theirs.attn.c_attn.weight.T.split(D)
            query_bias, _, value_bias = theirs.attn.c_attn.bias.split(D)
            ours.attn.q_proj.weight.copy_(query)
            ours.attn.q_proj.bias.copy_(query_bias)
            ours.attn.kv_a_proj_with_mqa.weight.copy_(torch.eye(D))
            stacked = torch.cat([key.view(H, d, D), value.view(H, d, D)], dim=1)
            ours.attn.kv_b_proj.weight.copy_(stacked.flatten(0, 1))
            output = theirs.attn.c_proj.weight.T
            ours.attn.o_proj.weight.copy_(output)
            ours.attn.o_proj.bias.copy_(theirs.attn.c_proj.bias + output @ value_bias)
    batch = left_padded()
    seen = batch["attention_mask"].bool()
    assert_close(model(**batch).logits[seen], gpt2(**batch).logits[seen], 1e-4)
    ids = tokens()
    extras = {"token_type_ids": ids.flip(0), "labels": ids}
    assert_close(model(ids, **extras).loss, gpt2(ids, **extras).loss, 1e-5)
    stepped = in_steps(model, {"input_ids": ids}, (5, 6, 11), DynamicCache(config=model.config))
    assert_close(stepped, gpt2(ids).logits, 1e-4)
    if not knobs:
        options = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(ids, **options), gpt2.generate(ids, **options))


def planes(weight: Tensor) -> Tensor:
    """Rows of heads, [heads, d, D], to rows of the shared rotary key, [heads * d, D]: first halves, second halves."""
    first, second = weight.chunk(2, dim=1)
    return torch.cat([first.flatten(0, 1), second.flatten(0, 1)])


def split_projections(source: Any, attention: Any, heads: int, groups: int, d: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight [heads, d, D] and bias [heads, d] of q, k and v with k and v repeated to all heads."""
    sizes = {"q": heads, "k": groups, "v": groups}
    if hasattr(attention, "qkv_proj"):
        fused = attention.qkv_proj.weight.split([count * d for count in sizes.values()])
        weights = dict(zip(sizes, fused, strict=True))
        biases = {name: torch.zeros(len(weight)) for name, weight in weights.items()}
    else:
        layers = {name: getattr(attention, f"{name}_proj") for name in sizes}
        weights = {name: layer.weight for name, layer in layers.items()}
        biases = {
            name: torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias for name, layer in layers.items()
        }
    return {
        name: (
            weights[name].view(count, d, -1).repeat_interleave(heads // count, 0),
            biases[name].view(count, d).repeat_interleave(heads // count, 0),
        )
        for name, count in sizes.items()
    }


def as_latent(source: Any, attn: str, mode: str, nope: int, **knobs: Any) -> Any:
    """The shared rotary key holds the keys of all heads, and a head's query is zero but in its own planes. The latent
    is the block's input, from which only values are made."""
    config = source.config
    heads, groups, hidden = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    d = source.model.layers[0].self_attn.head_dim
    frequencies = source.model.rotary_emb.inv_freq.tolist() * heads
    names = ("hidden_act", "rms_norm_eps", "tie_word_embeddings", "num_attention_heads")
    latent = {"kv_lora_rank": hidden, "qk_nope_head_dim": nope, "qk_rope_head_dim": heads * d, "v_head_dim": d}
    biases = {"q_bias": True, "kv_a_bias": True, "o_bias": True}
    rotary = {"rope_inv_freq": [frequencies] * LAYERS, "softmax_scale": d**-0.5}
    shared = {name: getattr(config, name) for name in names}
    model = build("llama_mla", attn, mode, **latent, **biases, **rotary, **shared, **knobs)
    copy_rest(model, source)
    with torch.no_grad():
        for ours, theirs in zip(model.model.layers, source.model.layers, strict=True):
            parts = split_projections(source, theirs.self_attn, heads, groups, d)
            attention = ours.self_attn
            query, query_bias = torch.zeros(heads, nope + heads * d, hidden), torch.zeros(heads, nope + heads * d)
            for i in range(heads):
                own = torch.zeros(heads, d, hidden + 1)
                own[i] = torch.cat([parts["q"][0][i], parts["q"][1][i, :, None]], dim=-1)
                query[i, nope:], query_bias[i, nope:] = planes(own)[:, :-1], planes(own)[:, -1]
            attention.q_proj.weight.copy_(query.flatten(0, 1))
            attention.q_proj.bias.copy_(query_bias.flatten())
            key, key_bias = parts["k"]
            attention.kv_a_proj_with_mqa.weight.copy_(torch.cat([torch.eye(hidden), planes(key)]))
            attention.kv_a_proj_with_mqa.bias.copy_(torch.cat([torch.zeros(hidden), planes(key_bias[..., None])[:, 0]]))
            value, value_bias = parts["v"]
            unused = torch.randn(heads, nope, hidden)  # met by a query of zeros
            attention.kv_b_proj.weight.copy_(torch.cat([unused, value], dim=1).flatten(0, 1))
            output = theirs.self_attn.o_proj
            attention.o_proj.weight.copy_(output.weight)
            bias = 0.0 if output.bias is None else output.bias
            attention.o_proj.bias.copy_(bias + output.weight @ value_bias.flatten())
    return model


RELATIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "llama with biases": ({"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True}, {"mlp_bias": True}),
    "qwen2": ({"rms_norm_eps": 1e-3}, {}),
    "mistral": ({"sliding_window": 4}, {"sliding_window": 4}),
    "gemma": ({"head_dim": 24}, {"norm_gain_offset": 1.0, "embedding_multiplier": D**0.5}),
    "phi3": ({"pad_token_id": 0}, {"fused_gate_up": True}),
}


def relative(name: str, attn: str) -> Any:
    sizes = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H, "num_key_value_heads": 2}
    more = {"vocab_size": VOCAB, "intermediate_size": 80, "max_position_embeddings": 64, "initializer_range": 0.1}
    no_tokens = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.AutoConfig.for_model(
        name.partition(" ")[0], **sizes, **more, **no_tokens, **RELATIVES[name][0]
    )
    return randomize(transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attn))


@both_functions
@both_ways
@pytest.mark.parametrize("nope", [0, 6])
@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_of_llama_with_all_keys_in_the_rotary_key(name: str, nope: int, mode: str, attn: str) -> None:
    source = relative(name, attn)
    model = as_latent(source, attn, mode, nope, **RELATIVES[name][1])
    batch = left_padded(length=14)
    seen = batch["attention_mask"].bool()
    assert_close(model(**batch).logits[seen], source(**batch).logits[seen], 1e-4)
    ids = tokens(length=14)
    expected = source(ids, labels=ids)
    actual = model(ids, labels=ids)
    assert_close(actual.logits, expected.logits, 1e-4)
    assert_close(actual.loss, expected.loss, 1e-4)
    stepped = in_steps(model, {"input_ids": ids}, (5, 6, 14), DynamicCache(config=model.config))
    assert_close(stepped, expected.logits, 1e-4)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, actual.logits)


def test_gemmas_embedding_multiplies_after_loading(tmp_path: Path) -> None:
    model = build("llama_mla", **RELATIVES["gemma"][1])
    model.save_pretrained(tmp_path)
    loaded = LlamaMLAForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert_close(loaded.model.embed_tokens(tokens()), loaded.model.embed_tokens.weight[tokens()] * D**0.5, 1e-6)


def test_gemmas_norm_and_embedding_round_as_gemma_does() -> None:
    source = relative("gemma", "sdpa").to(torch.bfloat16)
    model = as_latent(source.float(), "sdpa", "expand", 0, **RELATIVES["gemma"][1]).to(torch.bfloat16)
    source = source.to(torch.bfloat16)
    ids = tokens()
    hidden = model.model.embed_tokens(ids)
    assert torch.equal(hidden, source.model.embed_tokens(ids))
    assert torch.equal(model.model.norm(hidden), source.model.norm(hidden))
    assert torch.equal(model.model.layers[0].mlp(hidden), source.model.layers[0].mlp(hidden))


# --- rotary positions stay precise


def angles_at(model: Any, position: int) -> Tensor:
    """Cosines and sines of every layer, [LAYERS, 2, planes]."""
    rotaries = [module.rotary for module in model.modules() if isinstance(module, LatentAttention)]
    return torch.stack([torch.stack(rotary(torch.tensor([[position]]))).flatten(1) for rotary in rotaries])


def test_angles_are_exact_however_the_model_came_to_be(tmp_path: Path) -> None:
    far = 100_000
    model = build("llama_mla")
    model.save_pretrained(tmp_path)
    exact = torch.tensor(FREQUENCIES, dtype=torch.float32) * far
    expected = torch.stack([exact.cos(), exact.sin()], dim=1)
    models = {
        "built": model,
        "bfloat16": build("llama_mla").to(torch.bfloat16),
        "half and back": build("llama_mla").half().float(),
        "loaded": LlamaMLAForCausalLM.from_pretrained(tmp_path),
        "loaded in bfloat16": LlamaMLAForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16),
        "loaded by a map": LlamaMLAForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu"),
        "loaded, then cast": LlamaMLAForCausalLM.from_pretrained(tmp_path).to(torch.bfloat16),
    }
    with torch.device("meta"):
        empty = LlamaMLAForCausalLM(make_config("llama_mla"))
    models["from meta"] = empty.to_empty(device="cpu")
    for name, other in models.items():
        assert torch.equal(angles_at(other, far), expected), name
        assert not any("inv_freq" in key for key in other.state_dict())
    wrong = (torch.tensor(FREQUENCIES).bfloat16().float() * far).cos()
    assert (wrong - expected[:, 0]).abs().max() > 0.5  # what is avoided


def test_positions_only_matter_by_their_difference_far_out() -> None:
    model = build("llama_mla").to(torch.bfloat16)
    position_ids = torch.arange(11)[None]
    near, far = (model(tokens(1), position_ids=position_ids + offset).logits.float() for offset in (0, 100_000))
    assert torch.nn.functional.cosine_similarity(near, far, dim=-1).min() > 0.99


# --- training, precision, compilation


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    # What comes out at a padding token is arbitrary: it predicts nothing here.
    answers = torch.nn.functional.pad(batch["attention_mask"][:, :-1], (1, 0)) == 1
    model(**batch, labels=batch["input_ids"].masked_fill(~answers, -100)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@both_functions
@both_families
def test_gradients_are_the_same_with_checkpointing_and_either_way(family: str, attn: str) -> None:
    model = build(family, attn, latent_norm=True)
    expected = gradients(model, left_padded())
    assert expected.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in expected.values())
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if "kv_" in name and "weight" in name)
    for reentrant in (False, True):
        checkpoint_activations(model, reentrant)
        actual = gradients(model, left_padded())
        assert all(torch.allclose(actual[name], expected[name], atol=1e-6) for name in expected)
    model = build(family, attn, "absorb", latent_norm=True)
    actual = gradients(model, left_padded())
    assert all(torch.allclose(actual[name], expected[name], atol=1e-5) for name in expected)


@both_functions
@both_families
def test_training_with_dropout_lowers_the_loss(family: str, attn: str) -> None:
    attention = "attn_pdrop" if family == "gpt2_mla" else "attention_dropout"
    dropouts = {attention: 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
    model = build(family, attn, initializer_range=0.02, **dropouts).train()
    ids = tokens(batch=4, length=24)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5


@both_functions
@both_ways
@both_families
def test_bfloat16_is_near_float32(family: str, mode: str, attn: str) -> None:
    model = build(family, attn, mode, initializer_range=0.1)
    expected = model(**left_padded()).logits
    actual = model.to(torch.bfloat16)(**left_padded()).logits
    assert actual.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(actual.float(), expected, dim=-1).min() > 0.999
    assert model.generate(tokens(), max_new_tokens=4).shape == (2, 15)


# family, knob, and the part of the block whose output is set to zero: what is left is linear in the dropped numbers
DROPOUTS = [
    ("gpt2_mla", "attn_pdrop", ""),
    ("gpt2_mla", "embd_pdrop", ""),
    ("gpt2_mla", "resid_pdrop", "mlp.c_proj"),
    ("gpt2_mla", "resid_pdrop", "attn.o_proj"),
    ("llama_mla", "attention_dropout", ""),
    ("llama_mla", "embd_pdrop", ""),
    ("llama_mla", "resid_pdrop", "mlp.down_proj"),
    ("llama_mla", "resid_pdrop", "self_attn.o_proj"),
]


@both_functions
@both_ways
@pytest.mark.parametrize(("family", "knob", "silent"), DROPOUTS)
def test_every_dropout_is_applied_in_training_only(family: str, knob: str, silent: str, mode: str, attn: str) -> None:
    model = build(family, attn, mode, **{knob: 0.3})
    base = getattr(model, model.base_model_prefix)
    block = base.h[0] if family == "gpt2_mla" else base.layers[0]
    attention = block.attn if family == "gpt2_mla" else block.self_attn
    torch.manual_seed(0)
    x, position_ids = torch.randn(1, 9, D), torch.arange(9)[None]
    if silent:
        for parameter in block.get_submodule(silent).parameters():
            parameter.data.zero_()

    def output() -> Tensor:
        if knob == "embd_pdrop":
            return base(tokens(), output_hidden_states=True).hidden_states[0].detach()
        if knob == "resid_pdrop":
            return block(x, position_ids=position_ids).detach()
        return attention(x, position_ids=position_ids)[0].detach()

    expected = output()
    assert torch.equal(output(), expected)
    model.train()
    outputs = torch.stack([output() for _ in range(200)])
    assert outputs.std(0).max() > 0
    assert_close(outputs.mean(0), expected, 0.25 * expected.abs().max().item())


def test_initial_weights_follow_the_originals() -> None:
    config = make_config("gpt2_mla", n_embd=256, n_layer=8, initializer_range=0.02)
    block = GPT2MLAForCausalLM(config).transformer.h[3]
    attention = block.attn
    for projection in (attention.o_proj, block.mlp.c_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.1)
    assert attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert attention.q_proj.bias.abs().max() == 0
    for offset in (0.0, 1.0):
        model = LlamaMLAForCausalLM(make_config("llama_mla", norm_gain_offset=offset, latent_norm=True))
        layer = model.model.layers[0]
        assert torch.equal(layer.input_layernorm.weight, torch.full((D,), 1 - offset))
        assert torch.equal(layer.self_attn.kv_a_layernorm.weight, torch.ones(R_LATENT))


@both_functions
@both_families
def test_compiles_into_one_graph(family: str, attn: str) -> None:
    torch.compiler.reset()
    model = build(family, attn)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for length in (9, 15):
            batch = left_padded(length=length)
            expected = model(**batch, use_cache=False).logits
            assert_close(compiled(**batch, use_cache=False).logits, expected, 1e-5)


@both_families
def test_compiled_generation_with_a_static_cache(family: str) -> None:
    torch.compiler.reset()
    model = build(family)
    options = {"max_new_tokens": 6, "do_sample": False}
    compile_config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compile_config._compile_all_devices = True  # transformers compiles on accelerators only, unless told
    static = {"cache_implementation": "static", "compile_config": compile_config}
    assert torch.equal(model.generate(tokens(), **options, **static), model.generate(tokens(), **options))


# --- decoding never expands the cache and never copies it

T = 512


class NewTensors(TorchDispatchMode):
    """Notes the sizes of all new memory, in numbers; the memory of `known` does not count."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.sizes: dict[int, int] = {}
        self.kept: list[Tensor] = []  # freed memory would be given out again under the same address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                storage = tensor.untyped_storage()
                self.sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
                self.kept.append(tensor)
        return result


def decode_step(model: Any, kind: str, padded: bool) -> tuple[Any, dict[str, Any]]:
    """A cache with T - 1 tokens in it and the arguments for the next one."""
    cache = make_cache(kind, model, T)
    batch = left_padded(1, T) if padded else {"input_ids": tokens(1, T), "attention_mask": torch.ones(1, T)}
    position_ids = batch.pop("position_ids", torch.arange(T)[None])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    prompt = slice(None, T - 1)
    model(
        ids[:, prompt], attention_mask=mask[:, prompt], position_ids=position_ids[:, prompt], **with_cache(model, cache)
    )
    step = {"input_ids": ids[:, -1:], "attention_mask": mask, "position_ids": position_ids[:, -1:]}
    return cache, step | with_cache(model, cache)


def positions(family: str) -> dict[str, Any]:
    return {"n_positions": T} if family == "gpt2_mla" else {}


def new_sizes(model: Any, kind: str, padded: bool) -> list[int]:
    """In a decoding step, largest first."""
    with torch.no_grad():
        cache, step = decode_step(model, kind, padded)
        held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        with NewTensors([*model.parameters(), *held]) as spy:
            model(**step)
    return sorted(spy.sizes.values(), reverse=True)


@both_functions
@both_caches
@pytest.mark.parametrize("padded", [False, True])
@both_families
def test_decoding_never_expands_nor_copies_the_cache(family: str, padded: bool, kind: str, attn: str) -> None:
    model = build(family, attn, **positions(family))
    sizes = new_sizes(model, kind, padded)
    entries = T * (R_LATENT + model.config.qk_rope_head_dim)
    assert entries < H * T * min(NOPE, VALUE)
    # The dynamic cache makes room for a token by a copy of its own.
    own = [entries] * LAYERS if kind == "dynamic" else []
    assert [size for size in sizes if size >= T * R_LATENT] == own


def test_the_spy_sees_an_expanded_cache() -> None:
    model = build("llama_mla", mode="expand")
    assert new_sizes(model, "static", False)[0] >= H * T * (NOPE + VALUE)


@pytest.mark.parametrize("mode", ["auto", "expand"])
@both_functions
@both_families
def test_compiled_decoding_is_the_same_and_never_expands(family: str, attn: str, mode: str) -> None:
    sizes: list[int] = []

    def note_sizes(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        values = {node: node.meta["val"] for node in graph.graph.nodes if "val" in node.meta}
        given = {v.untyped_storage()._cdata for n, v in values.items() if n.op == "placeholder" and is_tensor(v)}
        made = [v for v in tree_leaves(list(values.values())) if is_tensor(v)]
        sizes.extend(v.numel() for v in made if v.untyped_storage()._cdata not in given)
        return graph.forward

    with torch.no_grad():
        torch.compiler.reset()
        model = build(family, attn, mode, **positions(family))
        _, step = decode_step(model, "static", True)
        _, same_step = decode_step(model, "static", True)
        compiled = torch.compile(model, backend=aot_autograd(fw_compiler=note_sizes), fullgraph=True)
        assert_close(compiled(**step).logits, model(**same_step).logits, 1e-5)
    assert (max(sizes) >= H * T * min(NOPE, VALUE)) == (mode == "expand")


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


# --- the attention interface


@contextmanager
def registered(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """An attention function as a user or an engine would register it, with the masks of sdpa."""
    ALL_ATTENTION_FUNCTIONS[name] = function
    ALL_MASK_ATTENTION_FUNCTIONS[name] = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    try:
        yield name
    finally:
        del ALL_ATTENTION_FUNCTIONS[name], ALL_MASK_ATTENTION_FUNCTIONS[name]


class Spy:
    """Attention that remembers how it was called."""

    def __init__(self, flat: bool = False) -> None:
        self.flat = flat
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        self.calls.append({"module": module, "query": query, "key": key, "value": value, **kwargs})
        output, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=kwargs["scaling"])
        return (output.flatten(0, 1).flatten(1) if self.flat else output), None  # engines return [tokens, H * size]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("value_size", [VALUE, 20])
@both_families
def test_a_registered_function_sees_plain_attention(family: str, value_size: int, flat: bool) -> None:
    spy, token = Spy(flat), object()
    with registered("spy", spy) as name:
        model = build(family, name, v_head_dim=value_size)
        expected = build(family, v_head_dim=value_size)
        batch, ends = {"input_ids": tokens()}, (9, 10, 11)
        logits = in_steps(model, batch, ends, DynamicCache(config=model.config))
        assert_close(logits, expected(tokens()).logits, 1e-5)
        base = getattr(model, model.base_model_prefix)
        base(tokens(), attention_instances=token)
    assert [call["key"].shape[2] for call in spy.calls[::LAYERS]] == [9, 10, 11, 11]
    for layer, call in enumerate(spy.calls[-LAYERS:]):
        assert call["attention_instances"] is token
        sizes = {(2, H, 11, model.config.head_dim)}
        assert {tuple(call[part].shape) for part in ("query", "key", "value")} == sizes
        assert (call["scaling"], call["dropout"]) == (model.config.softmax_scale, 0.0)
        assert torch.equal(call["position_ids"], torch.arange(11)[None])
        module = call["module"]
        assert (module.num_key_value_groups, module.head_dim, module.layer_idx) == (1, model.config.head_dim, layer)
        assert (module.is_causal, module.scaling) == (True, call["scaling"])
    assert model._supports_attention_backend


def test_absorbing_is_refused_with_a_function_of_somebody_else() -> None:
    with registered("spy", Spy()) as name:
        model = build("llama_mla", name, "absorb")
        with pytest.raises(ValueError, match="works with attn_implementation 'eager' and 'sdpa' only, got 'spy'"):
            model(tokens())


def test_a_users_own_sdpa_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    model = build("llama_mla", "sdpa")
    in_steps(model, {"input_ids": tokens()}, (10, 11), DynamicCache(config=model.config))
    assert len(spy.calls) == 2 * LAYERS


def test_an_attention_function_learns_of_the_window() -> None:
    spy = Spy()
    with registered("spy", spy) as name:
        build("llama_mla", name, sliding_window=5)(tokens())
    assert all(call["sliding_window"] == 5 for call in spy.calls)


def test_sdpa_without_a_mask_and_not_causal_sees_every_token() -> None:
    model = build("llama_mla", "sdpa")
    x, position_ids = torch.randn(2, 7, D), torch.arange(7)[None]
    attention = model.model.layers[0].self_attn
    outputs = []
    for mode in ("absorb", "expand"):
        attention.latent_attention_mode = mode
        outputs.append(attention(x, position_ids=position_ids, is_causal=False)[0])
        changed = attention(x.index_fill(1, torch.tensor(6), 0.0), position_ids=position_ids, is_causal=False)[0]
        assert (changed[:, 0] - outputs[-1][:, 0]).abs().max() > 1e-3
    assert_close(*outputs, 1e-5)


# --- Auto classes, here and as remote code


@both_families
def test_register_makes_every_auto_class_ours(family: str, tmp_path: Path) -> None:
    modeling.register()
    model = build(family)
    model.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).model_type == family
    for auto, cls in CLASSES[family].items():
        loaded = getattr(transformers, auto).from_pretrained(tmp_path)
        assert type(loaded) is cls
        assert getattr(loaded, "lm_head", None) is None or torch.equal(loaded(tokens()).logits, model(tokens()).logits)


@both_families
def test_state_dict_has_the_originals_names(family: str) -> None:
    names = set(build(family).state_dict())
    block = "transformer.h.1.attn." if family == "gpt2_mla" else "model.layers.1.self_attn."
    attention = {name.removeprefix(block) for name in names if name.startswith(block)}
    weights = {f"{layer}.weight" for layer in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}
    biased = ("q_proj", "o_proj") if family == "gpt2_mla" else ("kv_a_proj_with_mqa", "o_proj")
    assert attention == weights | {f"{layer}.bias" for layer in biased}


@both_families
def test_tied_embeddings_are_one_tensor(family: str, tmp_path: Path) -> None:
    for tied in (True, False):
        model = build(family, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path)
        loaded = CLASSES[family]["AutoModelForCausalLM"].from_pretrained(tmp_path)
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


@both_families
def test_auto_map_and_source_files_are_complete(family: str) -> None:
    prefix = modeling.FAMILIES[family].prefix
    names = modeling.auto_map(family)
    assert names.pop("AutoConfig") == f"configuration_{family}.{prefix}Config"
    assert names == {auto: f"modeling_{family}.{cls.__name__}" for auto, cls in CLASSES[family].items()}
    files = [path.name for path in modeling.source_files(family)]
    own = [f"configuration_{family}.py", f"modeling_{family}.py"]
    own += ["cross_attention.py", "gpt2_backbone.py"] if family == "gpt2_mla" else []
    kernels = [path.name for path in (Path(modeling.__file__).parent).glob("latent_kernel*.py")]
    shared = ["configuration_latent_attention.py", "latent_attention.py", "transformers_api.py", *kernels]
    shared += ["attention_names.py", "capped_attention.py", "distance_masks.py"]
    assert files == sorted([*own, *shared])
    texts = [path.read_text().replace(modeling.PACKED, "") for path in modeling.source_files(family)]
    assert not any("convert_attn" in text for text in texts)


@both_families
def test_classifier_reads_the_last_token(family: str) -> None:
    model = build(family, auto="AutoModelForSequenceClassification", num_labels=3)
    base = getattr(model, model.base_model_prefix)
    out = model(tokens(), labels=torch.tensor([0, 2]))
    assert_close(out.logits, model.score(base(tokens()).last_hidden_state[:, -1]), 1e-6)
    assert out.loss.isfinite()


@both_families
def test_a_checkpoint_loads_where_this_package_is_not_installed(family: str, tmp_path: Path) -> None:
    loaded = loads_without_the_package(build(family, latent_norm=True), tokens(), list(CLASSES[family]), tmp_path)
    assert loaded == [cls.__name__ for cls in CLASSES[family].values()]
