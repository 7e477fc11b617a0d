"""Queries, keys and values of a converted layer solved anew on text, against what the original's attention does there.

A method fits a layer on sums over the text (`statistics`), in which queries and keys know nothing of each other. Here
the converted attention reads what the layers before it, converted already, have made of the text, and the queries of
every window (some of them, where there are very many) are held against the original's own. Softmax forgets what is
added to all scores of a query, and an error e_ts counts as much as token s may be looked at. So the error of scores is
their variance,

    sum_t sum_s w_ts (e_ts - sum_u w_tu e_tu)^2,

which is twice the KL divergence between the two attentions to second order where w is the original's attention p. With
p alone, tokens that the original never looks at could get any score: w is half p, and for the rest what the conversion
looks at and an even share of all tokens. Scores are linear in the queries for given keys and the other way round;
outputs are linear in the values. Each half-step is a damped least-squares problem, solved by a few steps of
`conjugate_gradients`, which never form its matrix; the Kronecker product of what the numbers of a query do to scores
and of the inputs' second moments is near enough to it for three steps to do. What scores and outputs still lack is
exact; what the matrix makes of it may be rough (bfloat16, where that is faster: on a layer of SmolLM2 the errors end
within 3e-4 of those without). Damping pulls towards what the method gave, in the metric of the inputs' second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from convert_attn.convert.fitting.attention_sample import Sample, Tile, gathered, mixed, scores_of
from convert_attn.convert.fitting.projection import Projection, Weights
from convert_attn.convert.fitting.projections import Parts
from convert_attn.convert.maths.conjugate_gradients import conjugate_gradients, regular
from convert_attn.convert.maths.products import product, rough
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import (
    Rule,
    attention_of,
    distance_bias,
    key_sizes,
    keys,
    queries,
    values,
)
from convert_attn.convert.weights.latent import LatentWeights

_OWN, _SEEN = 0.5, 0.4  # of w: the original's attention and the conversion's; the rest is even
_DAMPING = 0.1  # of a change of queries or keys, as a share of what it does to the scores of a typical token
_VALUE_DAMPING = 0.1
_OUTPUT_RIDGE = 0.1
_STEPS = 3
_ROUNDS = 2  # of queries and keys in front of a latent (SmolLM2, half the cache: perplexity 13.32 after one, 13.27)
_SKIPPED = 32  # of so many queries one is looked at for what precedes the first step
_MANY = 32  # queries for each number of an input: half of them do for what precedes the first step

Counted = tuple[Tensor, list[Tensor]]
"""[H, e] what the square of each number of a query or key counts for the scores; [n, e, e] by part, what numbers
together count. Both are as in the first round: they only damp and precondition."""


@dataclass(kw_only=True)
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
    _counts: list[Tensor] = field(default_factory=list)
    _of_queries: Counted | None = None
    _of_keys: Counted | None = None

    def run(self) -> Weights:
        """Give queries, keys, then values with the output projection."""
        every, asked = self._keys(), [*map(self._queries, self.sample.tiles)]
        self._weigh(every, asked)
        for _ in range(_ROUNDS if isinstance(self.weights, LatentWeights) else 1):
            if self._parts.queries():
                self._solve_queries(every, asked)
            asked = [*map(self._queries, self.sample.tiles)]
            self._solve_keys(every, asked)
            every = self._keys()
        for tile in self.sample.tiles:
            tile.forget_scores()
        self._solve_values([*map(self._seen, self.sample.tiles, asked, (every[t.batch] for t in self.sample.tiles))])
        return self.weights

    @property
    def _parts(self) -> Parts:
        return Parts(
            weights=self.weights,
            inputs=self.sample.inputs,
            looked_at=self.sample.looked_at,
            rule=self.rule,
            tokens=self.tokens,
            key_tokens=self.key_tokens,
            value_tokens=self.value_tokens,
        )

    # --- scores

    def _queries(self, tile: Tile) -> Tensor:
        read = self.sample.inputs[tile.batch][:, tile.rows]
        query = queries(self.weights, read, self.rule, tile.positions) * self.rule.scale
        return query if tile.asked is None else query * tile.asked

    def _keys(self) -> list[Tensor]:
        return [keys(self.weights, read, self.rule) for read in self.sample.looked_at]

    def _seen(self, tile: Tile, query: Tensor, key: Tensor) -> Tensor:
        """The conversion's own attention [B, H, r, length]."""
        scores = scores_of(query, key[:, :, : tile.length])
        bias = distance_bias(self.rule, tile.length, tile.positions)  # heads that have one stay in their places
        sinks = self.weights.sinks if isinstance(self.weights, AttentionWeights) else None
        return attention_of(scores, self.rule, hidden=tile.hidden, bias=bias, sinks=sinks)

    def _weigh(self, every: list[Tensor], asked: list[Tensor]) -> None:
        """w of every query and token, by the keys of every batch and the queries of every tile: see the top."""
        for tile, query in zip(self.sample.tiles, asked, strict=True):
            even = (~tile.hidden).to(torch.float32)
            even = (1 - _OWN - _SEEN) * even / even.sum(-1, keepdim=True)
            seen = self._seen(tile, query, every[tile.batch])
            tile.importance.mul_(_OWN).add_(seen, alpha=_SEEN).add_(even)
            if tile.asked is not None:
                tile.importance.mul_(tile.asked)

    def _solve_queries(self, every: list[Tensor], asked: list[Tensor]) -> None:
        scale, parts = self.rule.scale, self._parts.queries()
        first = parts[0].columns.start or 0  # what comes before it stays as it is

        def pull(gradients: Iterable[Tensor]) -> list[Tensor]:
            sums = [torch.zeros_like(part.weight) for part in parts]
            for tile, gradient in zip(self.sample.tiles, gradients, strict=True):
                back = mixed(gradient, every[tile.batch][:, :, : tile.length]) * scale
                for total, part in zip(sums, parts, strict=True):
                    total += part.pulled(back[..., part.columns], tile.batch, tile)
            return sums

        def errors(changes: list[Tensor]) -> Iterator[Tensor]:
            for tile in self.sample.tiles:
                given = [part.given(c, tile.batch, tile) for part, c in zip(parts, changes, strict=True)]
                query = torch.cat(given, -1) * scale
                scores = scores_of(query, every[tile.batch][:, :, : tile.length, first:], product)
                yield _centred(tile.importance, scores)

        if self._of_queries is None:
            self._of_queries = self._counted_for_queries(parts, every)
        with rough():
            right = pull(self._errors(asked, every))
        self._settle(parts, lambda changes: pull(errors(changes)), right, self._of_queries)

    def _counted_for_queries(self, parts: list[Projection], every: list[Tensor]) -> Counted:
        scale, weight = self.rule.scale, torch.zeros(())
        for tile in self.sample.tiles:
            w, key = tile.importance, every[tile.batch][:, :, : tile.length]
            per_key = w.shape[1] // key.shape[1]
            weight = weight + torch.einsum("bhrt,bhte->he", w, key.square().repeat_interleave(per_key, 1)) * scale**2
        return weight, [self._spread_of_keys(part, every) * scale**2 for part in parts]

    def _spread_of_keys(self, part: Projection, every: list[Tensor]) -> Tensor:
        """What a query's numbers do to scores, besides what softmax forgets, from some of the queries: [n, e, e]."""
        total, seen = torch.zeros(()), 0
        for tile in self._some_tiles():
            w, positions = tile.importance, tile.positions[::_SKIPPED]
            some = w[:, :, ::_SKIPPED]
            key = every[tile.batch][:, :, : tile.length, part.columns]
            key = key.repeat_interleave(w.shape[1] // key.shape[1], 1)[:, :, None]  # [B, H, 1, T, e]
            mean = some[:, :, :, None] @ key  # [B, H, r, 1, e]
            spread = (key * some[..., None]).mT @ key - mean.mT @ mean  # [B, H, r, e, e]
            turned = part.turned_back(spread.permute(0, 1, 3, 2, 4), positions)  # [B, H, e, r, e]
            turned = part.turned_back(turned.permute(0, 1, 4, 3, 2), positions)
            total, seen = total + turned.sum((0, 3)), seen + some.shape[2]
        return total * (sum(len(tile.positions) for tile in self.sample.tiles) / seen)

    def _errors(self, by_tile: Iterable[Tensor], every: list[Tensor]) -> Iterator[Tensor]:
        """What the scores lack, weighed; of the queries of every tile and the keys of every batch."""
        for tile, query in zip(self.sample.tiles, by_tile, strict=True):
            made = scores_of(query, every[tile.batch][:, :, : tile.length])
            yield _centred(tile.importance, tile.scores - made)

    def _some_tiles(self) -> list[Tile]:
        """Every second tile of each window; all where queries are not many."""
        tiles = self.sample.tiles
        rows = sum(tile.output.shape[0] * len(tile.positions) for tile in tiles)
        if rows < _MANY * self.tokens.shape[-1]:
            return tiles
        return [tile for n, tile in enumerate(tiles) if (n + tile.batch) % 2 == 0]

    def _sizes_of_keys(self) -> tuple[list[Tensor], Tensor] | None:
        """What a norm multiplies keys by, batch by batch [B, H, 1, T], less its typical size [H]; None without one."""
        weights = self.weights
        if not isinstance(weights, LatentWeights) or weights.head_norm is None:
            return None
        found = [key_sizes(weights, x) for x in self.sample.looked_at]
        sizes = [size.mT for size in found if size is not None]
        typical = torch.stack([size.square().mean((0, 2, 3)) for size in sizes]).mean(0).sqrt()
        return [size / typical[:, None, None] for size in sizes], typical

    def _solve_keys(self, every: list[Tensor], asked: list[Tensor]) -> None:
        parts, behind_norm = self._parts.keys(), self._sizes_of_keys()
        right_errors = self._errors(asked, every)
        if behind_norm is not None:
            asked = [query * behind_norm[1][:, None, None] for query in asked]

        def sized(scores: Tensor, tile: Tile) -> Tensor:
            return scores if behind_norm is None else scores * behind_norm[0][tile.batch][..., : tile.length]

        def pull(gradients: Iterable[Tensor]) -> list[Tensor]:
            backs = [[x.new_zeros(len(x), len(p.weight), x.shape[1], p.weight.shape[1]) for p in parts] for x in inputs]
            for tile, query, gradient in zip(self.sample.tiles, asked, gradients, strict=True):
                gradient = sized(gradient, tile)
                for part, back in zip(parts, backs[tile.batch], strict=True):
                    back[:, :, : tile.length] += gathered(gradient, query[..., part.columns], len(part.weight))
            sums = [torch.zeros_like(part.weight) for part in parts]
            for batch, of_parts in enumerate(backs):
                for total, part, back in zip(sums, parts, of_parts, strict=True):
                    total += part.pulled(back, batch)
            return sums

        def errors(changes: list[Tensor]) -> Iterator[Tensor]:
            made: dict[int, list[Tensor]] = {}
            for tile, query in zip(self.sample.tiles, asked, strict=True):
                if tile.batch not in made:
                    made = {tile.batch: [p.given(c, tile.batch) for p, c in zip(parts, changes, strict=True)]}
                scores = torch.zeros(())
                for part, key in zip(parts, made[tile.batch], strict=True):
                    scores = scores + scores_of(query[..., part.columns], key[:, :, : tile.length], product)
                yield _centred(tile.importance, sized(scores, tile))

        inputs = self.sample.looked_at
        if self._of_keys is None:
            weight = torch.stack([torch.einsum("bhre->he", query.square()) for query in asked]).sum(0)
            self._of_keys = weight, [self._spread_of_queries(part, asked) for part in parts]
        with rough():
            right = pull(right_errors)
        self._settle(parts, lambda changes: pull(errors(changes)), right, self._of_keys)

    def _spread_of_queries(self, part: Projection, asked: list[Tensor]) -> Tensor:
        """What a key's numbers do to scores, from some of the queries: [n, e, e]."""
        total, seen, rows = torch.zeros(()), 0, 0
        for tile, whole in zip(self.sample.tiles, asked, strict=True):
            query = whole[:, :, ::_SKIPPED, part.columns]
            seen, rows = seen + query.shape[2], rows + whole.shape[2]
            if part.turning is None:
                total = total + torch.einsum("bhre,bhrf->hef", query, query)
                continue
            some = tile.importance[:, :, ::_SKIPPED]
            met = part.turned_back(query[:, :, :, None].expand(-1, -1, -1, tile.length, -1))  # [B, H, r, T, e]
            total = total + ((met * some[..., None]).mT @ met).sum((0, 2))
        shared: Tensor = total.unflatten(0, (len(part.weight), -1)).sum(1)
        return shared * (rows / seen)

    def _settle(
        self,
        parts: list[Projection],
        apply: Callable[[list[Tensor]], list[Tensor]],
        right: list[Tensor],
        counted: Counted,
    ) -> None:
        """Solve for a change of the parts, damped, and make it."""
        weight, spreads = counted
        sizes, lefts, metrics, inverses = [], [], [], []
        for part, spread in zip(parts, spreads, strict=True):
            of_part = weight[:, part.columns].mean(-1).unflatten(0, (part.weight.shape[0], -1)).sum(1)
            if part.slope is not None:  # what the norm makes of a number, near enough
                size = part.slope(0).size()
                spread, of_part = spread * size[:, :, None] * size[:, None], of_part * size.square().mean(-1)
            sizes.append(of_part.clamp_min(of_part.max() * 1e-6 + 1e-30)[:, None, None])
            even = torch.eye(spread.shape[-1], dtype=torch.float64, device=spread.device)
            lefts.append(torch.linalg.inv(spread.double() + _DAMPING * sizes[-1] * even).float())
            metric = regular(part.metric)
            metrics.append(metric.float())
            inverses.append(torch.linalg.inv(metric).float())

        def damped(changes: list[Tensor]) -> list[Tensor]:
            with rough():
                made = apply(changes)
            return [
                m + _DAMPING * size * (change @ metric)
                for m, change, size, metric in zip(made, changes, sizes, metrics, strict=True)
            ]

        def precondition(rest: list[Tensor]) -> list[Tensor]:
            return [left @ r @ inverse for r, inverse, left in zip(rest, inverses, lefts, strict=True)]

        changes = conjugate_gradients(damped, right, precondition, _STEPS)
        for part, change in zip(parts, changes, strict=True):
            self.weights = part.moved(self.weights, change)

    # --- values

    def _solve_values(self, seen: list[Tensor]) -> None:
        """Values, whose errors the output projection passes on; that is solved before and after, on the sample only."""
        heads = self._heads_out(seen)
        missing = [*map(self._missing_output, self.sample.tiles, heads)]
        self._count(missing)
        self._solve_output(heads, missing)
        del missing
        self._solve_value(seen, heads)
        heads = self._heads_out(seen)
        self._solve_output(heads, [*map(self._missing_output, self.sample.tiles, heads)])

    def _heads_out(self, seen: list[Tensor]) -> list[Tensor]:
        """[B, r, H, a], tile by tile."""
        made: dict[int, Tensor] = {}
        found = []
        for tile, attention in zip(self.sample.tiles, seen, strict=True):
            if tile.batch not in made:
                made = {tile.batch: values(self.weights, self.sample.looked_at[tile.batch])}
            found.append(mixed(attention, made[tile.batch][:, :, : tile.length]).transpose(1, 2))
        return found

    def _missing_output(self, tile: Tile, heads: Tensor) -> Tensor:
        """What the output lacks: [B, r, D]."""
        out = heads.flatten(2) @ self._o_rows
        return tile.output - (out if self.weights.o_bias is None else out + self.weights.o_bias)

    @property
    def _o_rows(self) -> Tensor:
        """The output projection [H a, D]."""
        return self.weights.o.mT.flatten(0, 1)

    def _count(self, missing: list[Tensor]) -> None:
        """What errors count: relative to the residual stream, or to the error itself where that is larger."""
        for tile, lost in zip(self.sample.tiles, missing, strict=True):
            w = tile.weight
            self._counts.append(w / (1 + w * lost.square().sum(-1, keepdim=True)))

    def _solve_output(self, heads_out: list[Tensor], missing: list[Tensor]) -> None:
        o, gram, cross = self.weights.o, None, None
        for count, heads, lost in zip(self._counts, heads_out, missing, strict=True):
            flat, errors = heads.flatten(2).flatten(0, 1), lost.flatten(0, 1)
            weighed = (flat * count.flatten(0, 1)).mT
            gram = weighed @ flat if gram is None else gram.addmm_(weighed, flat)
            cross = weighed @ errors if cross is None else cross.addmm_(weighed, errors)
        if gram is None or cross is None:
            return
        ridge = (_OUTPUT_RIDGE * gram.diagonal().mean()).clamp_min(1e-30)
        damped = gram.double() + torch.eye(len(gram), dtype=torch.float64, device=gram.device) * ridge
        change = torch.linalg.solve(damped, cross.double()).float().unflatten(0, (o.shape[0], o.shape[2])).mT
        self.weights = replace(self.weights, o=o + change)

    def _solve_value(self, seen: list[Tensor], heads_out: list[Tensor]) -> None:
        part, o, rows = self._parts.values(), self.weights.o, self._o_rows
        n, inputs = part.weight.shape[0], self.sample.looked_at

        def pull(pulls: Iterable[Tensor]) -> list[Tensor]:
            """Of the heads' outputs [B, r, H a]."""
            backs = [x.new_zeros(len(x), n, x.shape[1], part.weight.shape[1]) for x in inputs]
            for tile, attention, back in zip(self.sample.tiles, seen, pulls, strict=True):
                heads = back.unflatten(-1, (o.shape[0], -1)).transpose(1, 2)  # [B, H, r, a]
                backs[tile.batch][:, :, : tile.length] += gathered(attention, heads, n)
            total = torch.zeros_like(part.weight)
            for batch, back in enumerate(backs):
                total += part.pulled(back, batch)
            return [total]

        both = rows @ rows.mT  # out of the heads and back: [H a, H a]

        def errors(change: Tensor) -> Iterator[Tensor]:
            made: dict[int, Tensor] = {}
            for tile, attention, count in zip(self.sample.tiles, seen, self._counts, strict=True):
                if tile.batch not in made:
                    made = {tile.batch: part.given(change, tile.batch)}
                heads = mixed(attention, made[tile.batch][:, :, : tile.length]).transpose(1, 2)
                yield product(heads.flatten(2), both) * count

        weight = sum(float(w.sum()) for w in self._counts)
        readers = torch.einsum("hDa,hDb->hab", o, o).unflatten(0, (n, -1)).sum(1).double()  # [n, a, a]
        readers = torch.stack([regular(reader) for reader in readers]) * weight
        metric = regular(part.metric)
        inverse, left = torch.linalg.inv(metric).float(), torch.linalg.inv(readers).float()
        size = readers.diagonal(0, 1, 2).mean(-1)[:, None, None].float()

        def damped(changes: list[Tensor]) -> list[Tensor]:
            with rough():
                (made,) = pull(errors(changes[0]))
            return [made + _VALUE_DAMPING * size * (changes[0] @ metric.float())]

        lacking = (
            (self._missing_output(tile, heads) * count) @ rows.mT
            for tile, count, heads in zip(self.sample.tiles, self._counts, heads_out, strict=True)
        )
        with rough():
            right = pull(lacking)
        (change,) = conjugate_gradients(damped, right, lambda rest: [left @ rest[0] @ inverse], _STEPS)
        self.weights = part.moved(self.weights, change)


def _centred(w: Tensor, errors: Tensor) -> Tensor:
    """The gradient, by scores, of half the error: w (e - sum w e), [B, H, r, T]; `errors` is not kept."""
    weighed = w * errors
    return weighed.addcmul_(w, weighed.sum(-1, keepdim=True), value=-1)
