"""Configuration of Llama and its relatives with multi-head latent attention."""

from typing import Any, ClassVar

from transformers import LlamaConfig, PreTrainedConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class LlamaMLAConfig(LatentAttentionFields, PreTrainedConfig):
    """The sizes of a Llama block, the knobs in which its relatives differ, and the sizes of the latent attention.

    norm_gain_offset: what RMSNorm adds to its stored gain. 0 for most; 1 is Gemma's norm, which also multiplies in
        fp32.
    embedding_multiplier: factor of the token embeddings, rounded to the model's dtype first (Gemma:
        hidden_size ** 0.5).
    fused_gate_up: the MLP has one `gate_up_proj` in place of `gate_proj` and `up_proj` (Phi-3).
    resid_pdrop, embd_pdrop: dropout of what a block adds, and of the embeddings (Phi-3).
    sliding_window: how many tokens back a token sees, itself included; None: all.
    """

    model_type = "llama_mla"
    if hasattr(LlamaConfig, "keys_to_ignore_at_inference"):  # up to transformers 5.23; then the trainer's default
        keys_to_ignore_at_inference: ClassVar[list[str]] = LlamaConfig.keys_to_ignore_at_inference
    base_model_tp_plan: ClassVar[dict[str, Any]] = {  # heads are split, the latent and the rotary key are not
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.kv_a_proj_with_mqa": "mla_kv_a_proj",
        "layers.*.self_attn.kv_b_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    norm_gain_offset: float | int = 0.0
    embedding_multiplier: float | int = 1.0
    fused_gate_up: bool = False
    sliding_window: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.norm_gain_offset not in (0, 1):
            raise ValueError(f"norm_gain_offset must be 0 or 1 (Gemma), got {self.norm_gain_offset}")
        if self.fused_gate_up and self.mlp_bias:
            raise ValueError("fused_gate_up and mlp_bias cannot both be set: Phi-3's MLP has no biases")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, got {self.sliding_window}: for none, leave it out")


__all__ = ["LlamaMLAConfig"]
