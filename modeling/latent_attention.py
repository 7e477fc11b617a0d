"""Multi-head latent attention (MLA): DeepSeek-V2, arXiv:2405.04434, section 2.1.

A token leaves one latent c and one rotary key in the cache, both shared by all heads. The keys and values of head i
are k_i = [Wuk_i c; k_rope] and v_i = Wuv_i c. Cached is one tensor of entries [c; k_rope], in the place of the keys;
that of the values has no columns.

Letters in shapes:
    B  batch                 T   tokens held as keys (the cache and the new ones)
    D  hidden size           S   new tokens, the ones that ask
    H  heads                 n   size of a head's query and key without a position (qk_nope_head_dim)
    r  size of the latent    R   size of the rotary key (qk_rope_head_dim), R / 2 planes
                             v   size of a head's value (v_head_dim)

There are two ways to the same numbers:

expand  makes K [B, H, T, n + R] and V [B, H, T, v] and calls the attention function of the config.
absorb  moves the up-projections to the other side: q_i . Wuk_i c = (Wuk_i^T q_i) . c, and the weighted sum of
        values is Wuv_i applied to the weighted sum of latents. Nothing of size H * T * n is made and the cached
        tensor is read as it is: all heads are rows [B, H * S, r + R] that meet the entries [B, T, r + R], which are
        keys and values at once. (The last R columns of the sum are not used; leaving them out would copy the cache.)

Where the family has a norm on each key (Henry et al., arXiv:2010.04245), a key is a linear map of the latent times one
number of its head and token, the inverse size of what the norm reads; the norm's weights are in the maps. These numbers
are cached behind the rotary key and multiply the scores. Those of queries are not cached.

Multiplications, for each sequence and head, where p = n + v:
    expand   T r p  +  S T (p + R)
    absorb   S r p  +  S T 2 (r + R)
Expanding pays for T tokens once, absorbing pays a surplus of 2 r + R - p for each pair of tokens. "auto" absorbs
where that is less, which is S < r p / (2 r + R - p) against a long cache: 68 new tokens for r = 512, n = v = R = 64.
For more than p new tokens it expands in any case, as the scores [B, H, S, T] of absorbing would be larger than K and
V. It also does so without a cache: S = T, and fused attention functions keep no scores.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward

from .attention_names import attention_name  # noqa: TID251 - beside this file, too
from .capped_attention import capped_attention  # noqa: TID251
from .distance_masks import with_slopes  # noqa: TID251
from .latent_kernel import Shaping  # noqa: TID251
from .latent_kernels import mix  # noqa: TID251
from .transformers_api import CACHE_NAME, has_pages, is_paged, take_cache, update_cache  # noqa: TID251

LAYER_CACHE = "layer_past"  # what some stock blocks call the cache that they hand to their attention

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def absorbing_is_cheaper(tokens: int, keys: int, rank: int, head_size: int, rope_size: int) -> bool:
    """Whether S new tokens against T keys take fewer multiplications absorbed, and no more memory.

    head_size is p = n + v; the head of this file has the sums.
    """
    expansion = rank * head_size
    surplus = 2 * rank + rope_size - head_size
    return tokens <= head_size and tokens * (expansion + keys * surplus) < keys * expansion


class LatentRotary(nn.Module):
    """Rotary positions with an inverse frequency of its own for each plane.

    Angles, sines and the rotation itself are in fp32 whatever the dtype of the model: at position 100 000 a bf16
    frequency is off by whole turns.
    """

    inv_freq: torch.Tensor

    def __init__(self, frequencies: Sequence[float]) -> None:
        super().__init__()
        self.frequencies = tuple(frequencies)
        self.register_buffer("inv_freq", self.exact(), persistent=False)

    def exact(self, device: torch.device | None = None) -> torch.Tensor:
        """[R / 2], fp32."""
        return torch.tensor(self.frequencies, dtype=torch.float32, device=device)

    def _apply(self, fn: Any, recurse: bool = True) -> "LatentRotary":
        # What `.to(dtype)`, `.half()` and `.to_empty()` go through: follow the device, keep the numbers.
        super()._apply(fn, recurse)
        self.inv_freq = self.exact(self.inv_freq.device)
        return self

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B or 1, S] -> cosines and sines, [B or 1, 1, S, R / 2]."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq.float()
        return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[B, heads, S, R] -> the same, dimensions p and p + R / 2 turned by the p-th angle."""
    first, second = x.chunk(2, dim=-1)  # times fp32: the products are in fp32
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _widen(x: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros behind the last dimension, up to `size`."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


class LatentAttention(nn.Module):
    """Causal self-attention through a latent.

    `q_proj` makes for each head n dimensions without a position, then R rotary ones. `kv_a_proj_with_mqa` makes the
    latent, then the rotary key. `kv_b_proj` holds for each head the n rows of Wuk_i, then the v rows of Wuv_i.

    `latent_attention_mode` ("auto", "absorb", "expand") may be set on a module to overrule the config's.

    sliding_window: how many tokens back a token sees, which the model's mask says, too, and some functions want to be
        told; None: all.
    """

    latent_attention_mode: str | None = None
    sliding_window: int | None = None
    output_dropout: float = 0.0

    def __init__(self, config: Any, layer_idx: int, dropout: float) -> None:
        """config: one with LatentAttentionFields; dropout: that of the attention weights."""
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.dropout = dropout
        self.scaling: float = config.softmax_scale
        self.softcap: float | None = config.score_softcap
        self.slopes: list[float] | None = config.alibi_slopes
        self.is_causal = True
        # What attention functions read: once expanded, every head has keys and values of its own.
        self.num_key_value_groups = 1
        self.head_dim: int = config.head_dim

        ranks = config.kv_lora_ranks
        self.kv_lora_rank: int = config.kv_lora_rank if ranks is None else ranks[layer_idx]
        self.qk_nope_head_dim: int = config.qk_nope_head_dim
        self.qk_rope_head_dim: int = config.qk_rope_head_dim
        self.qk_head_dim: int = config.qk_nope_head_dim + config.qk_rope_head_dim
        self.v_head_dim: int = config.v_head_dim
        self.key_norm_heads: int = config.key_norm_heads
        self.key_sizes: int = 1 if config.key_norm_together else config.key_norm_heads  # cached for each token
        self._up_size = self.qk_nope_head_dim + self.v_head_dim  # rows of kv_b_proj for a head
        self._make_projections(config)
        self.rotary = LatentRotary(config.rope_inv_freq[layer_idx]) if self.qk_rope_head_dim > 0 else None

    def _make_projections(self, config: Any) -> None:
        heads: int = config.num_attention_heads
        hidden: int = config.hidden_size
        self.q_proj = nn.Linear(hidden, heads * self.qk_head_dim, bias=config.q_bias)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.kv_lora_rank + self.qk_rope_head_dim, bias=config.kv_a_bias)
        self.kv_a_layernorm = LlamaRMSNorm(self.kv_lora_rank, config.latent_norm_eps) if config.latent_norm else None
        self.kv_b_proj = nn.Linear(self.kv_lora_rank, heads * self._up_size, bias=False)
        rows = self.key_norm_heads * self.qk_nope_head_dim  # the original's keys, of which only the sizes are wanted
        self.key_size_proj = nn.Linear(hidden, rows, bias=False) if rows else None
        self.o_proj = nn.Linear(heads * self.v_head_dim, hidden, bias=config.o_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D], positions [B or 1, S] -> [B, S, D] and, from eager attention, the weights [B, H, S, T].

        The cache is among kwargs, by any of its names; what else there is reaches the attention function. Stock blocks
        bring positions as `position_embeddings`: see stock_latent.py.
        """
        position_ids = kwargs.pop("position_embeddings", position_ids)
        if kwargs.get(LAYER_CACHE) is not None:
            kwargs[CACHE_NAME] = kwargs.pop(LAYER_CACHE)
        kv_cache = take_cache(kwargs)
        pages = is_paged(kv_cache)  # sized for keys and values of every head: they are filled below
        query_nope, query_rope = self._queries(hidden_states)
        latent, rope_key, sizes = self._compress(hidden_states)
        if self.rotary is not None:
            cos, sin = self.rotary(position_ids)
            query_rope, rope_key = rotate(query_rope, cos, sin), rotate(rope_key, cos, sin)
        parts = [part for part in (latent, rope_key, sizes) if part.shape[-1]]
        entries = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # [B, 1, S, r + R + sizes]
        if kv_cache is not None and not pages:  # -> [B, 1, T, r + R]
            entries, _ = kv_cache.update(entries, entries[..., :0], self.layer_idx)

        attend: AttentionFunction = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention_name(self.config), eager_attention_forward
        )
        tokens = hidden_states.shape[1]
        attention_mask = self.mask(attention_mask, query_nope, entries.shape[2], pages or has_pages(kwargs))
        causal = self._is_causal_without_mask(attend, tokens, attention_mask, kwargs)
        if causal:
            # No mask for several new tokens means that nothing came before them. A static cache has room behind
            # them, for which nothing needs to be computed.
            entries = entries[:, :, :tokens]
        keys = entries.shape[2] if kv_cache is not None else None
        if self._absorbs(attend, tokens, keys, pages or has_pages(kwargs)):
            query = self._absorbed_query(query_nope, query_rope)
            output, weights = self._absorb(attend, query, entries, attention_mask, causal)
            return self._output(output), weights
        # The fused kernels of SDPA and the caches of engines want one size for all three.
        widen = pages or attend is not eager_attention_forward
        query, key, value = self._expand(torch.cat([query_nope, query_rope], dim=-1), entries, widen)
        if pages:
            key, value = update_cache(kv_cache, key, value, self.layer_idx, kwargs)
        self._tell(kwargs)
        if self.softcap is not None and attend in (eager_attention_forward, sdpa_attention_forward):
            attend = capped_attention  # theirs know of no cap, or forget it
        # Called here, in `forward`: vLLM reads this function's source to see that it may replace `attend`.
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            position_ids=position_ids,
            **kwargs,
        )
        output = output.reshape(*hidden_states.shape[:2], query.shape[1], -1)[..., : self.v_head_dim]
        return self._output(output.flatten(2)), weights

    def mask(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, pages: bool) -> Any:
        """Give the mask of the scores: what the model made, [B, 1, S, T] or None, with what is added by this layer.

        query: [B, H, S, n]; keys: T; pages: the cache is a paged one, which masks by itself.
        """
        if pages and (self.slopes is not None or self.softcap is not None):
            raise ValueError("continuous batching knows of no slopes (ALiBi) and of no cap of scores: use generate")
        if self.slopes is None:
            return given
        if attention_name(self.config) not in ("eager", "sdpa"):
            raise ValueError(f"{self.config._attn_implementation!r} learns of no slopes (ALiBi): use eager or sdpa")
        return self.sloped(given, query, keys, self.slopes)

    def sloped(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, slopes: list[float]) -> torch.Tensor:
        """Take slopes [H] from the mask of the model, [B, 1, S, T] or None: [1 or B, H, S, T]."""
        return with_slopes(given, query, keys, slopes)

    def _output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H * v] -> [B, S, D]."""
        return F.dropout(self.o_proj(attended), p=self.output_dropout, training=self.training)

    def _tell(self, arguments: dict[str, Any]) -> None:
        """Tell the attention function what it may want to know besides the mask."""
        if self.softcap is not None:
            arguments["softcap"] = self.softcap
        if self.sliding_window is not None:
            arguments["sliding_window"] = self.sliding_window

    def _queries(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, D] -> [B, H, S, n] and [B, H, S, R]."""
        query = self.q_proj(hidden_states).unflatten(-1, (-1, self.qk_head_dim)).transpose(1, 2)
        nope, rope = query.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        if self.key_size_proj is None:
            return nope, rope
        size = self._inverse_size(nope)
        return nope * size, rope * size

    def _inverse_size(self, states: torch.Tensor) -> torch.Tensor:
        """What a norm multiplies heads [B, n, S, d] by: [B, n, S, 1], or [B, 1, S, 1] where all are taken together."""
        over = (1, 3) if self.config.key_norm_together else (3,)
        mean = states.float().square().mean(over, keepdim=True)
        found: torch.Tensor = (mean + self.config.key_norm_eps).rsqrt().to(states.dtype)
        return found

    def _compress(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> latent [B, 1, S, r], rotary key, not yet turned, [B, 1, S, R], and sizes of keys, if any."""
        compressed = self.kv_a_proj_with_mqa(hidden_states).unsqueeze(1)
        latent, rope_key = compressed.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        if self.kv_a_layernorm is not None:
            latent = self.kv_a_layernorm(latent)
        if self.key_size_proj is None:
            return latent, rope_key, latent[..., :0]
        keys = self.key_size_proj(hidden_states).unflatten(-1, (self.key_norm_heads, -1)).transpose(1, 2)
        return latent, rope_key, self._inverse_size(keys).permute(0, 3, 2, 1)

    def _taken_apart(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, 1, T, r + R + sizes] -> the first r + R columns, and what scores are multiplied by, [B, H, 1, T]."""
        if not self.key_sizes:
            return entries, None
        entries, sizes = entries.split([entries.shape[-1] - self.key_sizes, self.key_sizes], dim=-1)
        readers = self.config.num_attention_heads // self.key_sizes
        return entries, sizes.permute(0, 3, 1, 2).repeat_interleave(readers, 1)

    def _is_causal_without_mask(
        self, attend: AttentionFunction, tokens: int, attention_mask: torch.Tensor | None, kwargs: dict[str, Any]
    ) -> bool:
        """Whether SDPA is asked for causal attention by a flag, which it is when no mask comes with several tokens."""
        flag = kwargs.get("is_causal")
        is_causal = self.is_causal if flag is None else bool(flag)
        return attend is sdpa_attention_forward and attention_mask is None and tokens > 1 and is_causal

    def _absorbs(self, attend: AttentionFunction, tokens: int, keys: int | None, pages: bool) -> bool:
        """Which of the two ways to take; keys is None when there is no cache, pages tells of a paged one."""
        mode = self.latent_attention_mode or self.config.latent_attention_mode
        if mode == "expand":
            return False
        # An engine's own attention function must see attention, and a paged cache holds keys and values.
        ours = attend in (eager_attention_forward, sdpa_attention_forward) and not pages
        if mode == "absorb":
            if pages:
                raise ValueError("latent_attention_mode='absorb' has no use for a paged cache: set the mode to 'auto'")
            if not ours:
                raise ValueError(
                    "latent_attention_mode='absorb' works with attn_implementation 'eager' and 'sdpa' only, got "
                    f"{self.config._attn_implementation!r}: set the mode to 'auto'"
                )
            if not self._up_projection_is_plain():
                raise ValueError(
                    "latent_attention_mode='absorb' reads kv_b_proj.weight, which here is quantized, adapted, sharded "
                    "or offloaded: set the mode to 'auto'"
                )
            return True
        if keys is None or not ours or not self._up_projection_is_plain():
            return False
        return absorbing_is_cheaper(tokens, keys, self.kv_lora_rank, self._up_size, self.qk_rope_head_dim)

    def _up_projection_is_plain(self) -> bool:
        """Whether `kv_b_proj.weight` is all there is: not in quantized, adapted, sharded or offloaded layers."""
        weight = self.kv_b_proj.weight
        return type(self.kv_b_proj) is nn.Linear and type(weight) is nn.Parameter and not weight.is_meta

    def _expand(
        self, query: torch.Tensor, entries: torch.Tensor, widen: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """query [B, H, S, n + R], entries [B, 1, T, ...] -> query, key, value of all heads; widened, of one size."""
        entries, sizes = self._taken_apart(entries)
        latent, rope_key = entries.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        expanded = self.kv_b_proj(latent.squeeze(1)).unflatten(-1, (-1, self._up_size)).transpose(1, 2)
        # [B, H, T, n + v]
        key, value = expanded.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        if self.qk_rope_head_dim > 0:
            key = torch.cat([key, rope_key.expand(-1, key.shape[1], -1, -1)], dim=-1)
        if sizes is not None:
            key = key * sizes[:, : key.shape[1]].mT
        if not widen:
            return query, key, value
        return _widen(query, self.head_dim), _widen(key, self.head_dim), _widen(value, self.head_dim)

    def _up_projections(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Wuk [H, n, r] and Wuv [H, v, r]."""
        up = self.kv_b_proj.weight.unflatten(0, (-1, self._up_size))
        key_up, value_up = up.split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
        return key_up, value_up

    def _absorbed_query(self, nope: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        """[B, H, S, n] and [B, H, S, R] -> [B, H, S, r + R], which meets the entries of the cache."""
        query = torch.einsum("bhsn,hnr->bhsr", nope, self._up_projections()[0])
        return query if self.rotary is None else torch.cat([query, rope], dim=-1)

    def _absorb(
        self,
        attend: AttentionFunction,
        query: torch.Tensor,
        entries: torch.Tensor,
        attention_mask: torch.Tensor | None,
        causal: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """query [B, H, S, r + R], entries [B, 1, T, ...] -> [B, S, H * v] and, from eager attention, the weights."""
        wanted = attend is eager_attention_forward
        entries, sizes = self._taken_apart(entries)
        plain = self.softcap is None and sizes is None
        mixed, weights = mix(
            query,
            entries,
            attention_mask,
            scaling=self.scaling,
            causal=causal,
            dropout=self.dropout if self.training else 0.0,
            training=self.training,
            weights=wanted,
            shaping=None if plain else Shaping(self.softcap, sizes),
        )
        return self._values_of(mixed), weights if wanted else None

    def _values_of(self, mixed: torch.Tensor) -> torch.Tensor:
        """Weighted sums of entries, [B, H, S, r + R] -> of values, [B, S, H * v]."""
        batch, _, tokens, _ = mixed.shape
        # Wuv on the left and the sums as columns: the other way round, a bf16 product copies Wuv in every step
        columns = mixed[..., : self.kv_lora_rank].permute(1, 3, 0, 2).flatten(2)  # [H, r, B * S]
        values = torch.bmm(self._up_projections()[1], columns).view(-1, self.v_head_dim, batch, tokens)
        return values.permute(2, 3, 0, 1).flatten(2)


def init_latent_attention(module: nn.Module) -> None:
    """The part of `_init_weights` that is ours: buffers that are not in a checkpoint."""
    if isinstance(module, LatentRotary):
        init.copy_(module.inv_freq, module.exact(module.inv_freq.device))


__all__ = ["LatentAttention", "LatentRotary", "absorbing_is_cheaper", "init_latent_attention", "rotate"]
