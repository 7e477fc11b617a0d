"""Starting: nothing large is imported before it is needed, and the Auto classes know ours whatever came first."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LIGHT = "import sys; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), 'imported too early'"
_KNOWN = """
from convert_attn.modeling import FAMILIES, auto_map
for model_type in FAMILIES:
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


@pytest.mark.parametrize(
    "code",
    [
        "import convert_attn, transformers",
        "import transformers, convert_attn",
        "import transformers; transformers.AutoConfig; import convert_attn",
        "import transformers; transformers.AutoModel; import convert_attn",
        "import convert_attn; from transformers import AutoModelForCausalLM; import transformers",
        "from convert_attn import convert; import transformers",
    ],
)
def test_auto_classes_know_ours(code: str) -> None:
    run(f"{code}\n{_KNOWN}")


def test_public_names_stay_what_they_are_after_rooms_are_imported() -> None:
    run(
        "import convert_attn.convert.errors\n"
        "from convert_attn import convert, heal, inspect, push, verify, evaluate, Pushed\n"
        "from convert_attn import convert as again\n"
        "assert convert is again and convert.__module__.endswith('conversion.api')"
    )
