"""One job: load a checkpoint as its user does, run it, and tell what was seen."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig

from . import behaviour, encoder, pairs, tokenizer
from .behaviour import MisbehaviourError
from .seeing import Seeing

_EXACT = 1e-3  # relative error of an attention module in float32 against the same arithmetic written another way
_SAME = 2e-3  # standard deviations, of outputs that the same arithmetic makes of the same numbers in float32
_WRITES = (  # that generate
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
)
_NOT_COMPARED = ("transformers_version", "_from_model_config", "_commit_hash")


@dataclass
class Report:
    """What was seen.

    Attributes:
        findings: what is wrong, clauses that follow the folder's name.
        figures: what was measured.
        notes: what could not be looked at, sentences.
    """

    findings: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """Turn what goes wrong into a finding; the first one is the cause of what follows."""
        try:
            yield
        except MisbehaviourError as error:
            self.findings.append(str(error))
        except Exception as error:  # the class decides what it raises
            lines = str(error).strip().splitlines() or [""]
            self.findings.append(f"fails while {doing} ({type(error).__name__}: {lines[0]})")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job as `verification.result` writes it.

    Args:
        job: `folder` (the whole checkpoint), `model` (the same, or a cut of it), `auto_class`, `trust`; and where it is
            known `source` (of the tokenizer), `trust_tokenizer`, `source_model` (a cut of the source), `trust_model`,
            `cast` (a dtype that its weights were rounded to), `probes` (a file), `rounding` (what rounding the weights
            may cost, by the number of the attention module), `stored_rounding` (what computing in their dtype may
            cost), `numbers` (cached per layer), `encoder` (no cache is asked for), `inside` (see
            `behaviour.attention_outputs`), `source_inside` (the same, of the source), `sites` (of an encoder-decoder:
            see `pairs.attention_outputs`), `within` (the module that is the language model in a larger model), `seen`
            (of a model some of whose layers look at images: what it calls their states, and what is added to scores).

    Returns:
        the fields of `Report`.
    """
    torch.set_num_threads(int(job.get("threads", 1)))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    report = Report()
    with report.step("its tokenizer is loaded"):
        _tokenizer(job, report)
    with report.step("its generation_config.json is read"):
        if (Path(job["folder"]) / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(job["folder"])
    # one model in memory at a time: what is needed of one is kept when the next is loaded
    seen = _run_exact(job, report)
    if seen is not None and job.get("source_model") is not None:
        with report.step("it is compared with its source"):
            _compare_source(job, seen, report)
    if seen is not None:
        _run_stored(job, report)
    return {"findings": report.findings, "figures": report.figures, "notes": report.notes}


def _load(job: dict[str, Any], dtype: Any) -> Any:
    """Load with the Auto class; every tensor has its place and every place its tensor."""
    auto = getattr(transformers, job["auto_class"])
    model, info = auto.from_pretrained(
        job["model"], trust_remote_code=job["trust"], dtype=dtype, output_loading_info=True
    )
    for what, names in info.items():
        if names:
            shown = sorted(map(str, names))[0]
            raise MisbehaviourError(f"is loaded with {what.replace('_', ' ')}: {shown} and {len(names) - 1} more")
    return model.eval()


def _base(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)


@dataclass(frozen=True)
class Outside:
    """What a model makes of given numbers in the place of attention.

    Attributes:
        given: an attention module's output each, [1, S, D].
        values: [1, S, V].
        settings: of `generate`, none for a class that does not generate.
    """

    ids: Tensor
    given: list[Tensor]
    values: Tensor
    settings: dict[str, Any]


def _run_exact(job: dict[str, Any], report: Report) -> Outside | None:
    """Load in float32 and ask everything that rounding would blur; None where it does not load or run."""
    model = None
    with report.step(f"{job['auto_class']}.from_pretrained loads it"):
        model = _load(job, torch.float32)
    if model is None:
        return None
    ids = behaviour.probe_tokens(model.config)
    language = job["auto_class"] in _WRITES
    if job.get("encoder"):
        with report.step("it reads a padded batch"):
            report.figures["padding"] = encoder.check_padding(_base(model), ids)
    else:
        _run_cached(job, model, ids, report)
    with report.step("its blocks are compared with the converted weights"):
        report.figures["block_errors"] = _compare_blocks(job, model, ids, "rounding", "in float32")
    with report.step("it runs with given numbers in the place of attention"):
        hidden_size = behaviour.text_config(model.config).hidden_size
        given = [
            torch.randn(1, ids.shape[1], hidden_size, generator=torch.Generator().manual_seed(layer))
            for layer in range(len(job.get("sites") or behaviour.attention_modules(model, job.get("within", ""))))
        ]
        settings = _settings(model.generation_config) if language else {}
        return Outside(ids, given, _around(job, model, ids, given), settings)
    return None


def _run_cached(job: dict[str, Any], model: Any, ids: Tensor, report: Report) -> None:
    """What a model with a cache does with it."""
    language = job["auto_class"] in _WRITES
    kind = pairs if job.get("sites") else behaviour
    with report.step("it decodes"):
        report.figures["decodes"] = kind.check_decode(model if language else _base(model), ids)
    if job.get("seen"):
        with report.step("it decodes with an image"):
            report.figures["decodes_seeing"] = behaviour.check_decode(_seeing(job, model), ids)
    if language:
        with report.step("it generates"):
            report.figures["generates"] = kind.check_generate(model, ids)
    with report.step("its cache is measured"):
        _cache(job, _seeing(job, model, count=None) if job.get("seen") else _base(model), ids, report)


def _seeing(job: dict[str, Any], model: Any, **options: Any) -> Seeing:
    """The language model in a model some of whose layers look at images, with states of images."""
    return Seeing(model.get_submodule(job.get("within", "")), *job["seen"], **options)


def _looking(job: dict[str, Any], model: Any) -> Any:
    """A model that is asked for all of its layers: where some look at images, with states of such."""
    return Seeing(model, job["seen"][0]) if job.get("seen") else model


def _inside(job: dict[str, Any], whose: str = "inside") -> tuple[str, str]:
    reads, gives = job.get(whose, ("", ""))
    return reads, gives


def _around(job: dict[str, Any], model: Any, ids: Tensor, given: list[Tensor], whose: str = "inside") -> Tensor:
    if sites := job.get("sites"):
        return pairs.around_attention(model, ids, given, sites)
    inside, within = _inside(job, whose)[1], job.get("within", "")
    return behaviour.around_attention(_looking(job, model), _asked(job, ids), given, inside, within)


def _asked(job: dict[str, Any], ids: Tensor) -> Tensor:
    """Token ids [1, S] as the class takes them: where it chooses among texts, as one text of one, [1, 1, S]."""
    return ids[:, None] if job["auto_class"].endswith("MultipleChoice") else ids


def _cache(job: dict[str, Any], base: Any, ids: Tensor, report: Report) -> None:
    found = (pairs if job.get("sites") else behaviour).cached_numbers(base, ids)
    report.figures["cached_numbers"] = found
    expected = job.get("numbers")
    if expected is not None and found != expected:
        raise MisbehaviourError(
            f"caches {sum(found):g} numbers per token in the layers that were run, expected {sum(expected):g}"
        )


def _probes(job: dict[str, Any], kind: str) -> dict[int, Tensor]:
    """Tensors x.<number of the attention module> (or y., what it is to give) of the file of probes."""
    if job.get("probes") is None:
        return {}
    held = load_file(job["probes"])
    return {int(name.split(".")[1]): tensor for name, tensor in held.items() if name.startswith(f"{kind}.")}


def _compare_blocks(job: dict[str, Any], model: Any, ids: Tensor, allowance: str, where: str) -> dict[str, float]:
    """Each probed attention module gives what its converted weights give, but for rounding; the relative errors."""
    expected, rounding = _probes(job, "y"), job.get(allowance, {})
    if sites := job.get("sites"):
        found = pairs.attention_outputs(model, ids, _probes(job, "x"), _probes(job, "o"), sites)
    elif job.get("seen"):
        others = next(iter(_probes(job, "o").values()), None)
        found = behaviour.attention_outputs(_seeing(job, model, given=others), ids, _probes(job, "x"))
    else:
        within = job.get("within", "")
        found = behaviour.attention_outputs(model, _asked(job, ids), _probes(job, "x"), _inside(job), within)
    errors = {str(number): _relative(found[number], reference) for number, reference in expected.items()}
    for number, error in errors.items():
        allowed = max(rounding.get(number, 0.0), _EXACT)
        if not error <= allowed:
            raise MisbehaviourError(
                f"does not compute {where} what was converted: attention module {number} of those that were run is off "
                f"by {error:.2g} (relative), where rounding explains {allowed:.2g}"
            )
    return errors


def _relative(values: Tensor, reference: Tensor) -> float:
    return float((values.float() - reference).norm() / reference.norm().clamp_min(1e-30))


def _compare_source(job: dict[str, Any], seen: Outside, report: Report) -> None:
    """With the same numbers in the place of attention, source and result are the same function."""
    auto = getattr(transformers, job["auto_class"])
    source = auto.from_pretrained(job["source_model"], trust_remote_code=job["trust_model"], dtype=torch.float32).eval()
    if job.get("cast") is not None:  # the conversion has rounded all weights to another dtype
        source = source.to(getattr(torch, job["cast"])).float()
    gap = behaviour.difference(seen.values, _around(job, source, seen.ids, seen.given, "source_inside"))
    report.figures["around_attention"] = gap
    if not gap <= _SAME:
        raise MisbehaviourError(
            f"differs from its source outside attention: with the same numbers in the place of every attention "
            f"module's the outputs differ by {gap:.2g} standard deviations"
        )
    ours, theirs = seen.settings, _settings(source.generation_config) if seen.settings else {}
    other = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if other:
        raise MisbehaviourError(
            f"generates with {other[0]} = {ours.get(other[0])!r}, its source with {theirs.get(other[0])!r}"
        )


def _settings(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPARED}


def _run_stored(job: dict[str, Any], report: Report) -> None:
    """In the dtype it is stored in: finite, and no further off than that dtype's rounding."""
    model = None
    with report.step("it is loaded in the dtype it is stored in"):
        model = _load(job, "auto")
    if model is None:
        return
    ids = behaviour.probe_tokens(model.config)
    with report.step("it runs in the dtype it is stored in"), torch.inference_mode():
        dtype = next(model.parameters()).dtype
        report.figures["dtype"] = name = str(dtype).removeprefix("torch.")
        if not torch.isfinite(_values(job, model, ids)).all():
            raise MisbehaviourError(f"gives numbers that are not finite in {name}, the dtype it is stored in")
        if dtype != torch.float32:
            report.figures["block_errors_stored"] = _compare_blocks(job, model, ids, "stored_rounding", f"in {name}")


def _values(job: dict[str, Any], model: Any, ids: Tensor) -> Tensor:
    """What a model gives, [B, S, V]."""
    if job.get("sites"):
        return pairs.forward(model, pairs.source_of(model, ids), ids)[0].values
    return behaviour.forward(_looking(job, model), _asked(job, ids)).values


def _tokenizer(job: dict[str, Any], report: Report) -> None:
    """The result's tokenizer is the source's."""
    ours, source = job["folder"], job.get("source")
    expected = None
    if source is not None and tokenizer.has_tokenizer(source):
        try:
            expected = tokenizer.describe(source, job.get("trust_tokenizer", False))
        except Exception as error:  # a tokenizer's class decides what it raises
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            report.notes.append(f"the source's tokenizer cannot be loaded here and was not compared ({first})")
    if not tokenizer.has_tokenizer(ours):
        if expected is not None:
            raise MisbehaviourError("has no tokenizer, its source has one")
        return
    if expected is None and source is not None:
        return  # no better than its source
    found = tokenizer.describe(ours, job["trust"] or job.get("trust_tokenizer", False))
    if found is None:
        if expected is not None:
            raise MisbehaviourError("has no tokenizer, its source has one")
        return
    report.figures["tokenizer"] = found["class"]
    if expected is not None and (clause := tokenizer.compare(expected, found)):
        raise MisbehaviourError(clause)


def warm_up() -> None:
    """Import what every job takes, while there is none yet."""
    for module in ("modeling_utils", "generation.utils", "models.auto.modeling_auto"):
        importlib.import_module(f"transformers.{module}")


def preload(model_types: list[str]) -> None:
    """Import the classes of model types, so that jobs find them imported."""
    for name in model_types:
        module = name.replace("-", "_")
        try:
            importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        except ImportError:
            continue
