"""Model types that there are no facts of: tried as a family's, by --arch-like; the self-check decides."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, tensors_of
from tiny import HEADS, assert_same_logits
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from convert_attn import convert, verify
from convert_attn.convert import archs
from convert_attn.convert.archs import adopted, architectures
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.verification.process import ISOLATED

QUICK: dict[str, Any] = {"calibration": None, "measure": False}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "eos_token_id": 0,
    "bos_token_id": 0,
}
# classes that are Llama's but for a name, for what a key's number says, or for what attention computes
CODE = """
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel


class StrangeConfig(LlamaConfig):
    model_type = "strange"


class StrangeModel(LlamaModel):
    config_class = StrangeConfig


class StrangeForCausalLM(LlamaForCausalLM):
    config_class = StrangeConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = StrangeModel(config)
        self.post_init()


class DeafConfig(LlamaConfig):
    model_type = "deaf"

    def __post_init__(self, **kwargs):
        self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)


class DeafModel(LlamaModel):
    config_class = DeafConfig


class DeafForCausalLM(LlamaForCausalLM):
    config_class = DeafConfig


class OtherConfig(LlamaConfig):
    model_type = "other"


class OtherModel(LlamaModel):
    config_class = OtherConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.self_attn.q_proj.register_forward_hook(lambda module, args, out: out.tanh())


class OtherForCausalLM(LlamaForCausalLM):
    config_class = OtherConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OtherModel(config)
        self.post_init()
"""
REGISTER = """
for config, model, head in (
    (StrangeConfig, StrangeModel, StrangeForCausalLM),
    (DeafConfig, DeafModel, DeafForCausalLM),
    (OtherConfig, OtherModel, OtherForCausalLM),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, head, exist_ok=True)
"""
TOY = Path(__file__).parent / "toy"


@pytest.fixture(autouse=True)
def _nothing_stays_adopted() -> Iterator[None]:
    yield
    archs._ADOPTED.clear()


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Classes that transformers knows, here and in processes that are started."""
    place = tmp_path_factory.mktemp("code")
    (place / "toy_family.py").write_text(CODE + REGISTER)  # the name that sitecustomize imports
    (place / "sitecustomize.py").write_text((TOY / "sitecustomize.py").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.setenv("PYTHONPATH", str(place), prepend=":")
        patch.delitem(sys.modules, "toy_family", raising=False)
        ISOLATED.stop()  # one that runs already has not heard of it
        yield importlib.import_module("toy_family")
        sys.modules.pop("toy_family", None)
    ISOLATED.stop()


def save(kind: str, folder: Path) -> Any:
    """A random model of a type; its key and value heads are equal in pairs of neighbours."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for layer in model.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            rows = projection.weight.data.unflatten(0, (HEADS, -1))
            rows[1::2] = rows[::2]
    model.save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(40)[None]).logits
    return found


def test_it_is_told_and_then_converts(strange: ModuleType, tmp_path: Path, command: Command) -> None:
    model = save("strange", tmp_path / "in")
    told = command(tmp_path / "in", "--to", "mqa", "--output", tmp_path / "out")
    assert told.code == 2
    assert "its blocks compute as llama's do: try --arch-like llama" in told.err
    assert not adopted()
    made = command(
        tmp_path / "in", "--to", "gqa", "--groups", "4", "--arch-like", "llama", "--output", tmp_path / "out"
    )
    assert made.code == 0, made.err
    result = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(result) is strange.StrangeForCausalLM
    assert result.config.num_key_value_heads == HEADS // 2
    assert_same_logits(logits(result), logits(model))
    block = config_of(tmp_path / "out")["convert_attn"]
    assert (block["arch_like"], block["source_model_type"]) == ("llama", "strange")
    assert "--arch-like llama" in block["command"]
    archs._ADOPTED.clear()  # as in another process: the result says how it was read
    assert verify(tmp_path / "out").figures["cached_numbers"] == [2 * 4 * 8] * 2
    again = convert(tmp_path / "out", to="mqa", output=tmp_path / "mqa", **QUICK)
    assert config_of(again.output)["num_key_value_heads"] == 1


def test_as_many_groups_as_heads_are_the_same_bytes(strange: ModuleType, tmp_path: Path) -> None:
    save("strange", tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=HEADS, arch_like="llama", output=tmp_path / "out", **QUICK)
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_class_that_computes_something_else_is_refused(strange: ModuleType, tmp_path: Path) -> None:
    save("other", tmp_path / "in")
    with pytest.raises(ConvertAttnError, match="does not compute what is read from the attention tensors"):
        convert(tmp_path / "in", to="mqa", arch_like="llama", output=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
    archs._ADOPTED.clear()
    with pytest.raises(UsageError) as caught:
        plan(tmp_path / "in", to="mqa")
    assert "--arch-like" not in str(caught.value)


def test_a_class_that_does_not_obey_its_config_is_refused(strange: ModuleType, tmp_path: Path) -> None:
    save("deaf", tmp_path / "in")
    with pytest.raises(UsageError, match="'deaf' does not obey num_key_value_heads: with 2 in its config it has 8"):
        plan(tmp_path / "in", to="gqa", groups=2, arch_like="llama")
    archs._ADOPTED.clear()
    with pytest.raises(UsageError, match="compute as llama's do, but the class of 'deaf' does not obey"):
        plan(tmp_path / "in", to="gqa", groups=2)


def test_what_is_no_such_case_is_said(strange: ModuleType, tmp_path: Path) -> None:
    save("strange", tmp_path / "in")
    with pytest.raises(UsageError, match=r"--arch-like lama is no family that is converted; choose one of .*llama"):
        plan(tmp_path / "in", to="mqa", arch_like="lama")
    with pytest.raises(UsageError, match="there are facts of model type 'llama'; drop --arch-like"):
        plan("sample:llama", to="mqa", arch_like="mistral")
    with pytest.raises(UsageError, match=r"--arch-like gpt2: '.*in' is not like it: StrangeModel has no attention"):
        plan(tmp_path / "in", to="mqa", arch_like="gpt2")
    assert not adopted()
    assert "strange" not in architectures()


def test_code_that_travels_with_a_checkpoint_goes_with_the_result(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        (tmp_path / "made_here.py").write_text(CODE.replace('"strange"', '"traveller"'))
        code = importlib.import_module("made_here")
        torch.manual_seed(0)
        model = code.StrangeForCausalLM(code.StrangeConfig(**SIZES)).eval()
        model.save_pretrained(folder)
    (folder / "modeling_strange.py").write_text(CODE.replace('"strange"', '"traveller"'))
    config = config_of(folder) | {
        "auto_map": {
            "AutoConfig": "modeling_strange.StrangeConfig",
            "AutoModelForCausalLM": "modeling_strange.StrangeForCausalLM",
        }
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"'traveller' is not known to transformers .*give --trust-remote-code"):
        plan(folder, to="mqa", arch_like="llama")
    made = convert(
        folder, to="gqa", groups=4, arch_like="llama", trust_remote_code=True, output=tmp_path / "out", **QUICK
    )
    assert config_of(made.output)["auto_map"] == config["auto_map"]
    assert (made.output / "modeling_strange.py").read_bytes() == (folder / "modeling_strange.py").read_bytes()
    result = AutoModelForCausalLM.from_pretrained(made.output, trust_remote_code=True)
    assert result.config.num_key_value_heads == 4
    assert verify(made.output, trust_remote_code=True).figures["cached_numbers"] == [2 * 4 * 8] * 2


def _without_files(told: dict[str, str]) -> dict[str, str]:
    """Of model types those that this transformers has and that there are no facts of."""
    return {kind: sentence for kind, sentence in told.items() if kind in {*CONFIG_MAPPING} - {*architectures()}}


def test_a_family_that_has_no_file_here_is_found_in_transformers(tmp_path: Path) -> None:
    """Real model types: one that is Llama around another MLP, and one whose class has no number of K/V heads."""
    for kind, sentence in _without_files(
        {
            "jais2": "blocks compute as llama's do: try --arch-like llama",
            "ernie": "blocks compute as bert's do, but the config of model type 'ernie' has no num_key_value_heads",
        }
    ).items():
        sizes = {key: value for key, value in SIZES.items() if kind == "jais2" or "key_value" not in key}
        config = AutoConfig.for_model(kind, **sizes | {"pad_token_id": None})
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        with pytest.raises(UsageError) as caught:
            plan(tmp_path / kind, to="mqa")
        assert sentence in str(caught.value)
        if "try" in sentence:
            made = convert(tmp_path / kind, to="mqa", arch_like="llama", output=tmp_path / "out", **QUICK)
            assert config_of(made.output)["num_key_value_heads"] == 1
