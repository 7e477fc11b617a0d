"""Our reading of a checkpoint's attention against the class that the installed transformers has for it.

What a layer's tensors and config are taken to mean is one claim: `functional.Attention` of the weights that the
conversion splits out of them, under its rule. The class's own attention module is the judge. Both get the same random
input in float32, once of ordinary size and once so large that scores leave the range in which a cap on them, a window
or another scale could hide. First, middle and last block; only the attention's own weights are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, first_line
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.isolated.behaviour import feed, probe_length
from convert_attn.convert.isolated.pairs import OTHERS, OTHERS_SEED
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.progress import Progress, silent
from convert_attn.convert.streaming.rules import layer_rule
from convert_attn.convert.streaming.skeleton import Skeleton, adding_nothing
from convert_attn.convert.verification.cut import checked_layers, probed_layers
from convert_attn.convert.verification.other_readings import other_readings
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import Attention, Rule, across, keys, queries

_WINDOW = 6  # tokens: shorter than the probe, so that a window shows
_LARGE = 40.0  # standard deviation of the large scores: those of trained models reach it
_ALLOWED = {"ordinary": 1e-3, "large": 2e-2}  # relative; rounding in large scores moves a softmax
_DTYPE_MARGIN = 12.0  # a result may lose so many times what the source loses by the dtype: it has more products


@dataclass(frozen=True)
class _Read:
    """What an attention module reads: [1, S, D], and [1, M, D] of an encoder or None."""

    x: Tensor
    others: Tensor | None

    def times(self, factor: float) -> _Read:
        """Give it larger."""
        return _Read(self.x * factor, None if self.others is None else self.others * factor)


class _ProbedError(Exception):
    """Raised to stop a forward pass behind the attention module that was asked."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one layer is asked, and what may be lost by rounding.

    Attributes:
        x: [1, S, D] in float32, the attention's input.
        rule: the layer's.
        rounding: relative error that the result may have in the dtype it is stored in.
        others: [1, M, D] in float32, what an encoder gives, where keys and values come from that.
        y: [1, S, D] in float32, what the source's class gives; None where no source is asked.
    """

    layer: int
    x: Tensor
    rule: Rule
    rounding: float
    others: Tensor | None = None
    y: Tensor | None = None


def check_source(plan: Plan, progress: Progress = silent) -> tuple[Probe, ...]:
    """Check that the source's class computes what the conversion reads from its tensors.

    Returns:
        what the checked layers are to be asked again when they are converted.

    Raises:
        ConvertAttnError: it does not; naming the layer and the class.
    """
    nbytes = sum(info.nbytes for info in plan.source.weights.infos.values())
    per_block = plan.geometry.attentions
    layers = checked_layers(plan.source.config, plan.geometry.num_layers // per_block, nbytes)
    blocks = probed_layers(plan.source.config, layers)
    chosen = [block * per_block + site for block in blocks for site in range(per_block)]
    with _one_error(plan), torch.no_grad():
        progress("check source", 0, len(chosen))
        judge, probes = _Judge(plan), []
        for layer in chosen:
            probes.append(judge.check(layer))
            progress("check source", len(probes), len(chosen))
        return tuple(probes)


@contextmanager
def _one_error(plan: Plan) -> Iterator[None]:
    """What a class raises on being run, in one sentence."""
    try:
        yield
    except ConvertAttnError:
        raise
    except Exception as error:  # the class decides what it raises
        raise ConvertAttnError(
            f"the attention of '{plan.source.origin.name}' cannot be run by itself in transformers "
            f"{transformers.__version__} ({type(error).__name__}: {first_line(error)}), so what its tensors mean "
            "cannot be checked; nothing was written: use another version of transformers"
        ) from None


class _Judge:
    """The source's base model without weights, whose attention modules are run one at a time."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._layers = plan, Layers(plan)
        config = typed_config(plan.source.config, plan.source.origin.name)
        key = plan.arch.window_key
        window = getattr(config, key, None)
        if isinstance(window, int):
            setattr(config, key, min(window, _WINDOW))
        arch = plan.arch
        self._skeleton = Skeleton(
            plan.source, config=config, stack=arch.stack, hands_on=arch.hands_on, attention=arch.judged
        )
        model = self._skeleton.model
        vocabulary = getattr(model.config, "vocab_size", None)
        tables = [f"{name}." for name, part in model.named_modules() if _is_table(part, vocabulary)]
        self._outside = [name for name in self._skeleton.outside() if not name.startswith((*tables,))]

    def check(self, layer: int) -> Probe:
        """Compare one layer at both sizes of input.

        Raises:
            ConvertAttnError: the class and our reading disagree.
        """
        plan = self._plan
        rule, short = layer_rule(plan.source, plan.arch, plan.geometry, layer), _short_rule(plan, layer)
        weights = self._layers.read(layer).to(torch.float32)
        read = self._input(layer)
        large = read.times((_LARGE / _score_size(weights, read, short)) ** 0.5)
        exact = self._run(layer, read, torch.float32)
        for size, given, theirs in (
            ("ordinary", read, exact),
            ("large", large, self._run(layer, large, torch.float32)),
        ):
            error = _relative(theirs, Attention(weights, given.x, short, across(given.others)).output())
            if not error <= _ALLOWED[size]:
                raise ConvertAttnError(self._disagreement(layer, size, error) + self._instead(layer, given, theirs))
        rounding = _DTYPE_MARGIN * self._rounding(layer, read, exact)
        return Probe(layer=layer, x=read.x, others=read.others, rule=rule, rounding=rounding, y=exact)

    def _input(self, layer: int) -> _Read:
        """Random numbers of the size that the block's norm, or the encoder's, gives them."""
        config = self._skeleton.model.config
        x = probe_states(config, layer) * self._layers.prior(layer).variance().sqrt().float()
        if not self._plan.geometry.across(layer):
            return _Read(x, None)
        return _Read(x, probe_others(config) * self._layers.prior_of_others().variance().sqrt().float())

    def _rounding(self, layer: int, read: _Read, exact: Tensor) -> float:
        """What the class itself loses in the dtype that the result is stored in, or in that which it is loaded in."""
        dtypes = self._plan.run_dtypes & {torch.float16, torch.bfloat16}
        return max((_relative(self._run(layer, read, dtype), exact) for dtype in dtypes), default=0.0)

    def _run(self, layer: int, given: _Read, dtype: torch.dtype) -> Tensor:
        """What the class's attention module makes of x [1, S, D]: [1, S, D] in float32."""
        number, x = layer // self._plan.geometry.attentions, given.x
        block, arch = self._skeleton.blocks[number], self._plan.arch.at(layer)
        parts, of_norm = arch.parts, arch.norm
        attention, last = block.get_submodule(parts[0]), block.get_submodule(parts[-1])
        stem = f"{self._skeleton.stem}{number}."
        parameters = dict(self._skeleton.model.named_parameters())
        own = tuple(f"{stem}{part}." for part in parts)
        # the attention's own, and vectors: norms in front of it
        names = self._skeleton.names(
            lambda name: name.startswith(stem) and (name.startswith(own) or parameters[name].ndim == 1)
        )
        seen: dict[str, Tensor] = {}
        give = feed(x)

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            seen["read"] = args[0] if args else kwargs["hidden_states"]
            return give(module, args, kwargs)

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            seen["given"] = (out[0] if isinstance(out, tuple) else out).float()
            raise _ProbedError

        def after_norm(module: nn.Module, args: Any, out: Tensor) -> None:
            seen["norm"] = out

        def before_block(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen["norm"] = args[0] if args else kwargs["hidden_states"]

        handles = [
            attention.register_forward_pre_hook(enter, with_kwargs=True),
            last.register_forward_hook(leave),
            block.register_forward_pre_hook(before_block, with_kwargs=True)
            if of_norm is None
            else block.get_submodule(of_norm.name).register_forward_hook(after_norm),
        ]
        # some classes make their embeddings wider before the first block
        width = getattr(self._skeleton.model.get_input_embeddings(), "embedding_dim", x.shape[-1])
        embedded = torch.randn(*x.shape[:-1], width, generator=torch.Generator().manual_seed(1)).to(dtype)
        names = [*self._outside, *self._skeleton.makes_first(number), *names]
        seeing = self._plan.arch.seeing
        states = "encoder_hidden_states" if seeing is None else seeing.states
        others = {} if given.others is None else {states: given.others.to(dtype)}
        try:
            with self._skeleton.filled(names, dtype), self._skeleton.passing_before(number), self._silent_before(layer):
                self._skeleton.stack(inputs_embeds=embedded, use_cache=False, **others)
        except _ProbedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        # numbers that are not finite are found, and named, where files are read back
        if "norm" not in seen or not torch.equal(seen["norm"].nan_to_num(), seen["read"].nan_to_num()):
            read = "the block reads" if of_norm is None else f"'{of_norm.name}' gives"
            raise ConvertAttnError(
                f"the attention of layer {layer} of '{self._plan.source.origin.name}' does not read what {read} in "
                f"{self._class(attention)}, which the conversion takes for granted; nothing was written: use another "
                "version of transformers"
            )
        return seen["given"]

    @contextmanager
    def _silent_before(self, layer: int) -> Iterator[None]:
        """The attention in front of that of a layer in its block gives nothing."""
        per_block = self._plan.geometry.attentions
        if layer % per_block == 0:
            yield
            return
        block, arch = self._skeleton.blocks[layer // per_block], self._plan.arch
        module = block.get_submodule(arch.mixer)
        module.forward = adding_nothing(arch)
        try:
            yield
        finally:
            vars(module).pop("forward", None)  # the class's own shows again

    def _class(self, module: nn.Module) -> str:
        return f"{type(module).__name__} of transformers {transformers.__version__}"

    def _disagreement(self, layer: int, size: str, error: float) -> str:
        block = self._skeleton.blocks[layer // self._plan.geometry.attentions]
        attention = block.get_submodule(self._plan.arch.at(layer).mixer)
        return (
            f"{self._class(attention)} does not compute what is read from the attention tensors and config.json of "
            f"'{self._plan.source.origin.name}': in layer {layer}, on random input of {size} size, the outputs differ "
            f"by {error:.2g} (relative; {_ALLOWED[size]:g} is allowed), so its conversion would be wrong and nothing "
            "was written: check that model_type and config.json belong to these weights"
        )

    def _instead(self, layer: int, given: _Read, theirs: Tensor) -> str:
        """What the class computes, where another reading of the same tensors agrees with it."""
        for words, plan in other_readings(self._plan):
            weights = Layers(plan).read(layer).to(torch.float32)
            ours = Attention(weights, given.x, _short_rule(plan, layer), across(given.others)).output()
            if _relative(theirs, ours) <= _ALLOWED["ordinary"]:
                return f" (the outputs agree if {words}, which is not what this tool has of the model type)"
        return ""


def _short_rule(plan: Plan, layer: int) -> Rule:
    """A layer's rule with a window that shows within a probe."""
    rule = layer_rule(plan.source, plan.arch, plan.geometry, layer)
    return replace(rule, window=None if rule.window is None else min(rule.window, _WINDOW))


def probe_states(config: Any, layer: int) -> Tensor:
    """Draw random states [1, S, D] for a layer, the same at every call, S as `probe_length` has it."""
    return torch.randn(1, probe_length(config), config.hidden_size, generator=torch.Generator().manual_seed(layer))


def probe_others(config: Any) -> Tensor:
    """Draw random states [1, M, D] of an encoder, the same for every layer; others in number than a probe's tokens."""
    generator = torch.Generator().manual_seed(OTHERS_SEED)
    return torch.randn(1, OTHERS, config.hidden_size, generator=generator)


def _is_table(module: nn.Module, vocabulary: int | None) -> bool:
    """Whether a module is an embedding of tokens, which the probe does without."""
    return isinstance(module, nn.Embedding) and module.num_embeddings == vocabulary


def _score_size(weights: AttentionWeights, read: _Read, rule: Rule) -> float:
    """Standard deviation of a layer's scores."""
    query = queries(weights, read.x, rule)
    key = keys(weights, read.x if read.others is None else read.others, rule).repeat_interleave(
        weights.queries_per_kv, 1
    )
    return max(float((query @ key.mT).std()) * rule.scale, 1e-6)


def _relative(values: Tensor, reference: Tensor) -> float:
    return float((values - reference).norm() / reference.norm().clamp_min(1e-30))
