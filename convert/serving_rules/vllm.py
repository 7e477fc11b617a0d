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
    ONE_NUMBER,
    Engine,
    KernelSizes,
    Note,
    ServingRule,
    biased,
    both,
    heads_not_multiple_of,
    known,
    latent_in,
    odd_heads,
    uneven_heads,
)

_NAME, _VERSION = "vLLM", "0.33.0"
_CODE = GITHUB + "vllm-project/vllm/blob/v0.33.0/vllm/"
_MODELS = _CODE + "model_executor/models/"
_CPU = _CODE + "v1/attention/backends/mla/cpu_mla.py#L64"

_LARGE, _SMALL, _ANY_HEADS = KernelSizes(512, 64, 128), KernelSizes(256, 64, 128), KernelSizes(512, 64)
_BY_TRANSFORMERS = (
    "start it with --model-impl transformers, which keeps the latent and reads our biases: its own class leaves them "
    "out without a word and computes something else"
)

ENGINE = Engine(
    name=_NAME,
    option="vllm",
    rules=(
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=frozenset({"qwen2"}),
            loads="no",
            kept=None,
            evidence="source",
            where=_MODELS + "qwen2.py#L150",
            change=HEAD_SIZE,
            applies=odd_heads,
        ),
        *known(
            _NAME,
            _VERSION,
            _MODELS + "registry.py",
            {"llama": "#L155", "mistral": "#L179", "qwen2": "#L200", "gemma": "#L112", "phi3": "#L197"},
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=BIGCODE,
            loads="native class",
            kept=True,
            evidence="source",
            where=_MODELS + "registry.py#L753",
            change="transformers' class, through its transformers backend",
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=GQA,
            loads="no",
            kept=None,
            evidence="source",
            where=_MODELS + "transformers/base.py#L638",
            change=ONE_NUMBER,
            applies=uneven_heads,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=GQA,
            loads="custom code",
            kept=True,
            evidence="source",
            where=_MODELS + "transformers/base.py#L638",
            change=BACKEND,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=LATENT,
            loads="custom code",
            kept=False,
            evidence="source",
            where=_MODELS + "transformers/base.py#L732",
            change=EXPANDED,
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="native class",
            kept=True,
            evidence="source",
            where=_MODELS + "deepseek_v2.py#L1807",
            change=_BY_TRANSFORMERS,
            applies=both(biased, latent_in(_LARGE)),
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="native class",
            kept=True,
            evidence="source",
            where=_MODELS + "deepseek_v2.py#L1807",
            change=f"{_BY_TRANSFORMERS}; on a GPU only (where its kernel refuses, --attention-backend TRITON_MLA "
            f"takes any size): a CPU takes {_LARGE}",
            applies=both(biased, latent_in(_SMALL)),
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="native class",
            kept=True,
            evidence="source",
            where=_CPU,
            change=f"{_BY_TRANSFORMERS}; on a CPU only: its GPU kernels take heads of 128, here {{qk_nope_head_dim}}",
            applies=both(biased, latent_in(_ANY_HEADS)),
        ),
        ServingRule(
            engine=_NAME,
            version=_VERSION,
            types=DEEPSEEK,
            loads="no",
            kept=None,
            evidence="source",
            where=_CODE + "model_executor/layers/attention/mla_attention.py#L1624",
            change=f"its kernels take a latent of {_LARGE.rank} or {_SMALL.rank} with a rotary key of "
            f"{_LARGE.rope_dim} and heads of {_LARGE.head_dim} (on a CPU {_ANY_HEADS} with any heads), here "
            f"{LATENT_HERE}: convert with --for vllm, which chooses such sizes, or --to gqa",
            applies=biased,
        ),
    ),
    notes=(
        Note(
            types=LATENT,
            text="on a CPU set VLLM_MLA_DISABLE=1 too: it takes blocks for a latent that it then does not keep",
            evidence="source",
            where=_CODE + "platforms/cpu.py#L267",
        ),
        Note(
            types=LLAMA_LIKE | BIGCODE | GQA,
            text="its FlashAttention takes heads of a multiple of 8 up to 256, here {head_size}: slower "
            "kernels step in",
            evidence="source",
            where=_CODE + "v1/attention/backends/flash_attn.py#L425",
            applies=heads_not_multiple_of(8, 256),
        ),
    ),
    latents=(_LARGE, _SMALL),
    elsewhere={"vllm-cpu": (_ANY_HEADS,)},
)
