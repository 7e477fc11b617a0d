"""What a checkpoint's tensors are in a class, and the class's in the checkpoint, by transformers' own conversions.

A checkpoint may store its tensors under older names than its class has today, one by one where the class has them in
one (experts), or joined where the class has them apart. Which are which is transformers' to know: its own mapping and
operations, which `from_pretrained` goes by, are asked here, and nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from convert_attn import modeling
from convert_attn.convert.classes.language_model import place_of

Read = Callable[[str], Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Member:
    """A stored tensor: its name, what renaming makes of it, and the pattern by which an operation knows it."""

    stored: str
    renamed: str
    pattern: str | None


@dataclass(kw_only=True)
class Group:
    """Stored tensors and the class's tensors that they make together.

    Attributes:
        parameter: the class's tensor, the first where there are several.
        converter: transformers' operations, None where one tensor is taken as it is, under whichever name.
        shapes: of the class's tensors, by name; empty where the operations fail.
        fault: what the operations say where they fail.
    """

    model: Any
    parameter: str
    converter: Any
    members: list[_Member] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    fault: str = ""

    @property
    def stored(self) -> tuple[str, ...]:
        """The stored names."""
        return tuple(member.stored for member in self.members)

    @property
    def plain(self) -> bool:
        """Whether a stored tensor is the class's as it is."""
        return self.converter is None

    def load(self, read: Read) -> dict[str, Tensor]:
        """Make the class's tensors.

        Args:
            read: a stored tensor, by its stored name.
        """
        if self.plain:
            return {self.parameter: read(self.members[0].stored)}
        work = deepcopy(self.converter)
        for member in self.members:
            work.add_tensor(self.parameter, member.stored, member.pattern, partial(read, member.stored))
        return self._run(work, self.parameter)

    def store(self, read: Read) -> dict[str, Tensor]:
        """Make the stored tensors, by their stored names.

        Args:
            read: a tensor of the class, by its name there.
        """
        if self.plain:
            return {self.members[0].stored: read(self.parameter)}
        work, target = self.converter.reverse_transform(), ""
        for name in self.shapes:
            target, pattern = work.rename_source_key(name)
            work.add_tensor(target, name, pattern, partial(read, name))
        made = self._run(work, target)
        return {member.stored: made[member.renamed] for member in self.members}

    def _run(self, work: Any, name: str) -> dict[str, Tensor]:
        made = work.convert(name, model=self.model, config=self.model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


class StoredNames:
    """The names of a checkpoint and of a class.

    Args:
        model: of the class, on the meta device.
        shapes: what is stored, by name.
        base: what names of a language model inside it begin with; None: it is the language model itself.

    Attributes:
        expected: shapes of all that the class has, by name.
        base: what names of the base model begin with in the class ("model."); "" where it is the base model.
        tied: names that are one with another.
        groups: all that both have.
        unknown: what is stored and the class has no place for, with what renaming makes of the names.
    """

    def __init__(self, model: Any, shapes: Mapping[str, Shape], base: str | None = None) -> None:
        self._model = model
        self.expected: dict[str, Shape] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        own = "" if model.base_model is model else f"{model.base_model_prefix}."
        self.base = own if base is None else base
        self.tied: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
        self.unknown: dict[str, str] = {}
        self._added = self._taken = False  # the base model's prefix, by transformers
        firsts = self._first_names(shapes)
        self.groups = list(firsts.values())
        self._of_stored = {name: group for group in self.groups for name in group.stored}
        self._of_parameter: dict[str, Group] = {}
        for group in self.groups:
            self._try(group, shapes)
            self._of_parameter |= dict.fromkeys(group.shapes or (group.parameter,), group)
        self.unknown = {name: self._in_class(renamed) for name, renamed in self.unknown.items()}

    def _first_names(self, shapes: Mapping[str, Shape]) -> dict[str, Group]:
        """Groups by their first parameter; names are gone through in the order that transformers takes."""
        mapping = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix, found = self._model.base_model_prefix, dict[str, Group]()
        for stored in sorted(shapes, key=dot_natural_key):
            renamed, _ = rename_source_key(stored, renamings, [])
            bare, pattern = rename_source_key(renamed, [], converters)
            parameter, _ = rename_source_key(bare, [], [], prefix, self.expected)
            if parameter not in self.expected and stored in self.expected:
                renamed, bare, parameter, pattern = stored, stored, stored, None
            converter = None if pattern is None else by_pattern[pattern]
            group = found.get(parameter) or Group(model=self._model, parameter=parameter, converter=converter)
            if parameter not in self.expected or group.converter is not converter or (group.members and group.plain):
                self.unknown[stored] = renamed
                continue
            found[parameter] = group
            group.members.append(_Member(stored, self._with_prefix(renamed, bare, parameter), pattern))
        return found

    def _with_prefix(self, renamed: str, bare: str, parameter: str) -> str:
        """What renaming has made, with the base model's prefix as the parameter has it."""
        prefix = f"{self._model.base_model_prefix}."
        if parameter == prefix + bare:
            self._added = True
            return prefix + renamed
        if bare == prefix + parameter:
            self._taken = True
            return renamed.removeprefix(prefix)
        return renamed

    def _in_class(self, name: str) -> str:
        """A name that the class does not know, as it would begin there."""
        prefix = f"{self._model.base_model_prefix}."
        if self._taken:
            return name.removeprefix(prefix)
        return prefix + name if self._added and not name.startswith(prefix) else name

    def _try(self, group: Group, shapes: Mapping[str, Shape]) -> None:
        """Find what a group becomes, without numbers."""
        try:
            made = group.load(lambda name: torch.empty(shapes[name], device="meta"))
        except Exception as error:  # an operation decides what it raises on tensors that do not fit together
            group.fault = " ".join(str(error).split()) or type(error).__name__
        else:
            group.shapes = {name: tuple(value.shape) for name, value in made.items()}

    def group(self, parameter: str) -> Group | None:
        """What makes a tensor of the class, or the one that it is tied to; None where the checkpoint has neither."""
        found = self._of_parameter.get(parameter)
        return found or next((self._of_parameter[name] for name in self.twins(parameter) if self.has(name)), None)

    def has(self, parameter: str) -> bool:
        """Tell whether the checkpoint stores a tensor of the class by itself."""
        return parameter in self._of_parameter

    def is_made(self, parameter: str) -> bool:
        """Tell whether the class makes a tensor by itself where a checkpoint has none (sines of positions)."""
        patterns = getattr(self._model, "_keys_to_ignore_on_load_missing", None) or ()
        return any(re.search(pattern, parameter) for pattern in patterns)

    def twins(self, parameter: str) -> list[str]:
        """Give the tensors that one is tied to."""
        pairs = self.tied.items()
        return [a for a, b in pairs if b == parameter] + [b for a, b in pairs if a == parameter]

    def stored(self, parameter: str) -> tuple[str, ...]:
        """The stored names of a tensor of the class, in the order in which they make it; none where it is missing."""
        group = self.group(parameter)
        return () if group is None else group.stored

    def group_of(self, stored: str) -> Group | None:
        """Tell what a stored tensor is part of, None where the class has no place for it."""
        return self._of_stored.get(stored)

    def place(self, parameter: str) -> str:
        """Give the name of a tensor of the class that is to be put into this checkpoint beside the others."""
        prefix = f"{self._model.base_model_prefix}."
        if self._added:
            return parameter.removeprefix(prefix)
        return prefix + parameter if self._taken else parameter

    def read(self, parameter: str, read: Read) -> Tensor:
        """Make one tensor of the class.

        Args:
            read: a stored tensor, by its stored name.

        Raises:
            KeyError: it is not stored.
        """
        return dict(self.read_all([parameter], read))[parameter]

    def read_all(self, parameters: Iterable[str], read: Read) -> Iterator[tuple[str, Tensor]]:
        """Make tensors of the class, group by group: what is joined on disk is read once."""
        wanted: dict[int, tuple[Group, dict[str, str]]] = {}
        for parameter in parameters:
            group = self.group(parameter)
            if group is None:
                raise KeyError(parameter)
            name = next(name for name in (parameter, *self.twins(parameter)) if self._of_parameter.get(name) is group)
            wanted.setdefault(id(group), (group, {}))[1][parameter] = name
        for group, names in wanted.values():
            made = group.load(read)
            for parameter, name in names.items():
                yield parameter, made[name]


def names_in(
    config: PreTrainedConfig, auto_class: str, shapes: Mapping[str, Shape], larger: str | None = None
) -> StoredNames:
    """Make the class on the meta device and look at a checkpoint through it.

    Args:
        auto_class: of transformers, e.g. "AutoModelForCausalLM".
        shapes: what is stored, by name.
        larger: the checkpoint's name, where its class has the language model inside it; None where it is that itself.

    Raises:
        ConvertAttnError: the language model is not found in the class.
        Exception: whatever the class raises on a config that it refuses.
    """
    modeling.register()
    with torch.device("meta"):
        model = cast(Any, getattr(transformers, auto_class)).from_config(config)
    return StoredNames(model, shapes, None if larger is None else place_of(model, larger))
