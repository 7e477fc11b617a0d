"""vLLM, read in the wheel of its release (which says commit 4ba787ec9).

MLA's kernels are made for DeepSeek's sizes. On a GPU the prompt is taken by kernels for heads of 128 with a rotary key
of 64; tokens of the cache are gathered for it in rows of 320, 512 or 576 numbers; and of the decode kernels all but
Triton's want 576, which is also what those of the CPU are compiled for.
"""

from convert_attn.convert.serving_rules.base import (
    BACKEND,
    BIGCODE,
    DEEPSEEK,
    EXPANDED,
    GITHUB,
    GQA,
    HEAD_SIZE,
    LATENT,
    LATENT_HERE,
    LLAMA_LIKE,
    Engine,
    LatentSizes,
    Note,
    Rule,
    biased,
    both,
    heads_not_multiple_of,
    known,
    latent_in,
    odd_heads,
)

_NAME, _VERSION = "vLLM", "0.33.0"
_CODE = GITHUB + "vllm-project/vllm/blob/v0.33.0/vllm/"
_MODELS = _CODE + "model_executor/models/"
_CPU = _CODE + "v1/attention/backends/mla/cpu_mla.py#L64"

_LARGE, _SMALL, _ANY_HEADS = LatentSizes(512, 64, 128), LatentSizes(256, 64, 128), LatentSizes(512, 64)
_BY_TRANSFORMERS = (
    "start it with --model-impl transformers, which keeps the latent and reads our biases: its own class leaves them "
    "out without a word and computes something else"
)

ENGINE = Engine(
    _NAME,
    "vllm",
    (
        Rule(
            _NAME,
            _VERSION,
            frozenset({"qwen2"}),
            "no",
            None,
            "source",
            _MODELS + "qwen2.py#L150",
            HEAD_SIZE,
            odd_heads,
        ),
        *known(
            _NAME,
            _VERSION,
            _MODELS + "registry.py",
            {"llama": "#L155", "mistral": "#L179", "qwen2": "#L200", "gemma": "#L112", "phi3": "#L197"},
        ),
        Rule(
            _NAME,
            _VERSION,
            BIGCODE,
            "native class",
            True,
            "source",
            _MODELS + "registry.py#L753",
            "transformers' class, through its transformers backend",
        ),
        Rule(_NAME, _VERSION, GQA, "custom code", True, "source", _MODELS + "transformers/base.py#L638", BACKEND),
        Rule(_NAME, _VERSION, LATENT, "custom code", False, "source", _MODELS + "transformers/base.py#L732", EXPANDED),
        Rule(
            _NAME,
            _VERSION,
            DEEPSEEK,
            "native class",
            True,
            "source",
            _MODELS + "deepseek_v2.py#L1807",
            _BY_TRANSFORMERS,
            both(biased, latent_in(_LARGE)),
        ),
        Rule(
            _NAME,
            _VERSION,
            DEEPSEEK,
            "native class",
            True,
            "source",
            _MODELS + "deepseek_v2.py#L1807",
            f"{_BY_TRANSFORMERS}; on a GPU only (where its kernel refuses, --attention-backend TRITON_MLA takes any "
            f"size): a CPU takes {_LARGE}",
            both(biased, latent_in(_SMALL)),
        ),
        Rule(
            _NAME,
            _VERSION,
            DEEPSEEK,
            "native class",
            True,
            "source",
            _CPU,
            f"{_BY_TRANSFORMERS}; on a CPU only: its GPU kernels take heads of 128, here {{qk_nope_head_dim}}",
            both(biased, latent_in(_ANY_HEADS)),
        ),
        Rule(
            _NAME,
            _VERSION,
            DEEPSEEK,
            "no",
            None,
            "source",
            _CODE + "model_executor/layers/attention/mla_attention.py#L1624",
            f"its kernels take a latent of {_LARGE.rank} or {_SMALL.rank} with a rotary key of {_LARGE.rope_dim} and "
            f"heads of {_LARGE.head_dim} (on a CPU {_ANY_HEADS} with any heads), here {LATENT_HERE}: "
            "convert with --for vllm, which chooses such sizes, or --to gqa",
            biased,
        ),
    ),
    notes=(
        Note(
            LATENT,
            "on a CPU set VLLM_MLA_DISABLE=1 too: it takes blocks for a latent that it then does not keep",
            "source",
            _CODE + "platforms/cpu.py#L267",
        ),
        Note(
            LLAMA_LIKE | BIGCODE | GQA,
            "its FlashAttention takes heads of a multiple of 8 up to 256, here {head_size}: slower kernels step in",
            "source",
            _CODE + "v1/attention/backends/flash_attn.py#L425",
            heads_not_multiple_of(8, 256),
        ),
    ),
    latents=(_LARGE, _SMALL),
    elsewhere={"vllm-cpu": (_ANY_HEADS,)},
)
