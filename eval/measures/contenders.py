"""The models to compare: what they are, from config and headers, and how each is built when it is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import LatentCache, SharedHeads, form_of, query_heads
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.archs.longest_input import longest_input
from convert_attn.convert.checkpoint.loading import load_language_model
from convert_attn.convert.checkpoint.quantised import leftover_warning
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Origin, Source
from convert_attn.convert.classes.auto_classes import WRITES
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.verification.folder import other_code
from convert_attn.eval.measures.figures import size
from convert_attn.modeling import FAMILIES

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_HEADROOM = 1.1  # activations and the loader's own


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to build a model; plain values, so that another process can build the same.

    Attributes:
        model: folder, or Hub id where its own code is to be run.
        commit: of a Hub id.
        config: instead of `model`: config.json of a model with random weights.
        auto_class: of transformers, which loads `model`.
    """

    dtype: str
    device: str
    model: str | None = None
    commit: str | None = None
    config: dict[str, Any] | None = None
    trust_remote_code: bool = False
    auto_class: str = "AutoModelForCausalLM"

    def build(self) -> Any:
        """Give the model, ready to run.

        Raises:
            ConvertAttnError: it cannot be loaded, or does not fit in memory.
        """
        dtype = DTYPES[self.dtype]
        name = self.model or "the random-weight model"
        try:
            if self.config is not None:
                return _random(self.config, dtype, self.device)
            model = load_language_model(
                name,
                name,
                dtype=dtype,
                commit=self.commit,
                trust_remote_code=self.trust_remote_code,
                auto_class=self.auto_class,
            )
            return model.to(self.device)
        except (torch.OutOfMemoryError, MemoryError):
            raise ConvertAttnError(f"'{name}' does not fit in the memory of {self.device}: {REMEDY}") from None
        except ConvertAttnError:
            raise
        except Exception as error:  # the class decides what it raises
            raise ConvertAttnError(f"'{name}' cannot be loaded: {_first_line(error)}") from None


REMEDY = "try --dtype bfloat16, another --device, or a smaller model"


def _random(config: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    """A model of that config with the random weights that its class begins training with."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(typed_config(config, "random weights"), dtype=dtype)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One model to compare.

    Attributes:
        name: what reports call it; unique within a run.
        config: typed config.
        recipe: how it is built.
        identity: changes when its files do.
        warnings: sentences for the user, without their full stop.
    """

    name: str
    origin: Origin
    config: Any
    recipe: Recipe
    identity: str
    warnings: tuple[str, ...] = ()

    @property
    def context(self) -> int | None:
        """Longest input in tokens, None where the config names none."""
        return longest_input(self.config)

    @property
    def encoder(self) -> bool:
        """Whether it is an encoder: it has no next token and no cache."""
        known = architectures().get(self.config.model_type)
        return known is not None and not known.causal

    @property
    def two_stacks(self) -> bool:
        """Whether it is an encoder-decoder: it writes a target for a source."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    @property
    def writes(self) -> bool:
        """Whether it goes on with a text."""
        return not (self.encoder or self.two_stacks)

    @property
    def decoder(self) -> Decoder:
        """What the targets of an encoder-decoder begin with."""
        return Decoder.of(self.config, self.recipe.auto_class, self.origin.folder, self.origin.name)

    @property
    def form(self) -> str:
        """ "MHA", "GQA-4", "MQA" or "MLA 64 + 24"."""
        return form_of(self.config).label(query_heads(self.config))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in the dtype they will have in memory."""
        stored = sum(path.stat().st_size for pattern in _WEIGHTS for path in self.origin.folder.glob(pattern))
        held = str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")
        return stored * DTYPES[self.recipe.dtype].itemsize // (DTYPES[held].itemsize if held in DTYPES else 4)

    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            ConvertAttnError: it has none that loads.
        """
        where = self.recipe.model
        try:
            return AutoTokenizer.from_pretrained(
                where, revision=self.recipe.commit, trust_remote_code=self.recipe.trust_remote_code
            )
        except Exception as error:  # the tokenizer's class decides what it raises
            raise ConvertAttnError(
                f"'{self.origin.name}' has no tokenizer that can be loaded ({' '.join(str(error).split())}): eval "
                "reads its text with one; put tokenizer.json into its folder"
            ) from None


def predicted_numbers(raw: dict[str, Any], name: str) -> int | None:
    """Give numbers cached per token over all layers, from config.json; None for an architecture that is not known.

    Args:
        raw: config.json.
    """
    config = typed_config(raw, name)
    form = form_of(config)
    if isinstance(form, LatentCache):
        return sum(form.ranks) + sum(form.rope_dims) + form.key_sizes * len(form.ranks)
    try:
        sizes = geometry(architecture(raw["model_type"]), raw, name)
    except ConvertAttnError:
        return None
    if sizes.attentions > 1:  # of a decoder with an encoder, whose layers are not those that the config counts first
        form = SharedHeads.of(form.groups[0], sizes.num_layers)
    return form.cache_numbers(sizes)


def choose_device(device: str) -> str:
    """ "auto" is cuda where there is one.

    Raises:
        UsageError: it cannot be used here.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise UsageError(f"--device {device} cannot be used here: {_first_line(error)}") from None
    return chosen


def open_contenders(
    models: Sequence[str], device: str, dtype: str, trust_remote_code: bool = False
) -> tuple[Contender, ...]:
    """Give the original first, then the conversions.

    Args:
        device: as `choose_device` gives it.
        dtype: "auto" (float32 on a CPU, else the original's) or a key of DTYPES.

    Raises:
        ConvertAttnError: one is not there, is no language model, names code of its own, or has another vocabulary.
    """
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {dtype} is not known: choose one of auto, {', '.join(DTYPES)}")
    sources = [Source.open(resolve(model)) for model in models]
    if dtype == "auto":
        named = sources[0].config.get("dtype") or sources[0].config.get("torch_dtype")
        dtype = str(named) if device != "cpu" and named in DTYPES else "float32"
    names = _names([source.origin for source in sources])
    found = tuple(
        _contender(source, name, device, dtype, trust_remote_code) for source, name in zip(sources, names, strict=True)
    )
    _check_vocabulary(found)
    for kind, what in (("encoder", "an encoder"), ("two_stacks", "an encoder-decoder")):
        other = next((one for one in found if getattr(one, kind) != getattr(found[0], kind)), None)
        if other is not None:
            raise UsageError(
                f"of '{found[0].origin.name}' and '{other.origin.name}' one is {what} and the other is not: it is no "
                "conversion of that model"
            )
    return found


def _names(origins: list[Origin]) -> list[str]:
    """Short names, numbered where two are alike; the original's says what it is where a conversion has it too."""
    short = [origin.short_name for origin in origins]
    return [
        name if name not in short[:index] else f"{name} ({short[:index].count(name) + 1})"
        for index, name in enumerate(short)
    ]


def _contender(source: Source, name: str, device: str, dtype: str, trust: bool) -> Contender:
    origin, raw, known = source.origin, source.whole, architectures()
    auto = "AutoModelForCausalLM"
    own = raw["model_type"] in FAMILIES
    foreign = bool(raw.get("auto_map")) and not own
    if foreign and not trust:
        raise UsageError(
            f"'{origin.name}' brings code of its own (auto_map in its config.json), which measuring it would run; "
            "give --trust-remote-code if you trust it"
        )
    if foreign:
        where, commit = (origin.name, origin.commit) if origin.commit else (str(origin.folder), None)
        config = AutoConfig.from_pretrained(where, revision=commit, trust_remote_code=True)
    else:
        where, commit = str(origin.folder), None
        config = typed_config(raw, origin.name)
        classes = raw.get("architectures") or []
        encoder = raw["model_type"] in known and not known[raw["model_type"]].causal
        two_stacks = bool(getattr(config, "is_encoder_decoder", False))
        auto = source.auto_class if encoder or two_stacks else auto
        if two_stacks and auto not in WRITES:
            raise UsageError(
                f"'{origin.name}' is {(classes or [raw['model_type']])[0]}, which writes no text: eval "
                "measures encoder-decoders on pairs of a source and the text that is written for it"
            )
        if (
            classes
            and not encoder
            and not two_stacks
            and not any(name.endswith(("LMHeadModel", "ForCausalLM")) for name in classes)
        ):
            raise UsageError(f"'{origin.name}' is no causal language model but {classes[0]}: nothing can be compared")
        _ = source.weights  # quantised or missing ones are the first thing to say
    trusted = foreign or (trust and source.tokenizer_code is not None)
    recipe = Recipe(dtype=dtype, device=device, model=where, commit=commit, trust_remote_code=trusted, auto_class=auto)
    said = [leftover_warning(source.leftovers, plain=not foreign)] if source.leftovers else []
    if own and (file := other_code(source)) is not None:
        said.append(
            f"'{origin.name}' carries code that is not of this version of convert-attn ('{file}'): measured is the "
            "code of this version; `convert-attn verify` runs what is carried"
        )
    return Contender(
        name=name, origin=origin, config=config, recipe=recipe, identity=_identity(origin), warnings=tuple(said)
    )


def _identity(origin: Origin) -> str:
    """A digest of config.json and of the weight files' names, sizes and times; of the commit where there is one."""
    digest = hashlib.sha256((origin.commit or "").encode())
    digest.update((origin.folder / "config.json").read_bytes())
    for path in sorted(path for pattern in _WEIGHTS for path in origin.folder.glob(pattern)):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _check_vocabulary(contenders: tuple[Contender, ...]) -> None:
    original = contenders[0]
    for contender in contenders[1:]:
        if contender.config.vocab_size != original.config.vocab_size:
            raise UsageError(
                f"'{contender.origin.name}' has a vocabulary of {contender.config.vocab_size} tokens and "
                f"'{original.origin.name}' one of {original.config.vocab_size}: it is no conversion of that model"
            )


def free_bytes(device: str) -> int:
    """Memory that a model could take."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return int(psutil.virtual_memory().available)


def check_memory(contenders: tuple[Contender, ...]) -> None:
    """Refuse early what cannot be loaded: the original and one conversion are in memory at a time.

    Raises:
        ConvertAttnError: they do not fit.
    """
    original, *converted = contenders
    largest = max(converted, key=lambda contender: contender.weight_bytes, default=original)
    needed = int(_HEADROOM * (original.weight_bytes + (largest.weight_bytes if converted else 0)))
    device = original.recipe.device
    free = free_bytes(device)
    if needed > free:
        raise ConvertAttnError(
            f"'{original.origin.name}' and '{largest.origin.name}' need about {size(needed)} side by side in "
            f"{original.recipe.dtype}, and {device} has {size(free)} free: {REMEDY}"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
