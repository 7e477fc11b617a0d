"""Experimental: a cache of fixed length. It keeps the first tokens, the last ones, and the rest merged into slots.

While a text fits (sinks + slots + window tokens) the cache is an ordinary one: the same tensors meet the same attention
function, bit for bit. Beyond, each token that leaves the window takes a slot, and of all slots the two that lose least
become one. For each key/value head by itself:

    cost of a pair   w_i w_j / (w_i + w_j) |k_i - k_j|^2     (Ward, 1963)
    merged key       (w_i k_i + w_j k_j) / (w_i + w_j), and likewise its position
    merged value     (m_i v_i + m_j v_j) / (m_i + m_j)
    score            q . k + log m

Here k is the key before its rotation, w the attention that a slot has received so far, m the number of its tokens. A
merged key is turned to its mean position. log m makes a slot of m equal keys count as m of them, so that it is exact;
of keys that differ it says too little (the exponential is convex). Received attention is that of the last 32 queries of
each call. A prompt is attended to whole, however long, and merged when that is done. What of this a layer does in
another way, where that was seen to lose less on text, is its MergeRule.

Where the cache holds latents (latent_slots.py) an entry is a latent and its rotary key, in the place of the keys, for
all heads together: G = 1, d = r + R, of which the last R turn, and the values have no columns.

What came before: sinks and a window (arXiv:2309.17453), received attention (arXiv:2306.14048), merging by similarity
with log of the size as a bias (ToMe, arXiv:2210.09461, "proportional attention").

Letters in shapes:
    B  batch                    T  tokens and slots held as keys, the new ones too
    G  key/value heads          S  new tokens, the ones that ask
    H  query heads              N  slots
    d  size of one head
"""

from collections.abc import Iterable
from functools import wraps
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from .replaced_parts import ReplacedParts  # noqa: TID251 - beside this file in a checkpoint, too
from .slot_merging import LAST, MASS, RECEIVED, MergeRule, SlotSizes, merge  # noqa: TID251
from .transformers_api import CACHE_NAME, cache_argument  # noqa: TID251

OBSERVED = 32  # queries of a call whose attention is counted
_NAME = "latent_sequence"


class SlotLayer(CacheLayerMixin):
    """One layer: keys and values [B, G, T, d], sinks first, then slots, then the window.

    Attributes:
        facts: [B, G, T, 3] in float32: position, mass (0 of padding) and received attention.
        merged: whether the text has outgrown it.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = False

    def __init__(self, sizes: SlotSizes) -> None:
        super().__init__()
        self.sizes, self.seen, self.merged = sizes, 0, False
        self.facts: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make it empty, of these dtypes."""
        self.device = key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.facts = key_states.new_zeros(*key_states.shape[:2], 0, LAST, dtype=torch.float32)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens, [B, G, S, d]; `attend` must follow."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, _ = self.held()
        self.keys, self.values = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
        self.seen += key_states.shape[2]
        return self.keys, self.values

    def held(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give keys, values and facts of a layer that has been given something."""
        assert self.keys is not None
        assert self.values is not None
        assert self.facts is not None
        return self.keys, self.values, self.facts

    def attend(self, module: Any, query: torch.Tensor, mask: torch.Tensor | None, **arguments: Any) -> Any:
        """Call the attention function of the config on all that is held, and then merge what is too much.

        module: the attention; query: [B, H, S, d]; mask: as transformers made it, of the new tokens alone once there
        are slots; arguments: of the attention function by name, with position_ids [B or 1, S].
        """
        function = attention_function(module)
        bias = self.bias(mask, query)
        keys, values, _ = self.held()
        found = function(module, query, keys, values, bias, **arguments)
        self.settle(
            query,
            (mask, bias),
            scaling=arguments["scaling"],
            position_ids=arguments["position_ids"],
            inv_freq=module.rotary[0].inv_freq,
        )
        return found

    @torch.no_grad()
    def settle(
        self,
        query: torch.Tensor,
        masks: tuple[torch.Tensor | None, torch.Tensor | None],
        *,
        scaling: float,
        position_ids: torch.Tensor,
        inv_freq: torch.Tensor,
    ) -> None:
        """Note what new tokens are and what they attend to, and merge what is too much.

        query: of the last of the new tokens, [B, H, up to S, d]; masks: the one that transformers made, and the one
        that attention had; scaling: of scores; position_ids: [B or 1, S].
        """
        self._note(masks[0], position_ids, position_ids.shape[-1])
        self._count(query, masks[1], scaling)
        if self.held()[0].shape[2] > self.sizes.whole:
            self.shrink(inv_freq)

    def bias(self, mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
        """[B, H, S, T]: log of the masses that are held, and the mask of the new tokens; that alone before any merge.

        H is 1 where all heads share an entry.
        """
        if not self.merged:
            return mask
        new = query.shape[2]
        if mask is not None and mask.shape[-1] != new:
            raise ValueError(f"beyond {self.sizes.whole} tokens a mask must be of the {new} new ones: give a 2D mask")
        least = torch.finfo(query.dtype).min
        masses = self.held()[2][..., MASS].log().clamp_min(least).to(query.dtype)
        if masses.shape[1] > 1:
            masses = masses.repeat_interleave(query.shape[1] // masses.shape[1], 1)
        held = masses[:, :, None].expand(-1, -1, new, -1)
        if mask is None:
            mask = torch.ones(new, new, dtype=torch.bool, device=query.device).tril()[None, None]
        return torch.cat([held, additive(mask, query.dtype).expand(held.shape[0], held.shape[1], -1, -1)], -1)

    def _note(self, mask: torch.Tensor | None, position_ids: torch.Tensor, new: int) -> None:
        """What is known of new tokens; the last one sees all that are no padding."""
        known = self.held()[2]
        batch, heads = known.shape[:2]
        seen = torch.ones(batch, new, device=known.device)
        if mask is not None:
            last = mask[:, 0, -1, -new:]
            seen = seen * (last if last.dtype == torch.bool else last == 0)
        facts = torch.stack([position_ids.expand(batch, -1).float(), seen, torch.zeros_like(seen)], -1)
        self.facts = torch.cat([known, facts[:, None].expand(-1, heads, -1, -1)], 2)

    def _count(self, query: torch.Tensor, bias: torch.Tensor | None, scaling: float) -> None:
        """Add the attention of the last queries to what is received."""
        keys, _, facts = self.held()
        heads, tokens = facts.shape[1:3]
        groups = query.shape[1] // heads
        asked = query[:, :, -OBSERVED:].float()
        new = asked.shape[2]
        scores = asked.unflatten(1, (heads, groups)).flatten(2, 3) @ keys.float().mT * scaling
        scores = scores.unflatten(2, (groups, new))
        if bias is None:
            future = torch.ones(new, tokens, dtype=torch.bool, device=query.device).triu(tokens - new + 1)
            scores = scores.masked_fill(future, -torch.inf)
        else:
            rows = additive(bias[:, :, -new:], scores.dtype)
            scores = scores + (rows.unflatten(1, (heads, groups)) if rows.shape[1] > 1 else rows[:, None]).float()
        real = facts[:, :, -new:, MASS]
        weights = scores.softmax(-1).sum(2) * real[..., None]
        facts[..., RECEIVED] += weights.sum(2) * (facts[..., MASS] > 0)

    def shrink(self, inv_freq: torch.Tensor) -> None:
        """Merge what is neither among the first tokens nor in the window until the slots hold it."""
        if not self.merged:
            self._put_sinks_first()
        keys, values, facts = self.held()
        sinks, last = self.sizes.sinks, keys.shape[2] - self.sizes.window
        inside = slice(sinks, last)
        parts = (keys[:, :, inside], values[:, :, inside], facts[:, :, inside])
        made = merge(*parts, slots=self.sizes.slots, inv_freq=inv_freq, rule=self.sizes.rule)
        self.keys, self.values, self.facts = (
            torch.cat([old[:, :, :sinks], new, old[:, :, last:]], 2)
            for old, new in zip((keys, values, facts), made, strict=True)
        )
        self.merged = True

    def _put_sinks_first(self) -> None:
        """Order tokens so that padding on the left comes behind the first tokens."""
        real = self.held()[2][:, 0, :, MASS] > 0  # [B, T]
        sinks = real & (real.cumsum(1) <= self.sizes.sinks)
        order = torch.where(sinks, 0, torch.where(real, 2, 1)).argsort(dim=1, stable=True)[:, None, :, None]
        self.keys, self.values, self.facts = (
            part.gather(2, order.expand(-1, part.shape[1], -1, part.shape[3])) for part in self.held()
        )

    @property
    def nbytes(self) -> int:
        """What it holds."""
        held = (self.keys, self.values, self.facts)
        return sum(part.nbytes for part in held if part is not None)

    def get_seq_length(self) -> int:
        """Tokens that it has been given."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a mask is to have and where they begin: once there are slots the new tokens alone."""
        return (query_length, self.seen) if self.merged else (self.seen + query_length, 0)

    def get_max_length(self) -> int:
        """No text is too long."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Forget all."""
        self.keys = self.values = self.facts = None
        self.seen, self.merged, self.is_initialized = 0, False, False

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, given as a number below 0, while all are there."""
        if self.merged:
            raise RuntimeError("tokens of a latent sequence cannot be taken back once they are merged")
        for name in ("keys", "values", "facts") if tokens_to_remove and self.is_initialized else ():
            setattr(self, name, getattr(self, name)[:, :, : -abs(tokens_to_remove)])
        self.seen -= abs(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take sequences [B] in the place of those there are: of a beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences."""
        for name in ("keys", "values", "facts") if self.is_initialized else ():
            part = getattr(self, name)
            setattr(self, name, part[indices.to(part.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        for name in ("keys", "values", "facts") if self.is_initialized else ():
            setattr(self, name, getattr(self, name).repeat_interleave(repeats, 0))


class LatentSequenceCache(Cache):
    """The cache of a model of fixed length, made from its config; `generate` and `forward` make one by themselves."""

    def __init__(self, config: Any) -> None:
        sizes = (config.cache_sinks, config.cache_slots, config.cache_window)
        rules = config.cache_merging or [()] * config.num_hidden_layers
        super().__init__(layers=[SlotLayer(SlotSizes(*sizes, MergeRule(*rule))) for rule in rules])

    @property
    def nbytes(self) -> int:
        """What all layers hold."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, SlotLayer))


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Give a mask as what is added to scores; one of booleans says what is seen."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def attention_function(module: Any) -> Any:
    """Give the attention function that the model's config names."""
    name = module.model_config._attn_implementation
    check_learns_of_masses(name)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)


def check_learns_of_masses(name: str) -> None:
    """Refuse an attention function that would not add them to scores: ValueError."""
    if name not in ("eager", "sdpa"):
        raise ValueError(f"{name!r} learns of no masses of slots: use eager or sdpa")


def slot_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> Any:
    """Stand between a stock attention and its attention function, which knows of no slots."""
    layer, module.layer = module.layer, None
    if layer is None:
        return attention_function(module)(module, query, key, value, attention_mask, **arguments)
    return layer.attend(module, query, attention_mask, **arguments)


AttentionInterface.register(_NAME, slot_attention)


class AskedFor:
    """A model's config as its attention sees it: the attention function is ours."""

    _attn_implementation = _NAME

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        if name == "_config":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._config, name)


class SlotAttention(nn.Module):
    """What a family's attention has in front of the stock class that it is."""

    config: Any
    layer_idx: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.model_config, self.config = config, AskedFor(config)
        self.layer: SlotLayer | None = None
        self.rotary: tuple[Any, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock class."""
        self.layer = layer_among((*args, *kwargs.values()), self.layer_idx)
        return super().forward(*args, **kwargs)


def layer_among(given: Iterable[Any], layer_idx: int) -> SlotLayer | None:
    """Find the layer of a latent sequence that is among what an attention is given."""
    caches = (one for one in given if isinstance(one, LatentSequenceCache))
    layer: SlotLayer | None = next((cast("SlotLayer", cache.layers[layer_idx]) for cache in caches), None)
    return layer


class SlotModel(ReplacedParts):
    """What a family's models have in front of the stock class that each of them is."""

    _supports_attention_backend = False
    _supports_flash_attn = False
    _supports_flex_attn = False

    def _replace(self, parent: Any) -> None:
        super()._replace(parent)
        if parent is self and hasattr(self, "rotary_emb"):
            for module in self.modules():
                if isinstance(module, SlotAttention):
                    module.rotary = (self.rotary_emb,)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`generate` leaves the cache to the model."""
        return False


def makes_its_cache(forward: Any) -> Any:
    """Let a base model's forward make a latent sequence where a cache is asked for and none is given."""
    name = cache_argument(forward) or CACHE_NAME

    @wraps(forward)
    def run(self: Any, **kwargs: Any) -> Any:
        use = kwargs.get("use_cache")
        use = self.config.use_cache if use is None else use
        if use and kwargs.get(name) is None and not (self.training and torch.is_grad_enabled()):
            kwargs[name] = LatentSequenceCache(self.config)
        return forward(self, **kwargs)

    return run


__all__ = [
    "OBSERVED",
    "LatentSequenceCache",
    "SlotAttention",
    "SlotLayer",
    "SlotModel",
    "check_learns_of_masses",
    "layer_among",
    "makes_its_cache",
    "slot_attention",
]
