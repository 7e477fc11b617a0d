"""One block at a time: its attention read from the source, what is known of it, and its new form."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from convert_attn.convert.archs.attention_tensors import split
from convert_attn.convert.archs.base import Norm
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads
from convert_attn.convert.calibration.statistics import LayerStatistics
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.maths.moments import Moments, moments_from_norm
from convert_attn.convert.maths.normed_latent import NormedLatent
from convert_attn.convert.maths.rotary import RotaryPlanes, prior_offsets
from convert_attn.convert.methods.base import LayerContext
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.stored_numbers import is_finite
from convert_attn.convert.targets.base import Converted
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentSizes


def on_device(device: str) -> AbstractContextManager[object]:
    """Give fresh tensors on that device; on the CPU they are there anyway, and the context would slow every call."""
    return nullcontext() if device == "cpu" else torch.device(device)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass
class Layers:
    """The blocks of a plan's source."""

    plan: Plan
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.plan.request.device).manual_seed(self.plan.request.seed)

    def read(self, layer: int) -> AttentionWeights:
        """Give a block's attention weights, in float32 or wider: nothing is rounded until it is written."""
        plan = self.plan
        arch = plan.arch.at(layer)
        of_class = {plan.parameter(layer, name): name for name in sorted(arch.tensors)}
        known = plan.source.names
        found = known.read_all((path for path in of_class if known.stored(path)), self._finite)
        return split(arch, plan.geometry, {of_class[path]: _widened(tensor) for path, tensor in found})

    def _finite(self, name: str) -> Tensor:
        tensor = self.plan.source.weights.read(name).to(self.plan.request.device)
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ConvertAttnError(
                f"tensor '{name}' of '{self.plan.source.origin.name}' has {bad} values that are NaN or infinite: "
                "the checkpoint is broken; download it again"
            )
        return tensor

    def prior(self, layer: int) -> Moments:
        """Give the moments that the block's norm alone lets one guess."""
        return self._behind(self.plan.arch.at(layer).norm, self.plan.parameter(layer, ""))

    def prior_of_others(self) -> Moments:
        """Give the moments that the encoder's last norm alone lets one guess of what it gives.

        Of states of images, behind which is no norm: of numbers that are uncorrelated, of size one. (By the projection
        that makes these states it was as good: attention's output off by 0.724 and 0.726 of its size, the mean of three
        random models at 4, 2 and 1 heads of 8.)
        """
        cross = self.plan.arch.cross
        return self._behind(None if cross is None else cross.encoder_norm, self.plan.source.names.base)

    def _behind(self, of_norm: Norm | None, stem: str) -> Moments:
        """Moments of what a norm gives, whose name in the source's class begins so."""
        if of_norm is None or not of_norm.weighted:
            return moments_from_norm(torch.ones(self.plan.geometry.hidden_size, dtype=torch.float64), None)
        names = self.plan.source.names
        weight, bias = (f"{stem}{of_norm.name}.{kind}" for kind in ("weight", "bias"))
        gain = names.read(weight, self._finite).to(torch.float64) + of_norm.gain_offset
        return moments_from_norm(gain, names.read(bias, self._finite) if names.stored(bias) else None)

    def context(self, layer: int, seen: LayerStatistics | None, score_share: float = 1.0) -> LayerContext:
        """Tell what a method may know: measured where there was text, guessed from the norm where there was none."""
        with on_device(self.plan.request.device):
            return self._context(layer, self.prior(layer), seen, score_share)

    def _context(self, layer: int, prior: Moments, seen: LayerStatistics | None, score_share: float) -> LayerContext:
        sizes = self.plan.geometry
        block = sizes.block(layer)
        rule = block.rule()
        # where other layers turn, a class with a latent has a rotary key in this one, too: its frequencies are zero
        turns = block.turns or (sizes.turns and isinstance(self.plan.form, LatentCache))
        rotary = RotaryPlanes(block.plane_frequencies()) if turns else None
        epsilon = self.plan.epsilon
        if seen is None:
            offsets = prior_offsets(sizes.num_heads, sizes.context)
            others = self.prior_of_others() if block.across else None
            return LayerContext(
                moments=prior,
                keys=others,
                attended=others,
                rotary=rotary,
                offsets=offsets,
                generator=self.generator,
                epsilon=epsilon,
                fixed_order=block.fixed_order,
                norm=rule.norm,
                capped=rule.softcap is not None,
            )
        tokens, keys, attended = seen.damped(prior, self.prior_of_others() if block.across else None)
        offsets = seen.offsets(sizes.context)
        return LayerContext(
            moments=tokens,
            rotary=rotary,
            offsets=offsets,
            generator=self.generator,
            keys=keys,
            attended=attended,
            score_share=score_share,
            epsilon=epsilon,
            fixed_order=block.fixed_order,
            norm=rule.norm,
            capped=rule.softcap is not None,
        )

    def convert(self, weights: AttentionWeights, context: LayerContext, form: Form) -> Converted:
        """Give the block's new form.

        Args:
            form: that layer's.
        """
        with on_device(self.plan.request.device):
            return self._convert(weights, context, form)

    def _convert(self, weights: AttentionWeights, context: LayerContext, wanted: Form) -> Converted:
        plan, method = self.plan, self.plan.method
        if isinstance(wanted, SharedHeads) and wanted.groups == (weights.num_kv_heads,):
            return weights
        if isinstance(wanted, SharedHeads) and method.share is not None:
            return method.share(weights, wanted.groups[0], context)
        if isinstance(wanted, LatentCache) and method.compress is not None:
            frequencies = plan.target.frequencies(replace(plan.blueprint, form=wanted))
            sizes = LatentSizes(wanted.rank, wanted.rope_dim, frequencies)
            moments = context.moments
            taken = None
            if context.norm is not None:
                taken = NormedLatent.of(weights, context.norm, moments, context.key_moments)
                weights, context = taken.weights, replace(context, norm=None)
            converted = method.compress(weights, sizes, context)
            if taken is not None:
                converted = taken.normed(converted)
            self._check_frequencies(converted.inv_freq, frequencies)
            input_power = float(moments.variance().mean())
            return replace(converted, norm=wanted.norm, power=moments.power(converted.down), input_power=input_power)
        raise UsageError(f"method '{method.name}' does not serve --to {plan.request.to}")

    def _check_frequencies(self, chosen: Tensor, prescribed: tuple[float, ...] | None) -> None:
        """A class that prescribes how fast planes turn has no place to say otherwise."""
        if prescribed is None:
            return
        wanted = torch.tensor(prescribed, dtype=chosen.dtype, device=chosen.device)
        if chosen.shape != wanted.shape or not torch.allclose(chosen, wanted):
            raise ConvertAttnError(
                f"method '{self.plan.method.name}' chose rotary frequencies of its own, but {self.plan.target.name} "
                "prescribes them: give --layout custom or another --method"
            )
