"""Queries, keys and values of a converted layer solved anew on text, against what the original's attention does there.

A method fits a layer on sums over the text (`statistics`), in which queries and keys know nothing of each other. Here
the converted attention reads what the layers before it, converted already, have made of the text, and some queries of
every window are held against the original's own. Softmax forgets what is added to all scores of a query, and an error
e_ts counts as much as token s may be looked at. So the error of scores is their variance,

    sum_t sum_s w_ts (e_ts - sum_u w_tu e_tu)^2,

which is twice the KL divergence between the two attentions to second order where w is the original's attention p. With
p alone, tokens that the original never looks at could get any score: w is half p, and for the rest what the conversion
looks at and an even share of all tokens. Scores are linear in the queries for given keys and the other way round;
outputs are linear in the values. Each half-step is a damped least-squares problem, solved by a few steps of
`conjugate_gradients`, which never form its matrix. Damping pulls towards what the method gave, in the metric of the
inputs' second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.attention_sample import Sample, gathered, mixed, scores_of
from convert_attn.convert.conjugate_gradients import conjugate_gradients, regular
from convert_attn.convert.functional import (
    Rule,
    keys,
    latent_of,
    may_not_look,
    project,
    queries,
    turn,
    values,
)
from convert_attn.convert.latent import LatentWeights

Weights = AttentionWeights | LatentWeights

_OWN, _SEEN = 0.5, 0.4  # of w: the original's attention and the conversion's; the rest is even
_DAMPING = 1.0  # of a change of queries or keys, as a share of what it does to the scores of a typical token
_VALUE_DAMPING = 0.01
_OUTPUT_RIDGE = 0.1
_STEPS = 5
_ROUNDS = 2  # of values and output projection


@dataclass(frozen=True)
class _Part:
    """A projection that is solved for.

    Attributes:
        names: of the weight's field and of its bias's ("" where it has none).
        weight: [n, e, M], the bias as one more column where there is one.
        columns: which numbers of a query or key it gives.
        turning: [e / 2] frequencies of its planes, None where it does not turn.
        metric: [M, M] second moments of what it reads.
        reads: batch -> [B, T, M].
    """

    names: tuple[str, str]
    weight: Tensor
    columns: slice
    turning: Tensor | None
    metric: Tensor
    reads: Callable[[int], Tensor]
    scale: float = 1.0

    def turned(self, states: Tensor, positions: Tensor | None = None) -> Tensor:
        """Planes turned to their positions."""
        return states if self.turning is None else turn(states, self.turning, self.scale, positions)

    def turned_back(self, states: Tensor, positions: Tensor | None = None) -> Tensor:
        """The transpose of `turned`."""
        return states if self.turning is None else turn(states, -self.turning, self.scale, positions)

    def given(self, change: Tensor, batch: int, rows: Tensor | None = None) -> Tensor:
        """What a change [n, e, M] of the weight makes of a batch: [B, n, T, e]."""
        read = self.reads(batch)
        return self.turned(project(change, None, read if rows is None else read[:, rows]), rows)

    def pulled(self, states: Tensor, batch: int, rows: Tensor | None = None) -> Tensor:
        """The transpose of `given`: [B, n, T, e] -> [n, e, M]."""
        read = self.reads(batch)
        back = self.turned_back(states, rows).permute(1, 3, 0, 2).flatten(2)  # [n, e, B T]
        return back @ (read if rows is None else read[:, rows]).flatten(0, 1)

    def moved(self, weights: Weights, change: Tensor) -> Weights:
        """The weights with this part changed."""
        new = self.weight + change
        changed: dict[str, Any] = {}
        own = getattr(weights, self.names[0])
        if self.names[1]:
            bias = getattr(weights, self.names[1])
            changed[self.names[1]] = new[..., -1].reshape(bias.shape)
            new = new[..., :-1]
        changed[self.names[0]] = new.reshape(own.shape)
        return replace(weights, **changed)


@dataclass
class LayerRefit:
    """A converted layer's queries, keys and values, solved for one after the other.

    Attributes:
        weights: of the conversion, float32; changed by each step.
        tokens, key_tokens, value_tokens: [D, D] second moments of what queries, keys and values read.
    """

    weights: Weights
    sample: Sample
    rule: Rule
    tokens: Tensor
    key_tokens: Tensor
    value_tokens: Tensor
    _importance: list[Tensor] = field(default_factory=list)
    _counts: list[Tensor] = field(default_factory=list)

    def run(self) -> Weights:
        """Queries, keys, then values with the output projection."""
        self._weigh()
        self._solve_queries()
        self._solve_keys()
        self._importance.clear()
        self._solve_values()
        return self.weights

    # --- what is solved for

    def _part(self, name: str, columns: slice, turning: Tensor | None, metric: Tensor, latent: bool = False) -> _Part:
        weight: Tensor = getattr(self.weights, name)
        bias: Tensor | None = getattr(self.weights, f"{name}_bias", None)
        if weight.ndim == 2:  # a rotary key that all heads share
            weight, bias = weight[None], None if bias is None else bias[None]
        inputs = self.sample.inputs
        held: dict[int, Tensor] = {}
        if latent:
            inputs = [latent_of(self.weights, x) for x in inputs if isinstance(self.weights, LatentWeights)]
        if bias is not None:
            weight = torch.cat([weight, bias[..., None]], -1)
            metric = torch.block_diag(metric, torch.ones(1, 1, dtype=metric.dtype, device=metric.device))

        def reads(batch: int) -> Tensor:
            if bias is None:
                return inputs[batch]
            if batch not in held:
                held[batch] = torch.cat([inputs[batch], torch.ones_like(inputs[batch][..., :1])], -1)
            return held[batch]

        names = (name, "" if bias is None else f"{name}_bias")
        return _Part(names, weight, columns, turning, metric, reads, self.rule.rotary_scale)

    def _query_parts(self) -> list[_Part]:
        w, everything = self.weights, slice(None)
        if isinstance(w, AttentionWeights):
            return [self._part("q", everything, self._turning, self.tokens)]
        d = w.q_nope.shape[1]
        parts = [self._part("q_nope", slice(0, d), None, self.tokens)]
        return parts + ([self._part("q_rope", slice(d, None), w.inv_freq, self.tokens)] if w.inv_freq.numel() else [])

    def _key_parts(self) -> list[_Part]:
        w, everything = self.weights, slice(None)
        if isinstance(w, AttentionWeights):
            return [self._part("k", everything, self._turning, self.key_tokens)]
        d = w.q_nope.shape[1]
        parts = [self._part("up_k", slice(0, d), None, self._latent_metric(self.key_tokens), latent=True)]
        return parts + (
            [self._part("k_rope", slice(d, None), w.inv_freq, self.key_tokens)] if w.inv_freq.numel() else []
        )

    def _value_part(self) -> _Part:
        if isinstance(self.weights, AttentionWeights):
            return self._part("v", slice(None), None, self.value_tokens)
        return self._part("up_v", slice(None), None, self._latent_metric(self.value_tokens), latent=True)

    @property
    def _turning(self) -> Tensor | None:
        frequencies = self.rule.inv_freq
        return None if frequencies is None else frequencies.to(self.tokens.device)

    def _latent_metric(self, moment: Tensor) -> Tensor:
        assert isinstance(self.weights, LatentWeights)
        down = self.weights.down.to(moment.dtype)
        return down @ moment @ down.T

    # --- scores

    def _queries(self, batch: int) -> Tensor:
        rows = self.sample.rows
        return queries(self.weights, self.sample.inputs[batch][:, rows], self.rule, rows) * self.rule.scale

    def _keys(self, batch: int) -> Tensor:
        return keys(self.weights, self.sample.inputs[batch], self.rule)

    def _weigh(self) -> None:
        """w of every query and token: see the top."""
        rows, length = self.sample.rows, self.sample.inputs[0].shape[1]
        hidden = may_not_look(self.rule, length, rows)
        even = (~hidden).to(torch.float32)
        even = (1 - _OWN - _SEEN) * even / even.sum(-1, keepdim=True)
        for batch, own in enumerate(self.sample.attention):
            seen = scores_of(self._queries(batch), self._keys(batch)).masked_fill_(hidden, -torch.inf).softmax(-1)
            self._importance.append(_OWN * own + _SEEN * seen + even)

    def _centred(self, batch: int, errors: Tensor) -> Tensor:
        """The gradient, by scores, of half the error."""
        w = self._importance[batch]
        return w * (errors - (w * errors).sum(-1, keepdim=True))

    def _missing(self, batch: int, query: Tensor, key: Tensor) -> Tensor:
        return self._centred(batch, self.sample.scores[batch] - scores_of(query, key))

    def _solve_queries(self) -> None:
        rows, scale, parts = self.sample.rows, self.rule.scale, self._query_parts()
        every = [self._keys(batch) for batch in range(len(self.sample.inputs))]

        def pull(gradients: Sequence[Tensor]) -> list[Tensor]:
            sums = [torch.zeros_like(part.weight) for part in parts]
            for batch, gradient in enumerate(gradients):
                back = mixed(gradient, every[batch]) * scale
                for total, part in zip(sums, parts, strict=True):
                    total += part.pulled(back[..., part.columns], batch, rows)
            return sums

        def apply(changes: list[Tensor]) -> list[Tensor]:
            given = (
                torch.cat([part.given(c, batch, rows) for part, c in zip(parts, changes, strict=True)], -1) * scale
                for batch in range(len(every))
            )
            return pull([self._centred(b, scores_of(query, every[b])) for b, query in enumerate(given)])

        weight = sum(
            torch.einsum("bhrt,bhte->he", self._importance[b], key.square().repeat_interleave(self._shared(key), 1))
            for b, key in enumerate(every)
        )
        self._settle(parts, apply, pull(self._errors(every)), weight * scale**2)

    def _shared(self, states: Tensor) -> int:
        return self.sample.attention[0].shape[1] // states.shape[1]

    def _errors(self, every: list[Tensor]) -> list[Tensor]:
        return [self._missing(batch, self._queries(batch), key) for batch, key in enumerate(every)]

    def _solve_keys(self) -> None:
        parts = self._key_parts()
        every = [self._queries(batch) for batch in range(len(self.sample.inputs))]

        def pull(gradients: Sequence[Tensor]) -> list[Tensor]:
            sums = [torch.zeros_like(part.weight) for part in parts]
            for batch, gradient in enumerate(gradients):
                for total, part in zip(sums, parts, strict=True):
                    back = gathered(gradient, every[batch][..., part.columns], part.weight.shape[0])
                    total += part.pulled(back, batch)
            return sums

        def apply(changes: list[Tensor]) -> list[Tensor]:
            gradients = []
            for batch, query in enumerate(every):
                scores = sum(
                    scores_of(query[..., part.columns], part.given(change, batch))
                    for part, change in zip(parts, changes, strict=True)
                )
                assert isinstance(scores, Tensor)
                gradients.append(self._centred(batch, scores))
            return pull(gradients)

        weight = sum(torch.einsum("bhre->he", query.square()) for query in every)
        errors = [self._missing(batch, query, self._keys(batch)) for batch, query in enumerate(every)]
        self._settle(parts, apply, pull(errors), weight)

    def _settle(
        self,
        parts: list[_Part],
        apply: Callable[[list[Tensor]], list[Tensor]],
        right: list[Tensor],
        weight: Tensor | float,
    ) -> None:
        """Solve for a change of the parts, damped, and make it.

        Args:
            weight: [H, e] what the square of each number of a query or key counts for the scores.
        """
        assert isinstance(weight, Tensor)
        sizes, metrics, inverses = [], [], []
        for part in parts:
            of_part = weight[:, part.columns].mean(-1).unflatten(0, (part.weight.shape[0], -1)).sum(1)
            sizes.append(of_part.clamp_min(of_part.max() * 1e-6 + 1e-30)[:, None, None])
            metric = regular(part.metric)
            metrics.append(metric.float())
            inverses.append(torch.linalg.inv(metric).float())

        def damped(changes: list[Tensor]) -> list[Tensor]:
            made = apply(changes)
            return [
                m + _DAMPING * size * (change @ metric)
                for m, change, size, metric in zip(made, changes, sizes, metrics, strict=True)
            ]

        def precondition(rest: list[Tensor]) -> list[Tensor]:
            return [r @ inverse / size for r, inverse, size in zip(rest, inverses, sizes, strict=True)]

        changes = conjugate_gradients(damped, right, precondition, _STEPS)
        for part, change in zip(parts, changes, strict=True):
            self.weights = part.moved(self.weights, change)

    # --- values

    def _solve_values(self) -> None:
        """Values and, on the sample only, the output projection, in turn."""
        rows, length = self.sample.rows, self.sample.inputs[0].shape[1]
        hidden = may_not_look(self.rule, length, rows)
        seen = [
            scores_of(self._queries(batch), self._keys(batch)).masked_fill_(hidden, -torch.inf).softmax(-1)
            for batch in range(len(self.sample.inputs))
        ]
        self._count(seen)
        for _ in range(_ROUNDS):
            self._solve_output(seen)
            self._solve_value(seen)
        self._solve_output(seen)

    def _heads_out(self, seen: Tensor, batch: int) -> Tensor:
        """[B, r, H, a]."""
        return mixed(seen, values(self.weights, self.sample.inputs[batch])).transpose(1, 2)

    def _missing_output(self, batch: int, heads: Tensor) -> Tensor:
        """What the output lacks: [B, r, D]."""
        out = torch.einsum("brha,hDa->brD", heads, self.weights.o)
        return self.sample.outputs[batch] - (out if self.weights.o_bias is None else out + self.weights.o_bias)

    def _count(self, seen: list[Tensor]) -> None:
        """What errors count: relative to the residual stream, or to the error itself where that is larger."""
        for batch, attention in enumerate(seen):
            missing, w = self._missing_output(batch, self._heads_out(attention, batch)), self.sample.weights[batch]
            self._counts.append(w / (1 + w * missing.square().sum(-1, keepdim=True)))

    def _solve_output(self, seen: list[Tensor]) -> None:
        o, gram, cross = self.weights.o, None, None
        for batch, attention in enumerate(seen):
            heads = self._heads_out(attention, batch)
            missing = self._missing_output(batch, heads).flatten(0, 1)
            flat = heads.flatten(2).flatten(0, 1)
            weighed = (flat * self._counts[batch].flatten(0, 1)).mT
            gram = weighed @ flat if gram is None else gram + weighed @ flat
            cross = weighed @ missing if cross is None else cross + weighed @ missing
        if gram is None or cross is None:
            return
        ridge = (_OUTPUT_RIDGE * gram.diagonal().mean()).clamp_min(1e-30)
        damped = gram.double() + torch.eye(len(gram), dtype=torch.float64, device=gram.device) * ridge
        change = torch.linalg.solve(damped, cross.double()).float().unflatten(0, (o.shape[0], o.shape[2])).mT
        self.weights = replace(self.weights, o=o + change)

    def _solve_value(self, seen: list[Tensor]) -> None:
        part, o = self._value_part(), self.weights.o
        n = part.weight.shape[0]

        def pull(lacking: Sequence[Tensor]) -> list[Tensor]:
            total = torch.zeros_like(part.weight)
            for batch, missing in enumerate(lacking):
                heads = torch.einsum("brD,hDa->bhra", missing, o)
                total += part.pulled(gathered(seen[batch], heads, n), batch)
            return [total]

        def apply(changes: list[Tensor]) -> list[Tensor]:
            outs = []
            for batch, attention in enumerate(seen):
                heads = mixed(attention, part.given(changes[0], batch))
                out = torch.einsum("bhra,hDa->brD", heads, o)
                outs.append(out * self._counts[batch])
            return pull(outs)

        weight = sum(float(w.sum()) for w in self._counts)
        readers = torch.einsum("hDa,hDb->hab", o, o).unflatten(0, (n, -1)).sum(1).double()  # [n, a, a]
        readers = torch.stack([regular(reader) for reader in readers]) * weight
        metric = regular(part.metric)
        inverse, left = torch.linalg.inv(metric).float(), torch.linalg.inv(readers).float()
        size = readers.diagonal(0, 1, 2).mean(-1)[:, None, None].float()

        def damped(changes: list[Tensor]) -> list[Tensor]:
            return [apply(changes)[0] + _VALUE_DAMPING * size * (changes[0] @ metric.float())]

        right = pull(
            [
                self._missing_output(b, self._heads_out(attention, b)) * self._counts[b]
                for b, attention in enumerate(seen)
            ]
        )
        (change,) = conjugate_gradients(damped, right, lambda rest: [left @ rest[0] @ inverse], _STEPS)
        self.weights = part.moved(self.weights, change)
