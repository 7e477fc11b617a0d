"""vLLM, read in the wheel of its release (which says commit 4ba787ec9), and at a commit where the version says so.

MLA's kernels are made for DeepSeek's sizes. On a GPU the prompt is taken by kernels for heads of 128 with a rotary key
of 64; tokens of the cache are gathered for it in rows of 320, 512 or 576 numbers; and of the decode kernels all but
Triton's want 576, which is also what those of the CPU are compiled for.
"""

from convert_attn.convert.serving_rules.asked import keeps_its_attention
from convert_attn.convert.serving_rules.base import (
    BACKEND,
    EVERY_HEAD,
    EXPANDED,
    GITHUB,
    HEAD_SIZE,
    LATENT_HERE,
    NO_BOUND,
    NOT_ALONE,
    NOT_INSIDE,
    ONE_NUMBER,
    OTHER_NAMES,
    OWN_ATTENTION,
    TAKE_GQA,
    TWO_ATTENTIONS,
    UNDIVIDED,
    UNNORMED,
    Engine,
    KernelSizes,
    Learned,
    Note,
    latent_in,
)
from convert_attn.convert.serving_rules.conditions import (
    bare,
    biased,
    both,
    called,
    divided_logits,
    heads_not_multiple_of,
    odd_heads,
    says,
    uneven_heads,
)
from convert_attn.convert.serving_rules.results import (
    BIGCODE,
    DEEPSEEK,
    ENCODERS,
    GQA,
    GROUPED,
    INSIDE,
    LARGER,
    LATENT,
    LLAMA_LIKE,
    NATIVE,
    NATIVE_TOO,
    SINKS,
    TRIED_OWN,
    TWO_STACKS,
)

_AT = "vllm-project/vllm/blob/{}/vllm/"
_CODE = GITHUB + _AT.format("v0.33.0")
_MODELS = "model_executor/models/"
_RELEASED = Learned(engine="vLLM", version="0.33.0", evidence="source", folder=_CODE)
_READ = Learned(
    engine="vLLM",
    version="017e9f444, of August 2026",
    evidence="source",
    folder=GITHUB + _AT.format("017e9f4448b700e85ee16023287b025693c72b9e") + _MODELS,
)

_LARGE, _SMALL, _ANY_HEADS = KernelSizes(512, 64, 128), KernelSizes(256, 64, 128), KernelSizes(512, 64)
_BY_TRANSFORMERS = (
    "start it with --model-impl transformers, which keeps the latent and reads our biases: its own class leaves them "
    "out without a word and computes something else"
)
_BACK = "transformers' class, through its transformers backend"
_MHA = f"{EVERY_HEAD}, and stops at tensors of fewer: start it with --model-impl transformers"
_NO_SINKS = "its transformers backend left sinks out here without a word; since commit 41fc00d8b it hands them over"
_ENCODES = f"an encoder keeps no cache; {BACKEND} --runner pooling"
_HEADS = "it was read for base models alone: convert one whose architectures name a ...Model"

_GATE = "registry.py#L1233"

_RELEASED_CLASSES = {"llama": "#L155", "mistral": "#L179", "qwen2": "#L200", "gemma": "#L112", "phi3": "#L197"}
_CLASSES = {
    "apertus": "apertus.py#L270",
    "arcee": "arcee.py#L128",
    "cohere2_moe": "cohere2_moe.py#L169",
    "cwm": "llama.py#L288",
    "ernie4_5": "llama.py#L288",
    "ernie4_5_moe": "ernie45_moe.py#L318",
    "exaone4": "exaone4.py#L239",
    "exaone_moe": "exaone_moe.py#L312",
    "gemma2": "gemma2.py#L197",
    "gemma3_text": "gemma3.py#L238",
    "glm": "llama.py#L288",
    "glm4": "glm4.py#L165",
    "glm4_moe": "glm4_moe.py#L341",
    "gpt_oss": "gpt_oss.py#L88",
    "granite": "granite.py#L206",
    "hy_v3": "hy_v3.py#L377",
    "hyperclovax": "hyperclovax.py#L227",
    "internlm3": "llama.py#L288",
    "iquestcoder": "llama.py#L288",
    "mellum": "mellum.py#L148",
    "minimax_m2": "minimax_m2.py#L273",
    "ministral3": "llama.py#L288",
    "mixtral": "mixtral.py#L241",
    "nemotron": "nemotron.py#L246",
    "qwen3": "qwen3.py#L202",
    "qwen3_moe": "qwen3_moe.py#L364",
    "seed_oss": "seed_oss.py#L212",
}
_WITH_EVEN_HEADS = {
    "cohere": "commandr.py#L141",
    "cohere2": "commandr.py#L141",
    "falcon": "falcon.py#L117",
    "flex_olmo": "olmoe.py#L131",
    "granitemoe": "granitemoe.py#L240",
    "granitemoeshared": "granitemoeshared.py#L91",
    "olmo3": "olmo3.py#L88",
    "qwen2_moe": "qwen2_moe.py#L298",
}
_ANY = LLAMA_LIKE | _CLASSES.keys()
_LARGER_CLASSES = {
    "gemma3": ("gemma3_mm.py#L529", frozenset({"gemma3_text"})),
    "idefics3": ("idefics3.py#L420", frozenset({"llama"})),
    "smolvlm": ("idefics3.py#L420", frozenset({"llama"})),
    "internvl": ("interns1.py#L563", _ANY),
    "llava": ("llava.py#L577", _ANY),
    "llava_next": ("llava_next.py#L296", _ANY),
    "mistral3": ("mistral3.py#L439", _ANY),
    "qwen2_vl": ("qwen2_vl.py#L1304", INSIDE),
    "qwen2_5_vl": ("qwen2_5_vl.py#L1372", INSIDE),
}
# what it has no class of its own for
_BACKED = NATIVE - {*_RELEASED_CLASSES, *_CLASSES, *_WITH_EVEN_HEADS, "olmoe", "stablelm"}

ENGINE = Engine(
    name=_READ.engine,
    option="vllm",
    rules=(
        _RELEASED.refuses(frozenset({"qwen2"}), _MODELS + "qwen2.py#L150", HEAD_SIZE, odd_heads),
        *_RELEASED.knows({name: f"{_MODELS}registry.py{line}" for name, line in _RELEASED_CLASSES.items()}),
        _RELEASED.takes(BIGCODE, _MODELS + "registry.py#L753", _BACK),
        _RELEASED.refuses(GQA, _MODELS + "transformers/base.py#L638", ONE_NUMBER, uneven_heads),
        _RELEASED.takes(GQA, _MODELS + "transformers/base.py#L638", BACKEND, code=True),
        _RELEASED.takes(LATENT & TRIED_OWN, _MODELS + "transformers/base.py#L732", EXPANDED, code=True, kept=False),
        _RELEASED.takes(
            DEEPSEEK,
            _MODELS + "deepseek_v2.py#L1807",
            _BY_TRANSFORMERS,
            applies=both(biased, latent_in(_LARGE)),
        ),
        _RELEASED.takes(
            DEEPSEEK,
            _MODELS + "deepseek_v2.py#L1807",
            f"{_BY_TRANSFORMERS}; on a GPU only (where its kernel refuses, --attention-backend TRITON_MLA "
            f"takes any size): a CPU takes {_LARGE}",
            applies=both(biased, latent_in(_SMALL)),
        ),
        _RELEASED.takes(
            DEEPSEEK,
            "v1/attention/backends/mla/cpu_mla.py#L64",
            f"{_BY_TRANSFORMERS}; on a CPU only: its GPU kernels take heads of 128, here {{qk_nope_head_dim}}",
            applies=both(biased, latent_in(_ANY_HEADS)),
        ),
        _RELEASED.refuses(
            DEEPSEEK,
            "model_executor/layers/attention/mla_attention.py#L1624",
            f"its kernels take a latent of {_LARGE.rank} or {_SMALL.rank} with a rotary key of "
            f"{_LARGE.rope_dim} and heads of {_LARGE.head_dim} (on a CPU {_ANY_HEADS} with any heads), here "
            f"{LATENT_HERE}: convert with --for vllm, which chooses such sizes, or --to gqa",
            biased,
        ),
        *_READ.knows(_CLASSES),
        *_READ.knows(_WITH_EVEN_HEADS, sizes_heads=False),
        _READ.refuses(frozenset({"stablelm"}), "stablelm.py#L109", UNNORMED, says("qk_layernorm")),
        *_READ.knows({"stablelm": "stablelm.py#L109"}, sizes_heads=False),
        _READ.refuses(frozenset({"olmoe"}), "olmoe.py#L131", NO_BOUND, says("clip_qkv")),
        *_READ.knows({"olmoe": "olmoe.py#L131"}, sizes_heads=False),
        _READ.takes(frozenset({"phimoe"}), "phimoe.py#L394", applies=called("PhiMoEForCausalLM")),
        _READ.takes(frozenset({"phi"}), "phi.py#L94", _MHA),
        _READ.leaves_open(frozenset({"sarvam_moe"}), "bailing_moe.py#L83", OTHER_NAMES),
        *_READ.takes_larger(_LARGER_CLASSES),
        _READ.refuses(frozenset({"mllama"}), "registry.py#L780", "it has had no class for it since 0.10.2"),
        _READ.leaves_open(LARGER, "registry.py#L347", NOT_INSIDE),
        _READ.leaves_open(INSIDE, "registry.py#L1174", NOT_ALONE),
        _READ.refuses(TWO_STACKS, _GATE, TWO_ATTENTIONS, keeps_its_attention),
        _READ.refuses(LATENT & NATIVE_TOO, _GATE, f"{OWN_ATTENTION}; {TAKE_GQA}", keeps_its_attention),
        _READ.refuses(NATIVE | GROUPED | LATENT | ENCODERS, _GATE, OWN_ATTENTION, keeps_its_attention),
        _READ.refuses(GROUPED, "transformers/base.py#L567", ONE_NUMBER, uneven_heads),
        _READ.leaves_open(SINKS, "transformers/__init__.py#L46", _NO_SINKS),
        _READ.takes(ENCODERS, "transformers/base.py#L624", _ENCODES, code=True, applies=bare),
        _READ.leaves_open(ENCODERS, "transformers/legacy.py#L34", _HEADS),
        _READ.takes(GROUPED, "transformers/base.py#L567", BACKEND, code=True),
        _READ.takes(LATENT, "transformers/base.py#L545", EXPANDED, code=True, kept=False),
        _READ.takes(NATIVE, "transformers/base.py#L567", _BACK),
    ),
    notes=(
        Note(
            types=LATENT & TRIED_OWN,
            text="on a CPU set VLLM_MLA_DISABLE=1 too: it takes blocks for a latent that it then does not keep",
            evidence="source",
            where=_CODE + "platforms/cpu.py#L267",
        ),
        Note(
            types=LATENT | _BACKED,
            text=UNDIVIDED,
            evidence="source",
            where=_READ.folder + "transformers/causal.py#L64",
            applies=divided_logits,
        ),
        Note(
            types=NATIVE | BIGCODE | GROUPED,
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
