"""Model classes for conversions that no class of transformers can hold.

The files beside this one travel inside the checkpoints that need them, as remote code. This one stays here: it
makes the same classes known to the Auto classes of an installed `convert_attn`, so that no remote code is needed.

A new family is one entry in `FAMILIES` and its files `configuration_<model_type>.py`, `modeling_<model_type>.py`.
"""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from convert_attn.modeling.attention_names import PACKED
from convert_attn.modeling.lazy_registration import ClassName, after_import, takes_names, written_to_take_names
from convert_attn.modeling.offered_attention import offer_when_loaded

__all__ = ["FAMILIES", "PACKED", "Family", "auto_map", "register", "register_when_loaded", "source_files"]

_HERE = Path(__file__).parent
_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"

LANGUAGE_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
LABELLED = (*LANGUAGE_MODELS, "AutoModelForTokenClassification")
AUTO_MODELS = (*LABELLED, "AutoModelForQuestionAnswering")
ENCODERS = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)
PRETRAINED_ENCODERS = (*ENCODERS, "AutoModelForPreTraining")
TRANSLATORS = ("AutoModel", "AutoModelForSeq2SeqLM")
SPEECH = ("AutoModel", "AutoModelForSpeechSeq2Seq")
_TWO_STACKS = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")


@dataclass(frozen=True)
class Family:
    """The classes of one `model_type`: `<prefix>Config`, `<prefix>Model`, `<prefix>ForCausalLM` and so on."""

    prefix: str
    auto_models: tuple[str, ...] = AUTO_MODELS

    def class_name(self, auto_class: str) -> str:
        """`AutoModelForCausalLM` -> `<prefix>ForCausalLM`, `AutoModel` -> `<prefix>Model`."""
        if auto_class in _TWO_STACKS:
            return f"{self.prefix}ForConditionalGeneration"
        return self.prefix + (auto_class.removeprefix("AutoModel") or "Model")

    @property
    def causal(self) -> bool:
        """Whether it is a language model, with a cache; an encoder has none."""
        return "AutoModelForCausalLM" in self.auto_models

    @property
    def two_stacks(self) -> bool:
        """Whether it is an encoder-decoder, with a cache of its own tokens and one of the encoder's."""
        return any(auto in _TWO_STACKS for auto in self.auto_models)

    @property
    def encoder(self) -> bool:
        """Whether it has no cache."""
        return not self.causal and not self.two_stacks


FAMILIES: dict[str, Family] = {
    "bart_gqa": Family("BartGQA", TRANSLATORS),
    "bert_gqa": Family("BertGQA", PRETRAINED_ENCODERS),
    "biogpt_gqa": Family("BioGptGQA", LABELLED),
    "bloom_gqa": Family("BloomGQA", LABELLED),
    "distilbert_gqa": Family("DistilBertGQA", ENCODERS),
    "electra_gqa": Family("ElectraGQA", PRETRAINED_ENCODERS),
    "falcon_gqa": Family("FalconGQA", LABELLED),
    "gpt2_gqa": Family("GPT2GQA"),
    "gpt2_mla": Family("GPT2MLA", LANGUAGE_MODELS),
    "gpt_bigcode_gqa": Family("GPTBigCodeGQA", LABELLED),
    "gpt_neo_gqa": Family("GPTNeoGQA", LABELLED),
    "gpt_neox_gqa": Family("GPTNeoXGQA"),
    "gptj_gqa": Family("GPTJGQA", LANGUAGE_MODELS),
    "codegen_gqa": Family("CodeGenGQA", LANGUAGE_MODELS[:2]),
    "mpt_gqa": Family("MptGQA", LABELLED),
    "opt_gqa": Family("OPTGQA", (*LANGUAGE_MODELS, "AutoModelForQuestionAnswering")),
    "llama_mla": Family("LlamaMLA", LANGUAGE_MODELS),
    "marian_gqa": Family("MarianGQA", TRANSLATORS),
    "mbart_gqa": Family("MBartGQA", TRANSLATORS),
    "mt5_gqa": Family("MT5GQA", TRANSLATORS),
    "pegasus_gqa": Family("PegasusGQA", TRANSLATORS),
    "gpt_neo_mla": Family("GPTNeoMLA", LABELLED),
    "gpt_neox_mla": Family("GPTNeoXMLA", AUTO_MODELS),
    "phi_mla": Family("PhiMLA", LANGUAGE_MODELS[:2]),
    "stablelm_mla": Family("StableLmMLA", LANGUAGE_MODELS[:2]),
    "granite_mla": Family("GraniteMLA", LANGUAGE_MODELS[:2]),
    "olmo_mla": Family("OlmoMLA", LANGUAGE_MODELS[:2]),
    "starcoder2_mla": Family("Starcoder2MLA", LANGUAGE_MODELS[:2]),
    "nomic_bert_gqa": Family("NomicBertGQA", ENCODERS[:4]),
    "nemotron_mla": Family("NemotronMLA", LANGUAGE_MODELS[:2]),
    "gemma2_mla": Family("Gemma2MLA", LANGUAGE_MODELS[:2]),
    "gptj_mla": Family("GPTJMLA", LANGUAGE_MODELS),
    "codegen_mla": Family("CodeGenMLA", LANGUAGE_MODELS[:2]),
    "cohere_mla": Family("CohereMLA", LANGUAGE_MODELS[:2]),
    "qwen3_mla": Family("Qwen3MLA", LANGUAGE_MODELS[:2]),
    "qwen3_moe_mla": Family("Qwen3MoeMLA", LANGUAGE_MODELS[:2]),
    "olmo2_mla": Family("Olmo2MLA", LANGUAGE_MODELS[:2]),
    "gemma3_text_mla": Family("Gemma3MLA", LANGUAGE_MODELS[:2]),
    "cohere2_mla": Family("Cohere2MLA", LANGUAGE_MODELS[:2]),
    "bloom_mla": Family("BloomMLA", LANGUAGE_MODELS[:2]),
    "mpt_mla": Family("MptMLA", LANGUAGE_MODELS[:2]),
    "mixtral_mla": Family("MixtralMLA", LANGUAGE_MODELS[:2]),
    "qwen2_moe_mla": Family("Qwen2MoeMLA", LANGUAGE_MODELS[:2]),
    "olmoe_mla": Family("OlmoeMLA", LANGUAGE_MODELS[:2]),
    "glm4_mla": Family("Glm4MLA", LANGUAGE_MODELS[:2]),
    "olmo3_mla": Family("Olmo3MLA", LANGUAGE_MODELS[:2]),
    "exaone4_mla": Family("Exaone4MLA", LANGUAGE_MODELS[:2]),
    "arcee_mla": Family("ArceeMLA", LANGUAGE_MODELS[:2]),
    "falcon_mla": Family("FalconMLA", LANGUAGE_MODELS[:2]),
    "xglm_mla": Family("XGLMMLA", LANGUAGE_MODELS[:2]),
    "biogpt_mla": Family("BioGptMLA", LANGUAGE_MODELS[:2]),
    "gpt_bigcode_mla": Family("GPTBigCodeMLA", LANGUAGE_MODELS[:2]),
    "ernie4_5_moe_mla": Family("Ernie45MoeMLA", LANGUAGE_MODELS[:2]),
    "granitemoe_mla": Family("GraniteMoeMLA", LANGUAGE_MODELS[:2]),
    "ministral_mla": Family("MinistralMLA", LANGUAGE_MODELS[:2]),
    "glm4_moe_mla": Family("Glm4MoeMLA", LANGUAGE_MODELS[:2]),
    "apertus_mla": Family("ApertusMLA", LANGUAGE_MODELS[:2]),
    "opt_mla": Family("OPTMLA", (*LANGUAGE_MODELS, "AutoModelForQuestionAnswering")),
    "llama_mixture": Family("LlamaMixture", LANGUAGE_MODELS[:2]),
    "mistral_mixture": Family("MistralMixture", LANGUAGE_MODELS[:2]),
    "qwen2_mixture": Family("Qwen2Mixture", LANGUAGE_MODELS[:2]),
    "qwen3_mixture": Family("Qwen3Mixture", LANGUAGE_MODELS[:2]),
    "llama_slots": Family("LlamaSlots", LANGUAGE_MODELS[:2]),
    "llama_mla_slots": Family("LlamaMLASlots", LANGUAGE_MODELS[:2]),
    "mistral_slots": Family("MistralSlots", LANGUAGE_MODELS[:2]),
    "qwen2_slots": Family("Qwen2Slots", LANGUAGE_MODELS[:2]),
    "qwen3_slots": Family("Qwen3Slots", LANGUAGE_MODELS[:2]),
    "persimmon_gqa": Family("PersimmonGQA", LANGUAGE_MODELS[:2]),
    "roberta_gqa": Family("RobertaGQA", ENCODERS),
    "t5_gqa": Family("T5GQA", TRANSLATORS),
    "umt5_gqa": Family("UMT5GQA", TRANSLATORS),
    "whisper_gqa": Family("WhisperGQA", SPEECH),
    "xglm_gqa": Family("XGLMGQA", LANGUAGE_MODELS[:2]),
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
    """Make every family known to transformers' Auto classes. Imports transformers; may be repeated.

    A family's files are imported when its classes are asked for, or now where transformers does not take names.
    """
    _register_configs(importlib.import_module(_CONFIGS))
    _register_models(importlib.import_module(_MODELS))


def register_when_loaded() -> None:
    """Register as soon as transformers is imported, or, if it is not yet, right after its Auto classes are.

    Where classes have to be imported for it: right after transformers' `__init__` has run, when none of its modules
    is half loaded, so that ours can import them.
    """
    after_import("transformers", _register_with)
    offer_when_loaded()


def _register_with(transformers: ModuleType) -> None:
    if written_to_take_names(transformers):
        after_import(_CONFIGS, _register_configs)
        after_import(_MODELS, _register_models)
    else:
        register()


def _register_configs(configuration_auto: ModuleType) -> None:
    table: Any = configuration_auto.CONFIG_MAPPING
    by_name = takes_names(table)
    for model_type in FAMILIES:
        config = _class_name(auto_map(model_type)["AutoConfig"])
        if by_name:
            table.register(model_type, config, exist_ok=True)
        else:
            configuration_auto.AutoConfig.register(model_type, config.load(), exist_ok=True)


def _register_models(modeling_auto: ModuleType) -> None:
    for model_type in FAMILIES:
        names = {auto: _class_name(reference) for auto, reference in auto_map(model_type).items()}
        config = names.pop("AutoConfig")
        for auto, model in names.items():
            table: Any = getattr(modeling_auto, auto)._model_mapping
            if takes_names(table):
                table.register(config, model, exist_ok=True)
            else:
                getattr(modeling_auto, auto).register(config.load(), model.load(), exist_ok=True)


def _family(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise ValueError(f"no model family {model_type!r}, known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


def _class_name(reference: str) -> ClassName:
    """`file.Class` -> that class here."""
    module, _, name = reference.partition(".")
    return ClassName(f"{__name__}.{module}", name)
