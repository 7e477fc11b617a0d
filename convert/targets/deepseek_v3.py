"""Llama-like models with a latent cache as a dense DeepSeek-V3: a class that transformers and other engines ship.

DeepSeek-V3 puts an RMSNorm on the latent. One more latent channel that is a large constant C (zero weight, bias C)
makes it the identity: with norm weight C / sqrt(r + 1), the normalised latent is the latent up to |c|^2 / (2 C^2). The
constant's own weight is zero, so that nothing large is cached. The softmax scale is fixed at (d + R)^-1/2, so its
ratio to d^-1/2 goes into the query.

Its query projection has no bias. For sources that have one, the class's low-rank query serves at full rank: q_a_proj
copies the input and adds a constant channel, which neutralises the norm behind it in the same way, and q_b_proj reads
the bias from that channel. It costs D (D + 1) more weights per layer, mostly zeros, and nothing in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convert_attn.convert.archs.cache_form import Form, LatentCache
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.targets.base import Blueprint, Config, Converted, Shapes, Target
from convert_attn.convert.targets.latent import latent_form, latent_shapes, latent_tensors
from convert_attn.convert.targets.llama_mla import renamed_classes
from convert_attn.convert.weights.latent import LatentWeights

_ATTENTION = "self_attn."
_LARGEST = 32768.0  # within fp16
_TYPICAL = 2.0**-12  # of a channel behind the norm, before its weight: fp16 holds it, and its square is fp32's rounding
_MOST = 2.0**-9  # the same, where the constant cannot be large enough


@dataclass(frozen=True)
class _IdentityNorm:
    """An RMSNorm over `size` channels, the last a constant, that leaves the others as they are, up to `scale`.

    Rounding the norm's weight to bf16 would scale all channels alike by up to 0.4 %. So the weight is a power of two
    and the constant a bf16 number, both exact in every dtype, and what they miss of each other is known: whoever reads
    the channels multiplies by `scale`, in full precision.

    Attributes:
        typical: the root mean square of a channel. The larger the constant against it, the nearer the norm is to the
            identity, and the smaller are the numbers between norm and weight: too small ones vanish in fp16.
    """

    size: int
    typical: float

    @property
    def _largest_gain(self) -> float:
        return math.ldexp(1.0, math.floor(math.log2(_LARGEST / math.sqrt(self.size))))

    @property
    def gain(self) -> float:
        """The norm's weight, the same for all channels but the constant."""
        wanted = math.ldexp(1.0, math.ceil(math.log2(max(self.typical, 1e-30) / _TYPICAL)))
        return min(wanted, self._largest_gain)

    @property
    def shrink(self) -> float:
        """What to multiply the channels by in front of the norm: a power of two, 1 where they are not too large."""
        return min(1.0, math.ldexp(1.0, math.floor(math.log2(_MOST * self.gain / max(self.typical, 1e-30)))))

    @property
    def constant(self) -> float:
        """The last channel: gain x sqrt(size), rounded. The others are divided by constant / sqrt(size)."""
        return float(torch.tensor(self.gain * math.sqrt(self.size)).to(torch.bfloat16))

    @property
    def scale(self) -> float:
        """What to multiply channels by behind the norm: what rounding made of it, and the inverse of `shrink`."""
        return self.constant / (self.gain * math.sqrt(self.size)) / self.shrink

    def weight(self, like: Tensor, last: float) -> Tensor:
        """Give [size] the norm's weight, `last` for the constant."""
        gain = like.new_full((self.size,), self.gain)
        gain[-1] = last
        return gain


def _with_constant(blueprint: Blueprint) -> Blueprint:
    """The class's latent is one channel larger; kv_a and o have biases (`attention_bias`), q has none."""
    form = latent_form(blueprint)
    biases = (blueprint.biases | {"k", "o"}) - {"q"}
    return replace(blueprint, form=replace(form, ranks=tuple(rank + 1 for rank in form.ranks)), biases=biases)


def _query_rank(blueprint: Blueprint) -> int | None:
    """q_lora_rank: the input and the constant that carries the bias; None, one plain projection, without a bias."""
    return blueprint.sizes.hidden_size + 1 if "q" in blueprint.biases else None


def _shapes(blueprint: Blueprint, layer: int) -> Shapes:
    larger = _with_constant(blueprint)
    shapes = latent_shapes(larger, layer, _ATTENTION)
    shapes[f"{_ATTENTION}kv_a_layernorm.weight"] = (latent_form(larger).of_layer(layer).rank,)
    rank = _query_rank(blueprint)
    if rank is not None:
        rows, hidden = shapes.pop(f"{_ATTENTION}q_proj.weight")
        shapes[f"{_ATTENTION}q_a_proj.weight"] = (rank, hidden)
        shapes[f"{_ATTENTION}q_a_proj.bias"] = (rank,)
        shapes[f"{_ATTENTION}q_a_layernorm.weight"] = (rank,)
        shapes[f"{_ATTENTION}q_b_proj.weight"] = (rows, rank)
    return shapes


def _tensors(blueprint: Blueprint, converted: Converted, layer: int) -> dict[str, Tensor]:
    if not isinstance(converted, LatentWeights):
        raise TypeError("a class with a latent cannot hold K/V heads")
    w, form, d = converted, latent_form(blueprint).of_layer(layer), blueprint.sizes.head_dim
    norm, query_scale = _IdentityNorm(form.rank + 1, w.mean_power**0.5), ((d + form.rope_dim) / d) ** 0.5
    w = _interleaved(w)
    padded = replace(
        w,
        q_nope=w.q_nope * query_scale,
        q_rope=w.q_rope * query_scale,
        down=torch.cat([w.down * norm.shrink, w.down.new_zeros(1, w.down.shape[1])]),
        up_k=_widened(w.up_k * norm.scale),
        up_v=_widened(w.up_v * norm.scale),
        k_rope_bias=w.k_rope.new_zeros(w.k_rope.shape[0]) if w.k_rope_bias is None else w.k_rope_bias,
    )
    tensors = latent_tensors(_with_constant(blueprint), padded, _ATTENTION)
    tensors[f"{_ATTENTION}kv_a_proj_with_mqa.bias"][form.rank] = norm.constant
    tensors[f"{_ATTENTION}kv_a_layernorm.weight"] = norm.weight(w.down, last=0.0)
    if _query_rank(blueprint) is not None and w.q_nope_bias is not None and w.q_rope_bias is not None:
        bias = torch.cat([w.q_nope_bias, w.q_rope_bias], 1).flatten() * query_scale
        query = _biased_query(tensors.pop(f"{_ATTENTION}q_proj.weight"), bias, w.input_power**0.5)
        tensors |= {_ATTENTION + name: tensor for name, tensor in query.items()}
    return tensors


def _interleaved(w: LatentWeights) -> LatentWeights:
    """Rotary channels by pairs: of R, channel j turns with j + R/2 in our order, 2 j with 2 j + 1 in DeepSeek's."""
    half = w.k_rope.shape[0] // 2
    order = torch.arange(2 * half).view(2, half).T.flatten()
    return replace(
        w,
        q_rope=w.q_rope[:, order],
        k_rope=w.k_rope[order],
        q_rope_bias=None if w.q_rope_bias is None else w.q_rope_bias[:, order],
        k_rope_bias=None if w.k_rope_bias is None else w.k_rope_bias[order],
    )


def _widened(up: Tensor) -> Tensor:
    """[H, d, r] -> [H, d, r + 1]: the constant is not read."""
    return torch.cat([up, torch.zeros_like(up[..., :1])], -1)


def _biased_query(weight: Tensor, bias: Tensor, typical: float) -> dict[str, Tensor]:
    """A projection [n, D] with a bias [n] as the class's low-rank query.

    Args:
        typical: the root mean square of a channel of the input.
    """
    hidden = weight.shape[1]
    norm = _IdentityNorm(hidden + 1, typical)
    constant = weight.new_zeros(norm.size)
    constant[-1] = norm.constant
    # the constant itself is brought down to between 1 and 2: divided by 32768, a small bias would vanish in fp16
    down = math.ldexp(1.0, -math.floor(math.log2(math.sqrt(norm.size))))
    return {
        "q_a_proj.weight": torch.eye(norm.size, hidden, dtype=weight.dtype, device=weight.device) * norm.shrink,
        "q_a_proj.bias": constant,
        "q_a_layernorm.weight": norm.weight(weight, last=down),
        "q_b_proj.weight": torch.cat([weight * norm.scale, bias[:, None] / (down * math.sqrt(norm.size))], 1),
    }


def _configure(blueprint: Blueprint) -> Config:
    form, sizes = latent_form(blueprint), blueprint.sizes
    theta = _theta(blueprint)
    typed = typed_config(blueprint.config, blueprint.arch.model_type)
    return {
        "kv_lora_rank": form.rank + 1,
        "q_lora_rank": _query_rank(blueprint),
        "qk_rope_head_dim": form.rope_dim,
        "qk_nope_head_dim": sizes.head_dim,
        "v_head_dim": sizes.head_dim,
        "num_key_value_heads": sizes.num_heads,
        "attention_bias": True,
        # DeepSeek's own order, the only one that other engines have
        "rope_interleave": True,
        "tie_word_embeddings": False,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "first_k_dense_replace": sizes.num_layers,
        "num_nextn_predict_layers": 0,
        "n_routed_experts": 1,
        "n_shared_experts": 1,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": typed.intermediate_size,
    }


def _theta(blueprint: Blueprint) -> float:
    """The base of the source's frequencies, which are theta^(-2 p / d), as its class reads it."""
    return float(typed_config(blueprint.config, blueprint.arch.model_type).rope_parameters["rope_theta"])


def _frequencies(blueprint: Blueprint) -> tuple[float, ...]:
    """theta^(-2 j / R): the class spreads its planes over the same range as the source does."""
    size = latent_form(blueprint).rope_dim
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    return tuple((_theta(blueprint) ** -exponents).tolist())


def _holds(sizes: Geometry, form: Form) -> bool:
    if not isinstance(form, LatentCache) or form.norm:
        return False
    plain = sizes.rope_type == "default" and sizes.window is None and not sizes.outside_biases and not sizes.positions
    return plain and form.rope_dim > 0


TARGET = Target(
    name="deepseek_v3",
    layout="native",
    # the class has no gain offset and no scaled embedding (gemma), no fused MLP (phi3), no biases in it, and no window
    sources=frozenset({"llama", "mistral", "qwen2", "helium", "ernie4_5", "seed_oss", "internlm3", "iquestcoder"}),
    becomes="deepseek_v3",
    configure=_configure,
    holds=_holds,
    classes=renamed_classes("DeepseekV3"),
    shapes=_shapes,
    tensors=_tensors,
    form=LatentCache,
    fresh_config=True,
    frequencies=_frequencies,
    extra_latent=1,
    unties=True,  # engines that ship DeepSeek-V3 look for a head: no DeepSeek has a tied one
)
