"""GPT-2 with grouped heads: equal to GPT-2 where it must be, and never repeating keys or values while decoding."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from remote import loads_without_the_package
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig, DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from convert_attn import modeling
from convert_attn.convert.heal.training.loop import checkpoint_activations
from convert_attn.eval.measures.decoding import cache_of, with_cache
from convert_attn.modeling.configuration_gpt2_gqa import GPT2GQAConfig
from convert_attn.modeling.grouped_attention import MAX_PACKED_TOKENS, eager_grouped_attention, packed_attention
from convert_attn.modeling.modeling_gpt2_gqa import (
    GPT2GQAAttention,
    GPT2GQAForCausalLM,
    GPT2GQAForQuestionAnswering,
    GPT2GQAForSequenceClassification,
    GPT2GQAForTokenClassification,
    GPT2GQAModel,
)

H, D, LAYERS, VOCAB = 8, 64, 2, 97
d = D // H

HEAD_CLASSES = {
    "AutoModel": GPT2GQAModel,
    "AutoModelForCausalLM": GPT2GQAForCausalLM,
    "AutoModelForSequenceClassification": GPT2GQAForSequenceClassification,
    "AutoModelForTokenClassification": GPT2GQAForTokenClassification,
    "AutoModelForQuestionAnswering": GPT2GQAForQuestionAnswering,
}


def settings(**changes: Any) -> dict[str, Any]:
    """A small GPT-2; weights large enough for attention to be far from uniform, no dropout, no early end of text."""
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": D, "n_layer": LAYERS, "n_head": H}
    dropouts = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return {**sizes, **dropouts, **tokens, "initializer_range": 0.2} | changes


def build(groups: int, attn: str = "sdpa", cls: Any = GPT2GQAForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = GPT2GQAConfig(num_key_value_heads=groups, **settings(**changes))
    model = cls._from_config(config, attn_implementation=attn).eval()
    with torch.no_grad():  # biases start at zero, which would hide a wrong one
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
    return model


def tokens(batch: int = 2, length: int = 11) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def left_padded(batch: int = 2, length: int = 11, pad: int = 4) -> dict[str, torch.Tensor]:
    """The first row has `pad` tokens less than the others, which are made up for on the left."""
    ids, mask = tokens(batch, length), torch.ones(batch, length, dtype=torch.long)
    ids[0, :pad] = 0
    mask[0, :pad] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def replicated(model: GPT2GQAForCausalLM, **changes: Any) -> GPT2LMHeadModel:
    """The plain GPT-2 in which the heads of a group each have their own copy of the group's keys and values."""
    groups = model.config.num_key_value_heads
    state = model.state_dict()
    for name in [name for name in state if ".c_attn." in name]:
        query, key, value = state[name].split([D, groups * d, groups * d], dim=-1)
        copies = [
            part.unflatten(-1, (groups, d)).repeat_interleave(H // groups, dim=-2).flatten(-2) for part in (key, value)
        ]
        state[name] = torch.cat([query, *copies], dim=-1)
    full = GPT2LMHeadModel._from_config(
        GPT2Config(**settings(**changes)), attn_implementation=model.config._attn_implementation
    )
    full.load_state_dict(state)
    return full.eval()


def assert_close(left: torch.Tensor, right: torch.Tensor, tolerance: float) -> None:
    assert left.shape == right.shape
    assert (left - right).abs().max().item() <= tolerance


# --- the config


def test_config_fills_in_heads_and_survives_json(tmp_path: Path) -> None:
    config = GPT2GQAConfig(n_embd=96, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim, config.hidden_size) == (6, 16, 96)
    GPT2GQAConfig(n_embd=96, n_head=6, num_key_value_heads=2).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"], written["num_key_value_heads"], written["head_dim"]) == ("gpt2_gqa", 2, 16)
    assert GPT2GQAConfig.from_pretrained(tmp_path).num_key_value_heads == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide n_head.*divisor of 8"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must divide n_head"),
        ({"n_head": 7}, "head_dim \\* n_head must be n_embd"),
        ({"head_dim": 4}, "head_dim \\* n_head must be n_embd"),
    ],
)
def test_config_refuses_heads_that_do_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT2GQAConfig(**settings(**changes))


def test_cross_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="no cross attention"):
        build(2, add_cross_attention=True)
    model = build(2)
    with pytest.raises(ValueError, match="no cross attention"):
        model(tokens(), encoder_hidden_states=torch.zeros(2, 3, D))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(tokens(), inputs_embeds=torch.zeros(2, 11, D))


# --- equal to GPT-2

KNOBS: list[dict[str, Any]] = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"activation_function": "relu", "n_inner": 80, "layer_norm_epsilon": 1e-2},
    {"tie_word_embeddings": False},
]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", KNOBS, ids=lambda changes: "-".join(changes) or "default")
def test_a_group_for_each_head_is_gpt2(attn: str, changes: dict[str, Any]) -> None:
    model = build(H, attn, **changes)
    gpt2 = GPT2LMHeadModel._from_config(GPT2Config(**settings(**changes)), attn_implementation=attn).eval()
    gpt2.load_state_dict(model.state_dict())
    assert (model.lm_head.weight is model.transformer.wte.weight) == ("tie_word_embeddings" not in changes)
    for batch in ({"input_ids": tokens()}, left_padded()):
        assert_close(model(**batch).logits, gpt2(**batch).logits, 1e-6)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("changes", KNOBS[:4], ids=lambda changes: "-".join(changes) or "default")
def test_groups_are_gpt2_with_repeated_heads(groups: int, attn: str, changes: dict[str, Any]) -> None:
    model = build(groups, attn, **changes)
    gpt2 = replicated(model, **changes)
    long = {"input_ids": tokens(length=MAX_PACKED_TOKENS + 5)}
    long_padded = left_padded(length=MAX_PACKED_TOKENS + 5)
    for batch in ({"input_ids": tokens()}, left_padded(), long, long_padded):
        assert_close(model(**batch).logits, gpt2(**batch).logits, 1e-5)


def test_loss_token_types_and_embeddings_are_gpt2s() -> None:
    model = build(2)
    gpt2 = replicated(model)
    ids = tokens()
    batch = {"input_ids": ids, "labels": ids, "token_type_ids": ids.flip(0)}
    assert_close(model(**batch).loss, gpt2(**batch).loss, 1e-5)
    embedded = model(inputs_embeds=model.transformer.wte(ids)).logits
    assert torch.equal(embedded, model(ids).logits)
    assert_close(model(ids, logits_to_keep=1).logits, model(ids).logits[:, -1:], 1e-5)
    assert isinstance(model(ids, return_dict=False), tuple)


@pytest.mark.parametrize("shape", ["one mask", "a mask per head"])
@pytest.mark.parametrize("new", [1, 5, MAX_PACKED_TOKENS + 1])
def test_the_two_attention_functions_agree_under_any_mask(new: int, shape: str) -> None:
    torch.manual_seed(0)
    groups, keys = 2, 24
    attention = GPT2GQAAttention(GPT2GQAConfig(num_key_value_heads=groups, **settings()), 0).eval()
    query = torch.randn(2, H, new, d)
    key, value = torch.randn(2, 2, groups, keys, d)
    allowed = torch.rand(2, H if shape == "a mask per head" else 1, new, keys) > 0.4
    allowed[..., 0] = True
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float).min)
    expected, weights = eager_grouped_attention(attention, query, key, value, additive)
    assert weights.shape == (2, H, new, keys)
    for mask in (allowed, additive):
        assert_close(packed_attention(attention, query, key, value, mask)[0], expected, 1e-6)
    full = torch.softmax(query @ key.repeat_interleave(H // groups, 1).mT * d**-0.5 + additive, -1)
    full = full @ value.repeat_interleave(H // groups, 1)
    assert_close(expected, full.transpose(1, 2), 1e-6)


@pytest.mark.parametrize("new", [4, MAX_PACKED_TOKENS + 4])
def test_without_a_mask_and_not_causal_every_token_is_seen(new: int) -> None:
    attention = GPT2GQAAttention(GPT2GQAConfig(num_key_value_heads=2, **settings()), 0).eval()
    query = torch.randn(2, H, new, d)
    key, value = torch.randn(2, 2, 2, new, d)
    expected, _ = eager_grouped_attention(attention, query, key, value, None)
    output, _ = packed_attention(attention, query, key, value, None, is_causal=False)
    assert_close(output, expected, 1e-6)


# --- caches and generation


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("groups", [1, 2, H])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_steps_equal_one_pass(groups: int, attn: str, kind: str) -> None:
    model = build(groups, attn)
    ids = tokens(length=40)
    cache = _cache(kind, model, 48)
    expected = model(ids, use_cache=False).logits
    start = 0
    for end in (6, 7, 8, 12, 40):  # a prompt, single tokens, a short chunk and a long one
        out = model(ids[:, start:end], **with_cache(model, cache))
        assert_close(out.logits, expected[:, start:end], 1e-4)
        start = end


def _cache(kind: str, model: Any, length: int) -> Any:
    return DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, length)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_cache_holds_the_groups_and_nothing_else(groups: int) -> None:
    model = build(groups)
    cache = cache_of(model(tokens(batch=1, length=23)))
    numbers = sum(t.untyped_storage().nbytes() // 4 for layer in cache.layers for t in (layer.keys, layer.values))
    assert numbers == LAYERS * 2 * groups * d * 23
    assert model(tokens(), use_cache=False).keys() == {"logits"}


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_gpt2s_with_every_cache(attn: str, beams: int) -> None:
    model = build(2, attn)
    batch = left_padded()
    del batch["position_ids"]  # generate makes them from the mask
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams}
    expected = replicated(model).generate(**batch, **options)
    assert torch.equal(model.generate(**batch, **options), expected)
    assert torch.equal(model.generate(**batch, **options, use_cache=False), expected)
    assert torch.equal(model.generate(**batch, **options, cache_implementation="static"), expected)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_left_padding_changes_nothing(attn: str) -> None:
    model = build(2, attn)
    batch = left_padded(pad=4)
    padded = model(**batch).logits
    alone = model(batch["input_ids"][:1, 4:]).logits
    assert_close(padded[:1, 4:], alone, 1e-5)
    assert_close(padded[1:], model(batch["input_ids"][1:]).logits, 1e-5)


def test_eager_equals_sdpa_and_shows_its_weights() -> None:
    model = build(2, "eager")
    batch = left_padded()
    eager = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in eager.attentions] == [(2, H, 11, 11)] * LAYERS
    expected = replicated(model)(**batch, output_attentions=True)
    for ours, theirs in zip(eager.attentions, expected.attentions, strict=True):
        assert_close(ours, theirs, 1e-5)
    assert len(eager.hidden_states) == LAYERS + 1
    model.set_attn_implementation("sdpa")
    allowed = batch["attention_mask"].bool()
    assert_close(model(**batch).logits[allowed], eager.logits[allowed], 1e-5)


# --- training, precision, compilation


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(attn: str, reentrant: bool) -> None:
    model = build(2, attn)
    expected = gradients(model, left_padded())
    checkpoint_activations(model, reentrant)
    actual = gradients(model, left_padded())
    assert expected["transformer.h.0.attn.c_attn.weight"].abs().max() > 0
    assert all(torch.allclose(actual[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_training_with_dropout_lowers_the_loss(attn: str) -> None:
    model = build(2, attn, attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1, initializer_range=0.02).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = tokens(batch=4, length=24)
    losses = []
    for _ in range(12):
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5


def test_initial_weights_follow_gpt2() -> None:
    config = GPT2GQAConfig(num_key_value_heads=2, **settings(n_embd=256, n_layer=8, initializer_range=0.02))
    block = GPT2GQAForCausalLM(config).transformer.h[3]
    for part in (block.attn, block.mlp):
        assert part.c_proj.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.05)
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.c_attn.bias.abs().max() == 0


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("upcast", [False, True])
def test_bfloat16_is_near_float32(attn: str, upcast: bool) -> None:
    model = build(2, attn, reorder_and_upcast_attn=upcast, initializer_range=0.1)
    expected = model(**left_padded()).logits
    actual = model.to(torch.bfloat16)(**left_padded()).logits
    assert actual.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(actual.float(), expected, dim=-1).min() > 0.999
    assert model.generate(tokens(), max_new_tokens=4).shape == (2, 15)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_compiles_into_one_graph(attn: str) -> None:
    torch.compiler.reset()
    model = build(2, attn, n_layer=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (left_padded(length=9), left_padded(length=MAX_PACKED_TOKENS + 9)):
            expected = model(**batch, use_cache=False).logits
            assert_close(compiled(**batch, use_cache=False).logits, expected, 1e-5)


def test_compiled_generation_with_a_static_cache() -> None:
    torch.compiler.reset()
    model = build(2, n_layer=1)
    options = {"max_new_tokens": 6, "do_sample": False}
    compile_config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compile_config._compile_all_devices = True  # transformers compiles on accelerators only, unless told
    static = {"cache_implementation": "static", "compile_config": compile_config}
    assert torch.equal(model.generate(tokens(), **options, **static), model.generate(tokens(), **options))


# --- decoding never repeats heads


class LargestNewTensor(TorchDispatchMode):
    """Notes the largest memory that any operation asks for, in numbers; the memory of `known` does not count."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, size)
        return result


T = 512


def decode_step(model: Any, kind: str, padded: bool) -> tuple[Any, dict[str, Any]]:
    """A cache with T - 1 tokens in it and the arguments for the next one."""
    cache = _cache(kind, model, T)
    batch = left_padded(1, T) if padded else {"input_ids": tokens(1, T), "attention_mask": torch.ones(1, T)}
    position_ids = batch.pop("position_ids", torch.arange(T)[None])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    prompt = slice(None, T - 1)
    model(
        ids[:, prompt], attention_mask=mask[:, prompt], position_ids=position_ids[:, prompt], **with_cache(model, cache)
    )
    step = {"input_ids": ids[:, -1:], "attention_mask": mask, "position_ids": position_ids[:, -1:]}
    return cache, step | with_cache(model, cache)


def largest_in_decode_step(model: Any, kind: str, padded: bool) -> int:
    with torch.no_grad():
        cache, step = decode_step(model, kind, padded)
        held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        with LargestNewTensor([*model.parameters(), *held]) as spy:
            model(**step)
    return spy.largest


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_decoding_never_repeats_keys_or_values(groups: int, attn: str, kind: str, padded: bool) -> None:
    model = build(groups, attn, n_positions=T)
    # The dynamic cache itself is copied when a token is added; that is G heads.
    assert 0 < largest_in_decode_step(model, kind, padded) <= max(groups * T * d, H * T)


def repeating_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """What must not happen."""
    key, value = (part.repeat_interleave(module.num_key_value_groups, dim=1) for part in (key, value))
    causal = mask is None and query.shape[2] > 1
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    return output.transpose(1, 2), None


@contextmanager
def registered(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """An attention function as a user or an engine would register it, with the masks of sdpa."""
    ALL_ATTENTION_FUNCTIONS[name] = function
    ALL_MASK_ATTENTION_FUNCTIONS[name] = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    try:
        yield name
    finally:
        del ALL_ATTENTION_FUNCTIONS[name], ALL_MASK_ATTENTION_FUNCTIONS[name]


def test_the_spy_sees_repeated_heads() -> None:
    with registered("repeating", repeating_attention) as name:
        assert largest_in_decode_step(build(2, name, n_positions=T), "static", False) >= H * T * d


@pytest.mark.parametrize("attn", ["eager", "sdpa", "repeating"])
def test_compiled_decoding_never_repeats_keys_or_values(attn: str) -> None:
    sizes: list[int] = []

    def note_sizes(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        values = {node: node.meta["val"] for node in graph.graph.nodes if "val" in node.meta}
        given = {v.untyped_storage()._cdata for n, v in values.items() if n.op == "placeholder" and _is_tensor(v)}
        made = [v for v in tree_leaves(list(values.values())) if _is_tensor(v)]
        sizes.extend(
            int(v.untyped_storage().nbytes()) // v.element_size()
            for v in made
            if v.untyped_storage()._cdata not in given
        )
        return graph.forward

    with registered("repeating", repeating_attention), torch.no_grad():
        torch.compiler.reset()
        model = build(2, attn, n_positions=T, n_layer=1)
        _, step = decode_step(model, "static", True)
        _, same_step = decode_step(model, "static", True)
        compiled = torch.compile(model, backend=aot_autograd(fw_compiler=note_sizes), fullgraph=True)
        assert_close(compiled(**step).logits, model(**same_step).logits, 1e-5)
    assert (max(sizes) >= H * T * d) == (attn == "repeating")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


# --- the attention interface


class Spy:
    """Attention that remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        self.calls.append({"module": module, "query": query, "key": key, "value": value, **kwargs})
        return packed_attention(module, query, key, value, mask, scaling=kwargs["scaling"])


def test_a_registered_function_is_called_with_everything_an_engine_needs() -> None:
    spy = Spy()
    token = object()
    with registered("spy", spy) as name:
        model = build(2, name, scale_attn_by_inverse_layer_idx=True)
        model.transformer(tokens(), attention_instances=token)
    assert len(spy.calls) == LAYERS
    for layer, call in enumerate(spy.calls):
        assert call["attention_instances"] is token
        assert (call["query"].shape, call["key"].shape) == ((2, H, 11, d), (2, 2, 11, d))
        assert call["key"].shape == call["value"].shape
        assert (call["scaling"], call["dropout"]) == (d**-0.5 / (layer + 1), 0.0)
        module = call["module"]
        assert (module.num_key_value_groups, module.head_dim, module.layer_idx) == (H // 2, d, layer)
        assert (module.is_causal, module.scaling) == (True, call["scaling"])
    assert model._supports_attention_backend


def test_a_users_own_sdpa_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    build(2, "sdpa")(tokens())
    assert len(spy.calls) == LAYERS


# --- Auto classes, here and as remote code


def test_register_makes_every_auto_class_ours(tmp_path: Path) -> None:
    modeling.register()
    modeling.register()  # may be repeated
    model = build(2)
    model.save_pretrained(tmp_path)
    assert isinstance(transformers.AutoConfig.from_pretrained(tmp_path), GPT2GQAConfig)
    for auto, cls in HEAD_CLASSES.items():
        loaded = getattr(transformers, auto).from_pretrained(tmp_path)
        assert type(loaded) is cls
        assert getattr(loaded, "lm_head", None) is None or torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_auto_map_and_source_files_are_complete() -> None:
    names = modeling.auto_map("gpt2_gqa")
    assert names["AutoConfig"] == "configuration_gpt2_gqa.GPT2GQAConfig"
    assert {auto: f"modeling_gpt2_gqa.{cls.__name__}" for auto, cls in HEAD_CLASSES.items()}.items() <= names.items()
    files = modeling.source_files("gpt2_gqa")
    assert [path.name for path in files] == [
        "configuration_gpt2_gqa.py",
        "cross_attention.py",
        "gpt2_backbone.py",
        "grouped_attention.py",
        "modeling_gpt2_gqa.py",
        "transformers_api.py",
    ]
    assert not any("convert_attn" in path.read_text() for path in files)
    with pytest.raises(ValueError, match=r"no model family 'gpt5', known are .*gpt2_gqa"):
        modeling.auto_map("gpt5")


def test_a_checkpoint_loads_where_this_package_is_not_installed(tmp_path: Path) -> None:
    loaded = loads_without_the_package(build(2), tokens(), list(HEAD_CLASSES), tmp_path)
    assert loaded == [cls.__name__ for cls in HEAD_CLASSES.values()]


@pytest.mark.parametrize("auto", [auto for auto in HEAD_CLASSES if auto != "AutoModel"])
def test_heads_give_gpt2s_logits_and_losses(auto: str) -> None:
    model = build(H, cls=HEAD_CLASSES[auto], num_labels=3)
    gpt2 = getattr(transformers, auto).from_config(GPT2Config(**settings(num_labels=3)))
    gpt2 = gpt2.eval()
    gpt2.load_state_dict(model.state_dict())
    labels = {
        "AutoModelForCausalLM": {"labels": tokens()},
        "AutoModelForSequenceClassification": {"labels": torch.tensor([0, 2])},
        "AutoModelForTokenClassification": {"labels": tokens() % 3},
        "AutoModelForQuestionAnswering": {
            "start_positions": torch.tensor([1, 2]),
            "end_positions": torch.tensor([3, 3]),
        },
    }[auto]
    ours, theirs = model(tokens(), **labels), gpt2(tokens(), **labels)
    for left, right in zip(ours.to_tuple()[:2], theirs.to_tuple()[:2], strict=True):
        assert_close(left, right, 1e-6)
