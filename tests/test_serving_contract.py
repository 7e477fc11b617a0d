"""What vLLM's and SGLang's transformers backends ask of a model's code, clause by clause, for each class of ours.

They register an attention function of their own under a name, set `_attn_implementation` to it, call the base model
(`auto_map.AutoModel`) with `use_cache=False` and what the function needs as keyword arguments, and keep K and V
themselves. vLLM also reads the source of a class to find where it calls that function. See "Writing custom models" in
vLLM's docs/models/supported_models.md and its vllm/model_executor/models/transformers (v0.33), and SGLang's
python/sglang/srt/models/transformers.py (v0.5.23).
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import config_of, save_tiny
from families import CAUSAL, LATENTS, OWN_MASKS, build, native_type, serves
from safetensors.torch import load_file
from tiny import HEADS, load, tiny_model
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from convert_attn import convert, modeling

SPY = "spy"
IDS = torch.arange(3, 15)[None]
# a conversion into each class: (source, options)
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2_gqa": ("gpt2", {"to": "gqa", "groups": 2}),
    "gpt2_mla": ("gpt2", {"to": "mla", "rank": 32}),
    "llama_mla": ("llama", {"to": "mla", "rank": 32, "rope_dim": 16}),
    "gpt_neox_gqa": ("gpt_neox", {"to": "gqa", "groups": 2}),
    "gptj_gqa": ("gptj", {"to": "gqa", "groups": 2}),
    "codegen_gqa": ("codegen", {"to": "gqa", "groups": 2}),
    "opt_gqa": ("opt", {"to": "gqa", "groups": 2}),
    "gpt_bigcode_gqa": ("gpt_bigcode", {"to": "gqa", "groups": 2}),
    "falcon_gqa": ("falcon", {"to": "gqa", "groups": 2}),
    "xglm_gqa": ("xglm", {"to": "gqa", "groups": 2}),
    "biogpt_gqa": ("biogpt", {"to": "gqa", "groups": 2}),
    "persimmon_gqa": ("persimmon", {"to": "gqa", "groups": 2}),
    **{name: (native_type(name), {"to": "mla", "cache_ratio": 0.5}) for name in LATENTS if serves(name)},
}
UNSERVED = OWN_MASKS | {name for name in LATENTS if not serves(name)}


def test_every_class_of_ours_is_here() -> None:
    assert MADE.keys() == CAUSAL.keys() - UNSERVED


@pytest.mark.parametrize("family", sorted(UNSERVED))
def test_a_mask_that_engines_do_not_learn_of_is_declared(family: str) -> None:
    model = build(family)
    assert model._supports_attention_backend is False
    assert model.base_model._supports_attention_backend is False


class Spy:
    """Attention as an engine does it, which notes what it is given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, module: torch.nn.Module, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """query [B, H, S, d], key and value [B, K, S, d] -> [B, S, H, d], causal where the module is."""
        self.calls.append({"module": module, "query": query, "key": key, "value": value, "mask": mask, **kwargs})
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        scores = query @ key.mT * kwargs["scaling"]
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) & bool(module.is_causal)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None


@pytest.fixture
def spy() -> Iterator[Spy]:
    """An attention function that is registered as an engine registers its own."""
    found = Spy()
    ALL_ATTENTION_FUNCTIONS.register(SPY, found)
    yield found
    del ALL_ATTENTION_FUNCTIONS._global_mapping[SPY]


@pytest.fixture(scope="module", params=MADE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted checkpoint of each class."""
    source, options = MADE[request.param]
    work = tmp_path_factory.mktemp(request.param)
    convert(save_tiny(work / "in", source), **options, output=work / "out")
    return work / "out"


def base_model(folder: Path) -> Any:
    """As the backends make it: AutoModel from the config, then the checkpoint's weights by name."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = SPY
    model = transformers.AutoModel.from_config(config).eval()
    whole = load(folder)
    model.load_state_dict(getattr(whole, whole.base_model_prefix).state_dict())
    return model


def test_auto_map_names_the_base_model(folder: Path) -> None:
    config = config_of(folder)
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= config["auto_map"].keys()
    for reference in config["auto_map"].values():
        file, _, name = reference.partition(".")
        tree = ast.parse((folder / f"{file}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_the_config_says_heads_and_their_size_as_attention_sees_them(folder: Path, spy: Spy) -> None:
    """Engines size their cache by these before any weight is there."""
    config = config_of(folder)
    base_model(folder)(IDS, use_cache=False)
    for call in spy.calls:
        assert call["query"].shape[1] == HEADS
        assert call["key"].shape[1] == call["value"].shape[1] == config["num_key_value_heads"]
        assert {call[part].shape[-1] for part in ("query", "key", "value")} == {config["head_dim"]}


def test_the_class_declares_that_attention_may_be_replaced(folder: Path) -> None:
    model = base_model_class(folder)
    assert model._supports_attention_backend is True
    assert load(folder)._supports_attention_backend is True


def base_model_class(folder: Path) -> Any:
    return transformers.AutoModel._model_mapping[type(transformers.AutoConfig.from_pretrained(folder))]


def first_layer(base: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The first layer of a base model and the one module in it that has attention."""
    layers = next(module for module in base.modules() if isinstance(module, torch.nn.ModuleList))
    inside = (module for module in layers[0].modules() if module is not layers[0])
    (attention,) = (module for module in inside if hasattr(module, "layer_idx"))
    return layers[0], attention


def test_every_forward_takes_keyword_arguments(folder: Path) -> None:
    """A level without them drops what the engine's attention needs."""
    model = load(folder)
    base = getattr(model, model.base_model_prefix)
    for module in (model, base, *first_layer(base)):
        kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD in kinds, type(module)


def calls_of_the_interface(forward: Any) -> list[ast.Call]:
    """Calls of a local name that was read from ALL_ATTENTION_FUNCTIONS, in the text of one function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            looked_up = ast.unparse(node.value.func) == "ALL_ATTENTION_FUNCTIONS.get_interface"
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {ast.unparse(target) for target in targets if looked_up}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]


def test_the_text_of_forward_shows_the_one_call_and_its_scale(folder: Path) -> None:
    """vLLM 0.33 refuses a layer where it does not: "does not dispatch through the Transformers attention interface"."""
    model = load(folder)
    _, attention = first_layer(getattr(model, model.base_model_prefix))
    (call,) = calls_of_the_interface(type(attention).forward)
    (scale,) = (keyword.value for keyword in call.keywords if keyword.arg == "scaling")
    assert isinstance(scale, ast.Attribute)
    assert ast.unparse(scale.value) == "self"
    assert isinstance(getattr(attention, scale.attr), float)


def test_keyword_arguments_reach_the_attention_function_of_every_layer(folder: Path, spy: Spy) -> None:
    token = object()
    model = base_model(folder)
    model(IDS, use_cache=False, attention_instances=token)
    assert [call["module"].layer_idx for call in spy.calls] == list(range(model.config.num_hidden_layers))
    for call in spy.calls:
        assert call["attention_instances"] is token
        assert call["module"].is_causal is True
        assert isinstance(call["scaling"], float)
        assert call.get("dropout", 0.0) == 0.0


def test_nothing_but_that_function_computes_attention(folder: Path, spy: Spy) -> None:
    """What it returns is what the layer goes on with, and with true attention the model computes what it should."""
    model = base_model(folder)
    found = model(IDS, use_cache=False).last_hidden_state
    whole = load(folder)
    expected = getattr(whole, whole.base_model_prefix)(IDS).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_positions_are_taken_from_the_engine(folder: Path, spy: Spy) -> None:
    """Engines run parts of sequences: positions come with the tokens, no cache tells them."""
    model = base_model(folder)
    model(IDS, use_cache=False, position_ids=torch.arange(IDS.shape[1])[None])
    model(IDS[:, 5:], use_cache=False, position_ids=torch.arange(5, IDS.shape[1])[None])
    first, second = spy.calls[0], spy.calls[model.config.num_hidden_layers]
    for part in ("query", "key", "value"):  # the first layer sees nothing but its own tokens
        torch.testing.assert_close(first[part][:, :, 5:], second[part], atol=1e-5, rtol=1e-5)


def test_no_mask_is_made_for_an_engine_that_knows_its_own(folder: Path, spy: Spy) -> None:
    base_model(folder)(IDS, use_cache=False)
    assert all(call["mask"] is None for call in spy.calls)


def test_one_flat_batch_of_hidden_states_is_the_output(folder: Path, spy: Spy) -> None:
    """Backends take element 0 of what the base model returns, with return_dict off."""
    output = base_model(folder)(inputs_embeds=torch.zeros(1, 4, 64), use_cache=False, return_dict=False)
    assert output[0].shape == (1, 4, 64)


def test_the_change_is_in_the_base_model_alone(folder: Path) -> None:
    """The backends have a head of their own: over the base model there is nothing but one map, in some with a bias."""
    whole = load(folder)
    outside = {name for name, _ in whole.named_parameters() if not name.startswith(whole.base_model_prefix)}
    head = whole.get_output_embeddings()
    (name,) = (name for name, module in whole.named_modules() if module is head)
    assert outside <= {f"{name}.weight", f"{name}.bias"}
    hidden = getattr(whole, whole.base_model_prefix)(IDS).last_hidden_state
    torch.testing.assert_close(head(hidden), whole(IDS).logits)


def test_no_weight_is_among_those_to_be_ignored(folder: Path) -> None:
    """vLLM drops what these patterns are found in, known or not; in GPT-2's own, c_attn.bias is."""
    model = load(folder)
    for holder in (model, getattr(model, model.base_model_prefix)):
        for pattern in holder._keys_to_ignore_on_load_unexpected or []:
            assert not [name for name in holder.state_dict() if re.search(pattern, name)]
            assert re.search(pattern, "transformer.h.0.attn.bias")


def test_the_head_is_called_as_engines_call_it(folder: Path) -> None:
    """They rename what is stored as the base model's class is told to; a head under another name stops them."""
    modeling.register()
    with torch.device("meta"):
        base = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder))
    renamings = [one for one in get_model_conversion_mapping(base) if isinstance(one, WeightRenaming)]
    names = set(load_file(folder / "model.safetensors"))
    for renaming in renamings:
        names = {renaming.rename_source_key(name)[0] for name in names}
    outside = {name for name in names if not name.startswith(f"{base.base_model_prefix}.")}
    assert outside <= {"lm_head.weight", "lm_head.bias"}


@pytest.mark.parametrize("family", [name for name, family in modeling.FAMILIES.items() if family.encoder])
def test_an_encoder_tells_the_engine_its_layers(family: str, spy: Spy) -> None:
    """No mask, no cache, and the layer's number in the module that calls the engine's function."""
    model, token = tiny_model(family), object()
    base = getattr(model, model.base_model_prefix)
    expected = base(IDS).last_hidden_state
    base.set_attn_implementation(SPY)
    first = base.config.pad_token_id + 1 if "roberta" in family else 0  # as vLLM does (transformers/legacy.py)
    places = torch.arange(first, first + IDS.shape[1])[None]
    found = base(IDS, use_cache=False, position_ids=places, attention_instances=token, return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [call["module"].layer_idx for call in spy.calls] == list(range(base.config.num_hidden_layers))
    for call in spy.calls:
        assert (call["module"].is_causal, call["mask"]) == (False, None)
        assert call["attention_instances"] is token
        assert call["key"].shape[1] == base.config.num_key_value_heads


@pytest.mark.parametrize("plan", ["base_model_tp_plan", "base_model_pp_plan"])
def test_parallel_plans_name_modules_that_are_there(plan: str, folder: Path) -> None:
    """An entry that matches nothing would leave a layer whole on every device."""
    model = load(folder)
    base = getattr(model, model.base_model_prefix)
    names = {
        ".".join("*" if part.isdecimal() else part for part in name.split("."))
        for name, _ in (*base.named_modules(), *base.named_parameters())  # experts are parameters
    }
    for pattern in getattr(model.config, plan, None) or {}:
        assert pattern in names, pattern


def test_a_native_model_meets_the_same_function(spy: Spy) -> None:
    """The spy is asked as transformers asks it: what is said above of ours holds of Llama too."""
    model = tiny_model("llama", kv_heads=2)
    expected = model.model(IDS).last_hidden_state
    model.set_attn_implementation(SPY)
    torch.testing.assert_close(model.model(IDS, use_cache=False).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert spy.calls
    assert len(calls_of_the_interface(type(model.model.layers[0].self_attn).forward)) == 1
