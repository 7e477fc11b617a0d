"""The cache of our classes under every name that transformers has for it, in the version that is installed.

Nothing here says which version has which name: what the installed classes of transformers do is what ours must do.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import (
    CAUSAL,
    FIRST_OF_KIND,
    HEADS,
    VOCABULARY,
    batches,
    build,
    first_block,
    hands_on,
    installed,
    installed_block,
    native_config,
    native_type,
    tokens,
    unused_argument,
)
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.utils import logging

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.eval.measures.decoding import cache_of, with_cache
from convert_attn.modeling import transformers_api

NAMES = ["cache", "past_key_values"]
every_head = pytest.mark.parametrize(("family", "auto"), HEADS)
every_family = pytest.mark.parametrize("family", CAUSAL)
every_name = pytest.mark.parametrize("name", NAMES)
# where a name says how a forward is called and nothing of what it does, families take turns
with_a_name = pytest.mark.parametrize(
    ("family", "name"), [(family, NAMES[number % len(NAMES)]) for number, family in enumerate(CAUSAL)]
)
ADDED: dict[str, Any] = {
    "a cache": DynamicCache(),
    "tuples": ((torch.ones(1), torch.ones(1)),),
    "a layer's tuple": (torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8)),
    "a list": [DynamicCache()],
    "a dict": {"decoder": DynamicCache()},
}


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def last(output: Any, head: str) -> Tensor:
    """What a head says of the last token."""
    first = next(value for value in output.values() if isinstance(value, Tensor))
    return first if head.endswith("SequenceClassification") else first[:, -1]


def place_of_the_cache(function: Any) -> int | None:
    """Its position among the arguments of an installed forward, after self; None where it has none."""
    names = list(inspect.signature(function).parameters)[1:]
    return next((names.index(name) for name in NAMES if name in names), None)


def argument_names(cls: Any) -> list[str]:
    """Of a class's forward, after self."""
    return list(inspect.signature(cls.forward).parameters)[1:]


@pytest.fixture
def silence() -> Iterator[None]:
    """No warning of Python's, and none that transformers logs, the ones it says only once included."""
    said: list[str] = []
    handler = logging.logging.Handler()
    handler.addFilter(lambda record: record.name != "transformers.activations")  # of kernels that are not installed
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger, verbosity = logging.get_logger("transformers"), logging.get_verbosity()
    logger.addHandler(handler)
    logging.set_verbosity_warning()
    logging.warning_once.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
        logging.set_verbosity(verbosity)
    assert said == []


# --- one cache, by keyword and by position, of every head


@every_name
@every_head
def test_a_keyword_of_either_name_is_the_cache(family: str, auto: str, name: str, silence: None) -> None:
    model, cache = build(family, auto), DynamicCache()
    expected = last(model(tokens(), use_cache=False), auto)
    model(tokens()[:, :6], **{name: cache})
    assert cache.get_seq_length() == 6
    for place in range(6, 11):
        step = model(tokens()[:, place : place + 1], **{name: cache})
    assert cache.get_seq_length() == 11
    close(last(step, auto), expected)


@every_head
def test_its_position_is_that_in_the_installed_class(family: str, auto: str, silence: None) -> None:
    model, cache = build(family, auto), DynamicCache()
    theirs = inspect.signature(installed(family, auto).forward)
    assert list(inspect.signature(type(model).forward).parameters) == list(theirs.parameters)
    place = place_of_the_cache(installed(family, auto).forward)
    if place is None:
        assert auto == "AutoModelForQuestionAnswering"  # takes it by keyword alone, in transformers too
        return
    model(tokens()[:, :10], *[None] * (place - 1), cache)
    step = model(tokens()[:, 10:], *[None] * (place - 1), cache)
    assert cache.get_seq_length() == 11
    close(last(step, auto), last(model(tokens(), use_cache=False), auto))


@every_head
def test_two_caches_are_refused_and_the_same_one_twice_is_not(family: str, auto: str, silence: None) -> None:
    model, cache = build(family, auto), DynamicCache()
    with pytest.raises(ValueError, match="two different caches were given"):
        model(tokens(), **dict.fromkeys(NAMES[:1], DynamicCache()), **dict.fromkeys(NAMES[1:], DynamicCache()))
    model(tokens(), **dict.fromkeys(NAMES, cache))
    assert cache.get_seq_length() == 11
    model(tokens()[:, :1], cache=cache, past_key_values=None)
    model(tokens()[:, :1], cache=None, past_key_values=cache)
    assert cache.get_seq_length() == 13
    place = place_of_the_cache(installed(family, auto).forward)
    if place is not None:
        for name in NAMES:
            with pytest.raises((ValueError, TypeError), match=r"two different caches were given|got \w+ twice"):
                model(tokens(), *[None] * (place - 1), cache, **{name: DynamicCache()})


@every_head
def test_the_output_has_the_fields_of_the_installed_classes(family: str, auto: str, silence: None) -> None:
    """transformers' own model of that kind says by which name generate() will look for the cache."""
    theirs = getattr(transformers, auto).from_config(native_config(family)).eval()(tokens(), use_cache=True)
    ours = build(family, auto)(tokens(), use_cache=True)
    assert list(ours.keys()) == list(theirs.keys())
    assert type(ours) is type(theirs)
    holding = [name for name, value in ours.items() if isinstance(value, Cache)]
    assert holding == [name for name, value in theirs.items() if isinstance(value, Cache)]
    for name in holding:
        assert getattr(ours, name) is ours[name] is cache_of(ours)


# --- a name that is not known


@pytest.mark.parametrize("given", ADDED)
@every_head
def test_a_cache_under_another_name_is_refused_at_every_level(family: str, auto: str, given: str) -> None:
    model = build(family, auto)
    base = getattr(model, model.base_model_prefix, model)
    block = first_block(base)
    (attention,) = (module for module in block.modules() if hasattr(module, "layer_idx") and module is not block)
    hidden, positions = torch.ones(1, 3, 32), torch.arange(3)[None]
    message = "kv_store holds a cache, but with transformers .* knows the cache as .*past_key_values"
    with pytest.raises(TypeError, match=message):
        model(tokens(), kv_store=ADDED[given])
    for level in (block, attention) if hands_on(block) else (attention,):
        with pytest.raises(TypeError, match=message):
            level(hidden, position_ids=positions, kv_store=ADDED[given])
    with torch.no_grad():
        model(tokens(), kv_store=None, pairs=(torch.ones(3), torch.ones(3)))


@every_name
@every_head
def test_tuples_of_old_are_refused_under_a_known_name(family: str, auto: str, name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a Cache, such as DynamicCache, got tuple"):
        build(family, auto)(tokens(), **{name: ADDED["tuples"]})


@every_family
def test_what_the_installed_class_declares_and_ours_has_no_use_for_is_refused(family: str) -> None:
    model = build(family, "AutoModel")
    hidden, positions, name = torch.ones(1, 3, 32), torch.arange(3)[None], unused_argument(family)
    if name is not None:
        with pytest.raises(TypeError, match=rf"has no use for {name}, which transformers .* declares"):
            first_block(model)(hidden, position_ids=positions, **{name: hidden})
    with pytest.raises(TypeError, match=r"takes \d+ arguments by position, got 30"):
        model(tokens(), *[None] * 29)
    with pytest.raises(TypeError, match="got input_ids twice"):
        model(tokens(), input_ids=tokens())


@every_family
def test_blocks_take_the_cache_where_the_installed_blocks_do(family: str) -> None:
    model, cache = build(family, "AutoModel"), DynamicCache()
    block = first_block(model)
    theirs, called = installed_block(family, block), dict[str, Any]()
    assert list(inspect.signature(type(block).forward).parameters) == list(inspect.signature(theirs.forward).parameters)
    names, name = argument_names(theirs), transformers_api.cache_argument(theirs.forward)
    assert name is not None
    place = names.index(name)
    block.register_forward_pre_hook(lambda _, args, kwargs: called.update(kwargs), with_kwargs=True)
    model(torch.ones(1, 3, dtype=torch.long), use_cache=False)
    known = dict(called)  # of what a block wants besides the cache
    before = [known.get(other) for other in names[1:place]]
    after = {other: value for other, value in known.items() if other not in (*names[: place + 1], *NAMES)}
    block(torch.ones(1, 3, 32), *before, cache, **after)
    assert cache.get_seq_length() == 3


# --- the cache is used


@pytest.mark.parametrize("padded", [False, True], ids=["", "left-padded"])
@pytest.mark.parametrize("ends", [range(4, 12), (3, 5, 9, 11)], ids=["tokens", "chunks"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@with_a_name
def test_cached_decode_equals_uncached(family: str, name: str, kind: str, ends: Any, padded: bool) -> None:
    model = build(family)
    mask = torch.ones_like(tokens())
    mask[0, : 3 * padded] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model(tokens(), attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, 16)
    start, found = 0, []
    for end in ends:
        piece = {"input_ids": tokens()[:, start:end], "position_ids": positions[:, start:end]}
        found.append(model(**piece, attention_mask=mask[:, :end], **{name: cache}).logits)
        start = end
    close(torch.cat(found, 1)[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("kind", [None, "static"])
@every_family
def test_generate_gives_the_same_with_and_without_a_cache(family: str, kind: str | None, silence: None) -> None:
    model = build(family)
    calls: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(tokens())
    mask[0, :3] = 0
    given = {"input_ids": tokens(), "attention_mask": mask}
    expected = model.generate(**given, **options, use_cache=False)
    assert calls == list(range(11, 19))
    calls.clear()
    assert torch.equal(model.generate(**given, **options, cache_implementation=kind), expected)
    assert calls == [11, *[1] * 7]  # one token a step: without a cache this text could not come out


@every_name
@every_family
def test_generate_goes_on_from_a_cache(family: str, name: str) -> None:
    """transformers warns of the old name here; both are understood."""
    if name not in ("past_key_values", transformers_api.CACHE_NAME):
        pytest.skip("this generate() has no such argument, and says so")
    model, options = build(family), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cache = cache_of(model(tokens()[:, :6], use_cache=True))
    assert torch.equal(model.generate(tokens(), **{name: cache}, **options), model.generate(tokens(), **options))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@every_family
def test_continuous_batching_generates_the_same(family: str, attn: str, slow: bool) -> None:
    """Its paged cache is no Cache, has one head size, and is filled by attention functions or by modules."""
    if attn == "eager" and not slow and family not in FIRST_OF_KIND:
        pytest.skip("what shows the weights is the same code for all of a kind: --slow")
    model = build(family, attn=attn)
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    greedy: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = [model.generate(torch.tensor([ids]), **greedy)[0, len(ids) :].tolist() for ids in prompts]
    options = transformers.GenerationConfig(**greedy, eos_token_id=VOCABULARY)
    small = transformers.ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=64)  # by default, all memory there is
    answers = model.generate_batch(prompts, options, small, progress_bar=False)
    found = sorted(answer.generated_tokens for answer in answers.values())
    if not batches(family) and not any(found):  # as theirs it stops
        return
    assert found == sorted(expected)


@with_a_name
def test_a_cached_step_compiles_into_one_graph(family: str, name: str) -> None:
    model, cache = build(family), StaticCache(build(family).config, 16)
    with torch.no_grad():
        expected = model(tokens(), use_cache=False).logits
        model(tokens()[:, :10], **{name: cache})
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        close(compiled(tokens()[:, 10:], **{name: cache}).logits, expected[:, 10:])
    torch._dynamo.reset()


# --- what is asked of the installed transformers


def test_a_name_is_that_of_the_argument_declared_as_a_cache() -> None:
    def renamed(self: Any, ids: Any, memory: Cache | None = None) -> None: ...
    def text(self: Any, ids: Any, memory: str = "") -> None: ...
    def none(self: Any, ids: Any, is_cached: bool = False) -> None: ...

    text.__annotations__["memory"] = "Optional[Cache]"
    assert transformers_api.cache_argument(renamed) == "memory"
    assert transformers_api.cache_argument(text) == "memory"
    assert transformers_api.cache_argument(none) is None


def test_a_class_of_ours_follows_one_whose_argument_was_renamed_and_moved() -> None:
    def next_forward(self: Any, memory: Cache | None = None, input_ids: Any = None, **kwargs: Any) -> None: ...

    class Ours:
        @transformers_api.answers_like(next_forward)
        def forward(self, *, kv_cache: Cache | None, input_ids: Any = None, **kwargs: Any) -> Any:
            return kv_cache, input_ids, kwargs

    cache = DynamicCache()
    assert Ours().forward(cache, 1, flag=2) == (cache, 1, {"flag": 2})
    for name in ("memory", *NAMES):
        assert Ours().forward(input_ids=1, **{name: cache}) == (cache, 1, {})
    with pytest.raises(TypeError, match="kv_cache holds a cache"):  # not even by the name within
        Ours().forward(kv_cache=cache)


def test_where_transformers_declares_no_cache_the_checkpoint_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_api, "create_causal_mask", lambda config, held: None)
    with pytest.raises(ImportError, match="declares no Cache among the arguments of create_causal_mask"):
        transformers_api._installed_name()


def test_the_next_name_is_found_out() -> None:
    """Every forward, mask function, output and generate() of transformers with a name that nobody has seen."""
    script = Path(__file__).with_name("next_transformers.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "decoded"


@every_family
def test_trainers_leave_the_cache_out_of_what_they_gather(family: str) -> None:
    """By a list in the config, or by a default that is for configs without one."""
    native = transformers.AutoConfig.for_model(native_type(family))
    ours = transformers.AutoConfig.for_model(family)
    missing = object()
    found = getattr(ours, "keys_to_ignore_at_inference", missing)
    assert found == getattr(native, "keys_to_ignore_at_inference", missing)


def test_a_cache_is_named_as_the_called_forward_names_it() -> None:
    class Foreign(torch.nn.Module):
        def forward(self, ids: Any, state: DynamicCache | None = None) -> None: ...

    class Undeclared(torch.nn.Module):
        def forward(self, ids: Any, **kwargs: Any) -> None: ...

    cache = DynamicCache()
    assert with_cache(Foreign(), cache) == {"state": cache}
    assert with_cache(Undeclared(), cache) == {transformers_api.CACHE_NAME: cache}
    with pytest.raises(ConvertAttnError, match=r"returned only logits: its decoding cannot be measured"):
        cache_of({"logits": torch.ones(1)})
