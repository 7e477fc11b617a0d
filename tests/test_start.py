"""Starting: nothing large is imported before it is needed, and the Auto classes know ours whatever came first."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LIGHT = "import sys; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), 'imported too early'"
_KNOWN = """
from convert_attn.modeling import FAMILIES, PACKED, auto_map
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
assert PACKED in ALL_ATTENTION_FUNCTIONS and PACKED in ALL_MASK_ATTENTION_FUNCTIONS
for model_type in TYPES:
    config = transformers.AutoConfig.for_model(model_type)
    assert type(config).__module__.startswith("convert_attn."), model_type
    for auto in auto_map(model_type).keys() - {"AutoConfig"}:
        assert type(config) in getattr(transformers, auto)._model_mapping, (model_type, auto)
"""


def run(code: str) -> None:
    """Run code in a process of its own.

    Raises:
        AssertionError: it failed, with what it said.
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import convert_attn",
        "import convert_attn.convert.cli",
        "from convert_attn.convert.cli.commands import cli; cli.main(['--help'], standalone_mode=False)",
    ],
)
def test_start_imports_nothing_large(code: str) -> None:
    run(f"{code}\n{_LIGHT}")


@pytest.mark.parametrize("collecting", [True, False])
def test_imports_leave_collection_as_it_was(collecting: bool) -> None:
    run(
        f"""
import gc
from convert_attn.convert.cli.quick_imports import quick_imports
(gc.enable if {collecting} else gc.disable)()
try:
    with quick_imports():
        assert not gc.isenabled()
        import no_such_module
except ImportError:
    assert gc.isenabled() == {collecting}
else:
    raise AssertionError
"""
    )


SOME, EVERY = "[*FAMILIES][::12]", "import convert_attn, transformers"


def _known(types: str) -> str:
    return _KNOWN.replace("TYPES", types)


@pytest.mark.parametrize(
    "code",
    [
        EVERY,
        "import transformers, convert_attn",
        "import transformers; transformers.AutoConfig; import convert_attn",
        "import transformers; transformers.AutoModel; import convert_attn",
        "import convert_attn; from transformers import AutoModelForCausalLM; import transformers",
        "from convert_attn import convert; import transformers",
    ],
)
def test_auto_classes_know_ours(code: str) -> None:
    run(f"{code}\n{_known('FAMILIES' if code == EVERY else SOME)}")


@pytest.mark.parametrize(
    "code",
    [
        "import convert_attn, transformers; transformers.AutoModel",
        "import transformers; transformers.AutoModel; import convert_attn",
    ],
)
def test_a_family_is_imported_when_it_is_asked_for(code: str) -> None:
    """Looking whether a class is known imports nothing; a model's class imports its own file."""
    run(
        f"""{code}
import pickle, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
prefix = "convert_attn.modeling."
def ours(kind):
    names = (name for name in sys.modules if name.endswith(("_gqa", "_mla")))
    return {{name for name in names if name.startswith(f"{{prefix}}{{kind}}_")}}
table = AutoModelForCausalLM._model_mapping
assert "llama_mla" in CONFIG_MAPPING and "llama_mla" in list(CONFIG_MAPPING)
assert LlamaConfig in table and table[LlamaConfig].__name__ == "LlamaForCausalLM" and len(table)
assert ours("configuration") == ours("modeling") == set()
config = AutoConfig.for_model("llama_mla")
assert type(config) in table and type(config) in AutoModel._model_mapping
assert ours("configuration") == {{f"{{prefix}}configuration_llama_mla"}} and ours("modeling") == set()
assert table[type(config)].__name__ == "LlamaMLAForCausalLM" and table.get(type(config), None) is table[type(config)]
assert ours("modeling") == {{f"{{prefix}}modeling_llama_mla"}}

class Other(table[type(config)]): ...
size = len(table._extra_content)
AutoModelForCausalLM.register(type(config), Other, exist_ok=True)
assert table[type(config)] is Other and size == len(table._extra_content)
convert_attn.modeling.register()
assert table[type(config)].__name__ == "LlamaMLAForCausalLM" and size == len(table._extra_content)
assert dict(pickle.loads(pickle.dumps(CONFIG_MAPPING))._extra_content)["llama_mla"] is type(config)

# as pipelines do, which read the classes' names
names = {{kind.__name__ for kind in table._extra_content.values()}}
assert "LlamaMLAForCausalLM" in names and "GPT2GQAForCausalLM" in names
assert all(isinstance(config, type) for config in table._extra_content)
"""
    )


@pytest.mark.parametrize(
    "code",
    [
        "import convert_attn\n"
        "convert_attn.modeling.written_to_take_names = convert_attn.modeling.takes_names = lambda _: False\n"
        "import transformers",
        "import collections, transformers\n"
        "from transformers.models.auto import configuration_auto, modeling_auto\n"
        "kinds = [kind for name, kind in vars(modeling_auto).items() if name.startswith('AutoModel')]\n"
        "for table in (configuration_auto.CONFIG_MAPPING, *(kind._model_mapping for kind in kinds)):\n"
        "    table._extra_content = collections.OrderedDict(table._extra_content)\n"
        "import convert_attn",
    ],
)
def test_where_transformers_takes_no_names_classes_are_registered(code: str) -> None:
    run(
        f"""{code}
import sys
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
assert isinstance(CONFIG_MAPPING._extra_content, dict) and "convert_attn.modeling.modeling_gpt2_gqa" in sys.modules
{_known(SOME)}"""
    )


def test_public_names_stay_what_they_are_after_rooms_are_imported() -> None:
    run(
        "import convert_attn.convert.errors\n"
        "from convert_attn import convert, heal, inspect, push, verify, evaluate, Pushed\n"
        "from convert_attn import convert as again\n"
        "assert convert is again and convert.__module__.endswith('conversion.api')"
    )
