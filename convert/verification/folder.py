"""`convert-attn verify`: any checkpoint folder, ours or not, of this version or an earlier one, run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from convert_attn import modeling
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads, form_of
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.classes.remote_code import brings_classes, register_code
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.maths.moments import moments_from_norm
from convert_attn.convert.methods import DEFAULT, methods
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.planning.request import Request
from convert_attn.convert.progress import Progress, silent
from convert_attn.convert.targets import targets
from convert_attn.convert.targets.base import Blueprint
from convert_attn.convert.targets.latent import read_latent
from convert_attn.convert.verification.cut import blocks_of, checked_layers, probed_layers
from convert_attn.convert.verification.process import ISOLATED
from convert_attn.convert.verification.result import Answer, Expected, Verified, answer, run_folder, workplace
from convert_attn.convert.verification.source import Probe, check_source, probe_states
from convert_attn.convert.verification.stored import verify_folder
from convert_attn.convert.weights.functional import Rule

# relative error of an attention module of ours that is run in the dtype it is stored in
_ROUNDING = {torch.float16: 1e-2, torch.bfloat16: 6e-2}

_AGAIN = "convert the original again with this version"


def verify(
    model: str | Path,
    against: str | Path | None = None,
    *,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Verified:
    """Run a checkpoint in the installed transformers and check that it does what its files say.

    Checked are: files and tensors against the class; in a process without this package the Auto class loads it, decodes
    with its cache what it computes without, alone and in a padded batch, and caches as many numbers as its sizes say;
    attention computes what the weights mean; numbers are finite in the dtype that is stored; the tokenizer loads.

    Args:
        model: local folder, Hub id, or sample:NAME.
        against: what it was made from: tokenizer, generation settings, and all that is not attention must be its own.
        trust_remote_code: run the code in the folder although it is not that of this version of convert-attn.

    Raises:
        UsageError: nothing to verify there, or code that is not trusted.
        ConvertAttnError: it fails a check; saying which.
    """
    ISOLATED.start()
    source = Source.open(resolve(str(model)))
    folder = source.origin.folder
    _check_code(source, trust_remote_code)
    original = None if against is None else Source.open(resolve(str(against)))
    if trust_remote_code and brings_classes(source.whole):
        register_code(folder, source.whole, str(model))
        source = Source.open(source.origin)
    auto_class = source.auto_class
    verify_folder(folder, auto_class, progress)
    expected = Expected(
        source=original,
        same_outside=original is not None,
        trust_tokenizer=trust_remote_code,
        answers=_answers(source),
        numbers=cached_by_layer(source),
    )
    try:
        with workplace() as work:
            return run_folder(folder, auto_class, expected=expected, subject=f"'{model}'", work=work, progress=progress)
    except ConvertAttnError as error:
        if source.config["model_type"] in modeling.FAMILIES and other_code(source) is not None:
            raise ConvertAttnError(
                f"{error}; the code in it is not of this version of convert-attn: {_AGAIN}"
            ) from None
        raise


def _check_code(source: Source, trusted: bool) -> None:
    """Code in the folder is ours, byte for byte, or the user trusts it.

    Raises:
        UsageError: it is another's, or that of another version.
    """
    other = None if trusted else other_code(source)
    if other is not None:
        again = f", or {_AGAIN}" if source.config["model_type"] in modeling.FAMILIES else ""
        raise UsageError(
            f"'{source.origin.name}' brings code that is not of this version of convert-attn ('{other}') and would be "
            f"run: read it and give --trust-remote-code{again}"
        )


def other_code(source: Source) -> str | None:
    """Name the first file of code that a loader may run and this version did not write; None where there is none."""
    if "auto_map" not in source.whole and source.tokenizer_code is None:
        return None
    model_type = source.config["model_type"]
    ours = {path.name: path for path in modeling.source_files(model_type)} if model_type in modeling.FAMILIES else {}
    for path in sorted(source.origin.folder.glob("*.py")):
        if path.name not in ours or path.read_bytes() != ours[path.name].read_bytes():
            return path.name
    return None


def cached_by_layer(source: Source) -> list[int] | None:
    """Count numbers cached per token in each layer, by the sizes in config.json; None where the class is not known."""
    config = typed_config(source.config, source.origin.name)
    form: Form
    if getattr(config, "kv_lora_rank", None):
        form = form_of(config)
        assert isinstance(form, LatentCache)
        cached = [one + two + form.key_sizes for one, two in zip(form.ranks, form.rope_dims, strict=True)]
    else:
        arch = _facts(config)
        if arch is None:
            return None
        sizes = geometry(arch, source.config, source.origin.name)
        form = SharedHeads(sizes.kv_by_layer)
        cached = form.numbers_by_layer(sizes)
    known = next((t.experiment for t in targets() if t.experiment and t.becomes == config.model_type), None)
    facts = [0] * len(cached) if known is None else known.facts_by_layer(form)
    return [count + of for count, of in zip(cached, facts, strict=True)]


def _answers(source: Source) -> list[Answer]:
    """What probed layers give by their tensors, for the classes whose tensors we read."""
    model_type = source.config["model_type"]
    if _facts(typed_config(source.config, source.origin.name)) is not None:
        plan = as_it_is(source)
        return [answer(probe, Layers(plan).read(probe.layer)) for probe in check_source(plan)]
    if model_type not in modeling.FAMILIES:
        return []
    config, blocks = typed_config(source.config, source.origin.name), blocks_of(source)
    nbytes = sum(info.nbytes for info in source.weights.infos.values())
    layers = checked_layers(source.config, blocks.count, nbytes)
    chosen = probed_layers(source.config, layers)
    return [_latent_answer(source, config, blocks.stem, layer) for layer in chosen]


def _latent_answer(source: Source, config: Any, stem: str, layer: int) -> Answer:
    names = [name for name in source.weights.infos if name.startswith(f"{stem}{layer}.")]
    attention = next(name for name in names if name.endswith("kv_b_proj.weight")).removesuffix("kv_b_proj.weight")
    stored = {n.removeprefix(attention): source.weights.read(n) for n in names if n.startswith(attention)}
    weights = read_latent(config, {name: tensor.float() for name, tensor in stored.items()}, layer)
    slopes = config.alibi_slopes
    rule = Rule(
        scale=float(config.softmax_scale),
        window=_window(config, layer),
        softcap=config.score_softcap,
        slopes=None if slopes is None else torch.tensor(slopes),
        coarse_slopes=_has_coarse_slopes(config),
    )
    x = probe_states(config, layer) * _norm_size(source, config, f"{stem}{layer}.")
    return answer(
        Probe(layer=layer, x=x, rule=rule, rounding=_ROUNDING.get(stored["kv_b_proj.weight"].dtype, 0.0)), weights
    )


def _facts(config: Any) -> Architecture | None:
    """Give the facts of a class whose attention is read by them: its own, or its family's where it has no latent."""
    own = architectures().get(str(config.model_type))
    if own is None and not getattr(config, "kv_lora_rank", None) and config.model_type in modeling.FAMILIES:
        return _original(config)
    return own


def _original(config: Any) -> Architecture | None:
    """Give the facts of the family that a class of ours is of, where they are known."""
    arch = architectures().get(str(config.model_type).rpartition("_")[0])
    return None if arch is None else arch.of(config)


def _has_coarse_slopes(config: Any) -> bool:
    arch = _original(config)
    return arch is not None and arch.coarse_slopes


def _window(config: Any, layer: int) -> int | None:
    """How many tokens back a token sees in a layer, in the words that our classes' configs have for it."""
    arch = _original(config)
    by_layer = arch.windows(config) if arch else ()
    if by_layer:
        return by_layer[layer]
    kinds = getattr(config, "layer_types", None)
    sees_all = kinds and kinds[layer] != "sliding_attention"
    return None if sees_all else getattr(config, "sliding_window", None)


def _norm_size(source: Source, config: Any, block: str) -> torch.Tensor:
    """The size [D] of what the norm in front of attention gives: on other numbers rounding may be amplified."""
    names = {arch.norm.name for arch in architectures().values() if arch.norm}
    norm = next((f"{block}{name}" for name in sorted(names) if f"{block}{name}.weight" in source.weights.infos), None)
    if norm is None:  # it has no weights, or there is none
        return torch.ones(config.hidden_size)
    gain = source.weights.read(f"{norm}.weight").double() + getattr(config, "norm_gain_offset", 0.0)
    biased = f"{norm}.bias" in source.weights.infos
    bias = source.weights.read(f"{norm}.bias").double() if biased else None
    return moments_from_norm(gain, bias).variance().sqrt().float()


def as_it_is(source: Source) -> Plan:
    """Make a plan that changes nothing, for what reads a checkpoint through one."""
    config = typed_config(source.config, source.origin.name)
    known = _facts(config)
    arch = architectures()[source.config["model_type"]] if known is None else known
    arch = arch.of(config)
    sizes = geometry(arch, source.config, source.origin.name)
    form = SharedHeads(sizes.kv_by_layer)
    return Plan(
        request=Request(to="gqa", groups=sizes.kv_by_layer),
        source=source,
        blueprint=Blueprint(
            arch=arch, result_arch=arch, config=source.config, sizes=sizes, form=form, biases=frozenset()
        ),
        method=methods()[DEFAULT],
        target=next(target for target in targets() if target.becomes is None),
        outputs=(),
        dropped=(),
        output=source.origin.folder,
    )
