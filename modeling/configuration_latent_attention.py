"""The settings of multi-head latent attention, for the configurations beside this file."""

from dataclasses import dataclass
from typing import Any

MODES = ("auto", "absorb", "expand")
_DERIVED = ("num_key_value_heads", "qk_head_dim", "head_dim")
_IN_ATTENTION = (["self_attn"], ["attention"], ["attn"])


def latent_plan(stock: dict[str, Any] | None) -> dict[str, Any] | None:
    """Give a stock class's plan of tensor parallelism without its attention, which every device then has whole.

    stock: patterns of modules -> how they are split; None: the class has none.
    """
    if not stock:
        return None
    return {name: way for name, way in stock.items() if name.split(".")[-2:-1][:1] not in _IN_ATTENTION}


@dataclass(kw_only=True, repr=False)  # transformers prints configurations its own way
class LatentAttentionFields:
    """DeepSeek-V2's names (arXiv:2405.04434, section 2.1) and what conversion adds to them.

    kv_lora_rank: size of the latent, the one vector that is cached for a token in a layer.
    kv_lora_ranks: one for each layer, where layers differ; kv_lora_rank is then the largest.
    qk_nope_head_dim: size of a head's query and key without a position.
    qk_rope_head_dim: size of the rotary key, which all heads share and which is cached beside the latent; each head
        has a query of this size for it. 0: no rotary position at all.
    v_head_dim: size of a head's value.
    softmax_scale: factor of the scores; a conversion keeps that of the original. Default: DeepSeek's,
        (qk_nope_head_dim + qk_rope_head_dim) ** -0.5.
    rope_inv_freq: a list for each layer of qk_rope_head_dim / 2 inverse frequencies in radians per token. Dimension
        p of the rotary key and dimension p + qk_rope_head_dim / 2 turn together, by the p-th of them.
    score_softcap: the size c that scores stay below, as c tanh(score / c) (Gemma 2); None: any.
    alibi_slopes: what each head's scores lose per token of distance (arXiv:2108.12409); None: nothing.
    key_norm_heads: where queries and keys go through a norm, the number of key heads that the original has; else 0.
        For each of them and each token one number is cached besides: what the norm divides by.
    key_norm_together: the norm is over the numbers of all heads, and there is one such number.
    key_norm_eps: the norm's epsilon.
    latent_norm: an RMSNorm of the latent, `kv_a_layernorm`, whose epsilon is `latent_norm_eps`.
    q_bias, kv_a_bias, o_bias: biases of q_proj, kv_a_proj_with_mqa and o_proj.
    latent_attention_mode: "absorb" works on the latents themselves, "expand" makes keys and values for all heads,
        "auto" takes what needs fewer operations.

    The rest follows from the above and is written out for those who read it from a config.json; 0: not given.

    num_key_value_heads: as many as query heads; expanded, every head has its own keys and values.
    qk_head_dim: qk_nope_head_dim + qk_rope_head_dim. Where it is set, transformers lets a static cache find its
        sizes by itself: they are those of the latent.
    head_dim: the larger of qk_head_dim and v_head_dim, for engines with a cache of their own and one head size.
    """

    kv_lora_rank: int = 512
    kv_lora_ranks: list[int] | None = None
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 0
    v_head_dim: int = 64
    softmax_scale: float | int | None = None
    rope_inv_freq: list[list[float]] | None = None
    score_softcap: float | int | None = None
    alibi_slopes: list[float] | None = None
    key_norm_heads: int = 0
    key_norm_together: bool = False
    key_norm_eps: float = 1e-6
    latent_norm: bool = False
    latent_norm_eps: float = 1e-6
    q_bias: bool = False
    kv_a_bias: bool = False
    o_bias: bool = False
    latent_attention_mode: str = "auto"
    num_key_value_heads: Any = 0
    qk_head_dim: Any = 0
    head_dim: Any = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "base_model_tp_plan" not in vars(cls):
            plan: Any = getattr(cls, "base_model_tp_plan", None)
            setattr(cls, "base_model_tp_plan", latent_plan(plan))  # noqa: B010 - declared by transformers

    def __post_init__(self, **kwargs: Any) -> None:
        given = {name: getattr(self, name) for name in _DERIVED}
        # First, because aliases such as `hidden_size=` arrive in kwargs and are resolved in there.
        super().__post_init__(**kwargs)  # type: ignore[misc]  # that of the configuration this is mixed into
        for name, value in given.items():  # some families fill in their own
            setattr(self, name, kwargs.get(name, value))
        self._check_sizes()
        self._derive_sizes()
        self._check_frequencies()
        if self.latent_attention_mode not in MODES:
            raise ValueError(
                f"latent_attention_mode must be one of {', '.join(MODES)}, got {self.latent_attention_mode!r}"
            )

    def _check_sizes(self) -> None:
        least = {"kv_lora_rank": 1, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        ranks, layers = self.kv_lora_ranks, getattr(self, "num_hidden_layers")  # noqa: B009 - no field of this class
        if ranks is not None and (len(ranks) != layers or min(ranks) < 1 or max(ranks) != self.kv_lora_rank):
            raise ValueError(
                f"kv_lora_ranks must hold {layers} ranks from 1 to kv_lora_rank, the largest {self.kv_lora_rank}, "
                f"got {ranks}"
            )
        if self.qk_rope_head_dim % 2 != 0:
            raise ValueError(
                f"qk_rope_head_dim must be even, got {self.qk_rope_head_dim}: dimensions turn in planes of two"
            )
        heads = getattr(self, "num_attention_heads")  # noqa: B009
        if self.key_norm_heads < 0 or (self.key_norm_heads and heads % self.key_norm_heads):
            raise ValueError(f"key_norm_heads must divide the {heads} query heads, got {self.key_norm_heads}")
        if self.qk_nope_head_dim + self.qk_rope_head_dim == 0:
            raise ValueError("qk_nope_head_dim and qk_rope_head_dim are both 0: queries and keys need a size")

    def _derive_sizes(self) -> None:
        qk_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        if self.softmax_scale is None:
            self.softmax_scale = qk_head_dim**-0.5
        derived = {
            "num_key_value_heads": getattr(self, "num_attention_heads"),  # noqa: B009 - no field of this class
            "qk_head_dim": qk_head_dim,
            "head_dim": max(qk_head_dim, self.v_head_dim),
        }
        for name, value in derived.items():
            given = getattr(self, name)
            if given not in (None, 0, value):
                raise ValueError(f"{name} must be {value} with these sizes, got {given}: leave it out")
            setattr(self, name, value)

    def _check_frequencies(self) -> None:
        planes, layers = self.qk_rope_head_dim // 2, getattr(self, "num_hidden_layers")  # noqa: B009
        found = [len(frequencies) for frequencies in self.rope_inv_freq or []]
        if planes == 0 and not any(found):
            return
        if found != [planes] * layers:
            raise ValueError(
                f"rope_inv_freq must hold {planes} inverse frequencies (qk_rope_head_dim / 2) for each of {layers} "
                f"layers, got lists of {found}"
            )


__all__ = ["LatentAttentionFields", "latent_plan"]
