"""Model classes for conversions that no class of transformers can hold.

The files beside this one travel inside the checkpoints that need them, as remote code. This one stays here: it
makes the same classes known to the Auto classes of an installed `convert_attn`, so that no remote code is needed.

A new family is one entry in `FAMILIES` and its files `configuration_<model_type>.py`, `modeling_<model_type>.py`.
"""

import ast
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["FAMILIES", "Family", "auto_map", "register", "register_when_loaded", "source_files"]

_HERE = Path(__file__).parent

LANGUAGE_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
AUTO_MODELS = (*LANGUAGE_MODELS, "AutoModelForTokenClassification", "AutoModelForQuestionAnswering")
ENCODERS = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)
PRETRAINED_ENCODERS = (*ENCODERS, "AutoModelForPreTraining")


@dataclass(frozen=True)
class Family:
    """The classes of one `model_type`: `<prefix>Config`, `<prefix>Model`, `<prefix>ForCausalLM` and so on."""

    prefix: str
    auto_models: tuple[str, ...] = AUTO_MODELS

    def class_name(self, auto_class: str) -> str:
        """`AutoModelForCausalLM` -> `<prefix>ForCausalLM`, `AutoModel` -> `<prefix>Model`."""
        return self.prefix + (auto_class.removeprefix("AutoModel") or "Model")

    @property
    def causal(self) -> bool:
        """Whether it is a language model, with a cache; an encoder has none."""
        return "AutoModelForCausalLM" in self.auto_models


FAMILIES: dict[str, Family] = {
    "bert_gqa": Family("BertGQA", PRETRAINED_ENCODERS),
    "distilbert_gqa": Family("DistilBertGQA", ENCODERS),
    "electra_gqa": Family("ElectraGQA", PRETRAINED_ENCODERS),
    "gpt2_gqa": Family("GPT2GQA"),
    "gpt2_mla": Family("GPT2MLA", LANGUAGE_MODELS),
    "gpt_neo_gqa": Family("GPTNeoGQA", (*LANGUAGE_MODELS, "AutoModelForTokenClassification")),
    "gpt_neox_gqa": Family("GPTNeoXGQA"),
    "gptj_gqa": Family("GPTJGQA", LANGUAGE_MODELS),
    "codegen_gqa": Family("CodeGenGQA", LANGUAGE_MODELS[:2]),
    "opt_gqa": Family("OPTGQA", (*LANGUAGE_MODELS, "AutoModelForQuestionAnswering")),
    "llama_mla": Family("LlamaMLA", LANGUAGE_MODELS),
    "roberta_gqa": Family("RobertaGQA", ENCODERS),
    "xlm_roberta_gqa": Family("XLMRobertaGQA", ENCODERS),
}


def auto_map(model_type: str) -> dict[str, str]:
    """The complete `auto_map` of a checkpoint: Auto class -> `file.Class` within the checkpoint.

    Complete, because `save_pretrained` alone names only the class that was saved, and serving engines ask for
    `AutoModel`.
    """
    family = _family(model_type)
    names = {"AutoConfig": f"configuration_{model_type}.{family.prefix}Config"}
    names |= {auto: f"modeling_{model_type}.{family.class_name(auto)}" for auto in family.auto_models}
    return names


def source_files(model_type: str) -> list[Path]:
    """The files that a checkpoint of this type must carry: those in `auto_map` and all that they import."""
    _family(model_type)
    pending = [f"configuration_{model_type}", f"modeling_{model_type}"]
    found: dict[str, Path] = {}
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = _HERE / f"{name}.py"
            pending += siblings(found[name])
    return sorted(found.values())


def siblings(file: Path) -> Iterator[str]:
    """What a file imports from beside it, wherever in it: what only some machines can import travels, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield node.module


def register() -> None:
    """Make every family known to transformers' Auto classes. Imports torch and transformers; may be repeated."""
    import transformers

    for model_type in FAMILIES:
        classes = {auto: _load(reference) for auto, reference in auto_map(model_type).items()}
        config = classes.pop("AutoConfig")
        transformers.AutoConfig.register(model_type, config, exist_ok=True)
        for auto, model in classes.items():
            getattr(transformers, auto).register(config, model, exist_ok=True)


def register_when_loaded() -> None:
    """Register at once where transformers is imported, else right after its `__init__` has run.

    Then none of its modules is half loaded, so that ours can import them.
    """
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Finds nothing itself: has the loader that others find for transformers register our classes afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of transformers, which others find; None of all else."""
        if fullname != "transformers":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            _register_after(spec.loader)
        return spec


def _register_after(loader: Loader) -> None:
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        register()

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _family(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise ValueError(f"no model family {model_type!r}, known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


def _load(reference: str) -> Any:
    """`file.Class` -> the class."""
    module, _, name = reference.partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
