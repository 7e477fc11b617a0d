"""A checkpoint: where it comes from, its config, its tensors, and the files beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING

from convert_attn import modeling
from convert_attn.convert.archs import adopt, architectures
from convert_attn.convert.checkpoint.carried import MODULES, kind_of, left_sentence, module_folders
from convert_attn.convert.checkpoint.files import listing, own_file, read_json
from convert_attn.convert.checkpoint.formats import check_no_adapter, no_config, no_model_type
from convert_attn.convert.checkpoint.quantised import QuantisedError, check_plain, leftover_warning, without_leftovers
from convert_attn.convert.checkpoint.shards import Weights, open_weights
from convert_attn.convert.checkpoint.tokenizer_code import TokenizerCode, tokenizer_code
from convert_attn.convert.classes.auto_classes import auto_class_of, tied_names
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.classes.language_model import Within, language_model
from convert_attn.convert.classes.stored_names import StoredNames, names_in
from convert_attn.convert.errors import ConvertAttnError, first_line

# keys of config.json that say how much memory classes and configs take, and more than any model has of them
_COUNTS = ("_size", "_dim", "_layers", "_layer", "_heads", "_head", "_embd", "_inner", "_positions", "_labels")
_MAX_COUNT = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        name: as the user typed it (Hub id, folder or sample:NAME).
        folder: where its files are.
        commit: the Hub commit the files belong to, None for a local folder.
        subfolder: where below the repository or folder they are.
        elsewhere: names of files of the repository, below the subfolder, that were not downloaded.
    """

    name: str
    folder: Path
    commit: str | None = None
    subfolder: str = ""
    elsewhere: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name to publish: a folder's own name, never the path to it."""
        return self.name if self.commit or self.name.startswith("sample:") else self.short_name

    @property
    def short_name(self) -> str:
        """The name that outputs are called after."""
        plain = self.name.removeprefix("sample:").rstrip("/")
        return (Path(plain).name or plain) if plain not in (".", "..", "") else self.folder.resolve().name


@dataclass(frozen=True)
class Source:
    """A checkpoint: its origin, its config.json, and its weights (opened on first use).

    Attributes:
        config: of the language model or encoder: config.json but for what it says of quantisation, or a part of it.
        leftovers: that, by the path of its key: plain weights may have it from a quantised model.
        within: where the language model's config is in that of a larger model; None: config.json is its own.
    """

    origin: Origin
    config: dict[str, Any]
    leftovers: dict[str, Any] = field(default_factory=dict)
    within: Within | None = None

    @classmethod
    def open(cls, origin: Origin) -> Source:
        """Read config.json.

        Raises:
            UsageError: no model there, or one that transformers would load with an adapter.
        """
        check_no_adapter(_top_names(origin.folder), origin.name)
        path = own_file(origin.folder, "config.json")
        if not path.is_file():
            raise no_config(listing(origin.folder), str(origin.folder))
        try:
            config = read_json(path)
        except (ValueError, RecursionError) as error:
            raise ConvertAttnError(f"config.json of '{origin.name}' is no JSON ({error})") from None
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise no_model_type(config, origin.name)
        classes = config.get("architectures") or []
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ConvertAttnError(
                f"config.json of '{origin.name}' has architectures {classes!r}, expected class names"
            )
        for key, value in config.items():
            if isinstance(value, int) and value > _MAX_COUNT and key.endswith(_COUNTS):
                raise ConvertAttnError(f"config.json of '{origin.name}' has {key} {value}, which no model has")
        plain, leftovers = without_leftovers(config)
        _adopt_again(plain)
        within = _known_within(plain, origin.name)
        return cls(origin, plain if within is None else within.config, leftovers, within)

    @property
    def whole(self) -> dict[str, Any]:
        """config.json, of which `config` may be a part."""
        return self.config if self.within is None else self.within.whole

    @property
    def auto_class(self) -> str:
        """The Auto class that loads it."""
        return auto_class_of(self.whole)

    @cached_property
    def weights(self) -> Weights:
        """The tensors.

        Raises:
            QuantisedError: they are quantised.
            ConvertAttnError: none, or broken ones.
        """
        opened = open_weights(self.origin.folder)
        check_plain(self.origin.name, opened.infos.values(), self.leftovers)
        if opened.same:
            tied = tied_names(self.whole, self.origin.name)
            opened.leave_out({name for name, first in opened.same.items() if frozenset((name, first)) in tied})
        return opened

    @cached_property
    def names(self) -> StoredNames:
        """What the tensors are in the class that config.json names.

        Raises:
            ConvertAttnError: the class cannot be made.
        """
        shapes = {name: info.shape for name, info in self.weights.infos.items()}
        config = typed_config(self.whole, self.origin.name)
        modeling.register()
        if type(config) not in getattr(transformers, self.auto_class)._model_mapping:
            raise ConvertAttnError(
                f"'{self.origin.name}' is a {self.whole['model_type']} by itself, which {self.auto_class} of "
                f"transformers {transformers.__version__} does not load: give the whole model that it is a part of"
            )
        try:
            return names_in(config, self.auto_class, shapes, None if self.within is None else self.origin.name)
        except ConvertAttnError:
            raise
        except Exception as error:  # the class decides what it raises, and what has to be installed for it
            raise ConvertAttnError(
                f"the class of '{self.origin.name}' cannot be made in transformers: {first_line(error)}"
            ) from None

    def refuse_quantised(self) -> None:
        """Look at the weights that are here, if any are.

        Raises:
            QuantisedError: they are quantised.
        """
        try:
            _ = self.weights
        except QuantisedError:
            raise
        except ConvertAttnError:  # none here, or broken: who needs them says so
            return

    @cached_property
    def _files(self) -> tuple[str, ...]:
        """Everything in the folder, by names relative to it."""
        return tuple(listing(self.origin.folder))

    @cached_property
    def _modules(self) -> frozenset[str] | None:
        """The folders that modules.json names, None where there is none."""
        path = own_file(self.origin.folder, MODULES)
        try:
            return module_folders(read_json(path)) if path.is_file() else None
        except (ValueError, RecursionError):
            return None

    def side_files(self) -> list[str]:
        """Tell what is carried over as it is: tokenizer, chat templates, licence and the like; no code, no weights.

        Returns:
            names relative to the folder.
        """
        named = [name for name in self._files if kind_of(name, self._modules) == "carried"]
        return [name for name in named if own_file(self.origin.folder, name).is_file()]

    def class_code(self) -> list[str]:
        """List the files of code that its classes are made by, none where transformers has them or this package."""
        if self.whole.get("auto_map") is None or self.whole["model_type"] not in CONFIG_MAPPING:
            return []
        kind = CONFIG_MAPPING[self.whole["model_type"]]
        if not kind.__module__.startswith("transformers_modules."):
            return []
        return sorted(path.name for path in self.origin.folder.glob("*.py"))

    @cached_property
    def tokenizer_code(self) -> TokenizerCode | None:
        """The code that the tokenizer is made by, None where it needs none."""
        return tokenizer_code(self.origin.folder)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there are files that a tokenizer is made of."""
        return any(name in _TOKENIZERS for name in self._files)

    def warnings(self) -> tuple[str, ...]:
        """Tell what the user is to know of the source: a config that speaks of quantisation, files that are left."""
        code, model_type = self.tokenizer_code, self.config["model_type"]
        opened = vars(self).get("weights")
        carried = {*(code.files if code else ()), *(opened.files if opened else ()), *self.class_code()}
        if model_type in modeling.FAMILIES:  # its own code has a counterpart in any result that needs it
            carried |= {path.name for path in modeling.source_files(model_type)}
        left = [
            name
            for name in (*self._files, *self.origin.elsewhere)
            if name not in carried and kind_of(name, self._modules) in ("left", "code")
        ]
        left += [name for name in self.origin.elsewhere if kind_of(name, self._modules) == "carried"]
        found = [leftover_warning(self.leftovers, plain=opened is not None)] if self.leftovers else []
        if code is not None:
            found.append(
                f"the tokenizer's code ({code.where}) goes with the result and runs when it is loaded with "
                "trust_remote_code=True"
            )
        return (*found, *([left_sentence(left)] if left else []))

    def card_text(self) -> str | None:
        """Give the source's README.md, None where it has none."""
        path = own_file(self.origin.folder, "README.md")
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


_TOKENIZERS = frozenset(
    "tokenizer.json tokenizer.model vocab.json vocab.txt spiece.model sentencepiece.bpe.model tekken.json".split()
)


def _adopt_again(config: dict[str, Any]) -> None:
    """Read a result as its source was read: by the facts of the family that its config.json names."""
    block = config.get("convert_attn")
    like = block.get("arch_like") if isinstance(block, dict) else None
    known, model_type = architectures(), block.get("source_model_type") if isinstance(block, dict) else None
    if like in known and isinstance(model_type, str) and model_type not in known:
        adopt(model_type, known[like])


def _known_within(config: dict[str, Any], name: str) -> Within | None:
    """The language model inside a larger one, where it is of a family that there are facts of."""
    known = architectures()
    model_type = config["model_type"]
    if model_type in known or model_type not in CONFIG_MAPPING:
        return None
    try:
        found = language_model(config, name)
    except ConvertAttnError:  # whoever needs it as what it is says so
        return None
    arch = None if found is None else known.get(found.config["model_type"])
    return found if arch is not None and arch.causal else None


def _top_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
