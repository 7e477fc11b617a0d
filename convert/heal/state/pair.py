"""The converted checkpoint and the original it came from: found, checked against each other, loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import LAYER_GATE
from convert_attn.convert.archs.longest_input import longest_input
from convert_attn.convert.checkpoint.loading import load_language_model
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Origin, Source
from convert_attn.convert.classes.auto_classes import PAIRS
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, UsageError, first_line
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.provenance import headers_sha256, read_provenance, solved_mlp
from convert_attn.convert.text.decoder import Decoder

_ATTENTION = frozenset(
    {"attn", "self_attn", "attention", "self_attention", "encoder_attn", "SelfAttention", "EncDecAttention"}
)


@dataclass(frozen=True)
class Pair:
    """A student and its teacher, not loaded yet.

    Attributes:
        student: the converted checkpoint.
        teacher: the original; None where nothing is learned from it.
        provenance: `convert_attn` of the student's config.json.
    """

    student: Source
    teacher: Source | None
    provenance: dict[str, Any]

    @property
    def config(self) -> PreTrainedConfig:
        """The student's."""
        return typed_config(self.student.config, self.student.origin.name)

    @property
    def encoder(self) -> bool:
        """Whether both are encoders, which have no next token."""
        return _is_encoder(self.student)

    @property
    def two_stacks(self) -> bool:
        """Whether both are encoder-decoders, which write a target for a source."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    @property
    def decoder(self) -> Decoder:
        """What the targets of an encoder-decoder begin with."""
        origin = self.student.origin
        return Decoder.of(self.config, self.student.auto_class, origin.folder, origin.name)

    @property
    def has_gate(self) -> bool:
        """Whether the student mixes the states of its layers."""
        return any(learns(name, "gate") for name in self.student.weights.infos)

    @property
    def context(self) -> int:
        """The longest window both read."""
        return longest_input(self.config) or 2048


def _is_encoder(source: Source) -> bool:
    arch = architectures().get(source.config["model_type"])  # none of a class with a latent
    return arch is not None and not arch.causal


def open_pair(converted: str, teacher: Origin | None) -> Pair:
    """Find and check both.

    Args:
        converted: a folder that convert-attn made.
        teacher: its original; None: no stage needs one.

    Raises:
        UsageError: not a converted language model, or a teacher that is not its source.
        ConvertAttnError: tokenizers that differ.
    """
    origin = resolve(converted)
    _, provenance = read_provenance(origin.folder)
    student = Source.open(origin)
    encoder = _is_encoder(student)
    if student.auto_class not in ("AutoModelForCausalLM", *PAIRS) and not encoder:
        kind = student.whole["architectures"][0]
        raise UsageError(
            f"'{converted}' is a {kind}: heal trains language models, encoders, and what writes a text for a text or "
            "a sound"
        )
    if teacher is None:
        if encoder:
            raise UsageError(f"'{converted}' is an encoder: it learns from its original alone, give --stages distill")
        return Pair(student, None, provenance)
    original = Source.open(teacher)
    _check_source(original, student, provenance)
    _check_tokenizers(student, original)
    return Pair(student, original, provenance)


def _check_source(original: Source, student: Source, provenance: dict[str, Any]) -> None:
    """The teacher is the checkpoint that was converted, as far as names, dtypes, shapes and untouched weights tell.

    Raises:
        UsageError: it is another one.
    """
    name, recorded = original.origin.name, provenance.get("source")
    if headers_sha256(original.weights) != provenance.get("source_headers_sha256"):
        raise UsageError(
            f"teacher '{name}' is not the source of '{student.origin.name}', which was converted from '{recorded}': "
            "its tensors have other names, shapes or dtypes; give that one as --teacher"
        )
    ours, theirs = student.weights.infos, original.weights.infos
    solved = solved_mlp(provenance, architecture(original.config["model_type"]).mlp_output)
    for tensor in ours:  # the conversion leaves most tensors as they were; the first such one tells models apart
        if tensor in theirs and ours[tensor].shape == theirs[tensor].shape and "heal" not in provenance:
            if ours[tensor].dtype != theirs[tensor].dtype or _is_attention(tensor) or solved(tensor):
                continue
            if not torch.equal(student.weights.read(tensor), original.weights.read(tensor)):
                raise UsageError(
                    f"teacher '{name}' is not the source of '{student.origin.name}', which was converted from "
                    f"'{recorded}': its '{tensor}' has other numbers; give that one as --teacher"
                )
            return


def _check_tokenizers(student: Source, original: Source) -> None:
    """Raises ConvertAttnError where both have a tokenizer and their vocabularies differ."""
    paths = [source.origin.folder / "tokenizer.json" for source in (student, original)]
    if not all(path.is_file() for path in paths) or paths[0].read_bytes() == paths[1].read_bytes():
        return
    found: list[dict[str, int]] = []
    for source in (student, original):
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source.origin.folder, trust_remote_code=False)
            found.append(tokenizer.get_vocab())
        except Exception as error:  # the tokenizer's class decides what it raises
            raise ConvertAttnError(
                f"the tokenizer of '{source.origin.name}' cannot be loaded: {first_line(error)}"
            ) from None
    if found[0] != found[1]:
        token = min(found[0].items() ^ found[1].items())[0]
        raise ConvertAttnError(
            f"'{student.origin.name}' and teacher '{original.origin.name}' have different tokenizers: {token!r} is "
            f"{found[0].get(token, 'not')} in the one and {found[1].get(token, 'not')} in the other; copy the "
            "teacher's tokenizer.json over"
        )


def _is_attention(name: str) -> bool:
    return not _ATTENTION.isdisjoint(name.split("."))


def learns(name: str, train: str) -> bool:
    """Tell whether a parameter of that name is trained."""
    return train == "all" or (LAYER_GATE in name.split(".") if train == "gate" else _is_attention(name))


def load_model(source: Source, dtype: torch.dtype) -> Any:
    """Give the language model or encoder, nothing of it trainable, without dropout.

    Raises:
        ConvertAttnError: its class cannot be loaded.
    """
    where, name = source.origin.folder, source.origin.name
    model = load_language_model(where, name, dtype=dtype, attention="sdpa", auto_class=source.auto_class)
    without_dropout(model)
    model.requires_grad_(False)
    return model.eval()


def without_dropout(model: nn.Module) -> None:
    """A student that drops at random cannot be told from a bad one: every rate is set to 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # some classes keep a rate as a number: attn_dropout, resid_pdrop
            if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
                setattr(module, name, 0.0)


def share_frozen(student: nn.Module, teacher: nn.Module) -> int:
    """Let the student use the teacher's frozen parameters where they are equal; how many bytes that saves."""
    theirs = dict(teacher.named_parameters())
    saved = 0
    for name, parameter in [*student.named_parameters()]:
        other = theirs.get(name)
        if other is None or parameter.requires_grad or other.shape != parameter.shape or other.dtype != parameter.dtype:
            continue
        if torch.equal(parameter, other):
            parent, _, own = name.rpartition(".")
            setattr(student.get_submodule(parent), own, other)
            saved += parameter.nbytes
    return saved


@torch.no_grad()
def into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors into the parameters of their names."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameters[name].copy_(value)
