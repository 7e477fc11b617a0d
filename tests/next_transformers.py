"""A transformers in which the cache has got yet another name: run as a script, by test_cache_names.py.

Its source is rewritten while it is imported: the name that the cache has in it becomes NAME in forwards, mask
functions, outputs and generate(). Our models must find out, and decode with their cache.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from pathlib import Path
from types import CodeType
from typing import Any

from convert_attn.modeling import FAMILIES  # which imports no transformers

NAME = "kv_store"
_MODELS = {name.rpartition("_")[0].removesuffix("_text") for name, family in FAMILIES.items() if family.causal}
_PARTS = ("modeling_layers", "modeling_outputs", "masking_utils", "generation.utils", "utils.generic")
RENAMED = {f"transformers.{part}" for part in (*_PARTS, *(f"models.{m}.modeling_{m}" for m in _MODELS))}


def _present_name() -> str:
    (folder,) = importlib.util.find_spec("transformers").submodule_search_locations  # type: ignore[union-attr,misc]
    text = (Path(folder) / "masking_utils.py").read_text(encoding="utf-8")
    (name,) = set(re.findall(r"^    (\w+): Cache \| None,$", text, re.MULTILINE))
    return name


class _Renaming(importlib.machinery.SourceFileLoader):
    """Loads a module with the name replaced, but for lines that import: modules are called `cache`, too."""

    def get_code(self, fullname: str) -> CodeType:
        lines = self.get_data(self.path).decode().splitlines(keepends=True)
        renamed = [line if re.match(r"\s*(from|import) ", line) else PRESENT.sub(NAME, line) for line in lines]
        return compile("".join(renamed), self.path, "exec", dont_inherit=True)


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in RENAMED:
            return None
        spec = super().find_spec(name, path, target)
        assert spec is not None
        spec.loader = _Renaming(name, str(spec.origin))
        return spec


PRESENT = re.compile(rf"\b{_present_name()}\b")
sys.meta_path.insert(0, _Finder)


def main() -> None:
    """Decode with every head, and with transformers' own GPT-2 and Llama, to see that the new name is in force."""
    import inspect

    import torch
    import transformers
    from families import CAUSAL, HEADS, build, installed, tokens
    from transformers import AutoConfig, AutoModelForCausalLM

    from convert_attn.modeling import transformers_api

    assert transformers_api.CACHE_NAME == NAME, transformers_api.CACHE_NAME
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    models = [AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)) for kind in ("gpt2", "llama")]
    models += [build(family) for family in CAUSAL]
    for model in models:
        model.eval()
        model.generation_config.eos_token_id = None
        expected = model.generate(tokens(), **options, use_cache=False)
        for kind in ({}, {"cache_implementation": "static"}):
            assert torch.equal(model.generate(tokens(), **options, **kind), expected), type(model)
        assert NAME in model(tokens(), use_cache=True), type(model)
    for family, auto in HEADS:
        model = build(family, auto)
        for name in (NAME, "cache", "past_key_values"):
            cache = transformers.DynamicCache(config=model.config)
            model(tokens(length=4), **{name: cache})
            model(tokens(length=1), **{name: cache})
            assert cache.get_seq_length() == 5, (family, auto, name)
        position = list(inspect.signature(installed(family, auto).forward).parameters)
        if NAME in position:
            cache = transformers.DynamicCache(config=model.config)
            model(tokens(), *[None] * (position.index(NAME) - 2), cache)
            assert cache.get_seq_length() == 11, (family, auto)
    sys.stdout.write("decoded\n")


if __name__ == "__main__":
    main()
