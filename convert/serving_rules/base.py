"""What a rule of `inspect --serving` is, and the conditions that rules of several engines share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from convert_attn import modeling
from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER

Loads = Literal["native class", "custom code", "no"]
Evidence = Literal["tried", "source"]
Config = dict[str, Any]
Condition = Callable[[Config], bool]

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "gemma", "phi3"})
SAME_CLASS = frozenset(  # families that convert to fewer heads in their own class, of which only transformers was tried
    {
        "apertus",
        "apertus1p5_text",
        "arcee",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "cwm",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "flex_olmo",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt_oss",
        "granite",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoeshared",
        "helium",
        "hy_v3",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "kolibri1",
        "mellum",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "phi",
        "phimoe",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "sarvam_moe",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "vaultgemma",
    }
)
ENCODERS = frozenset(name for name, family in modeling.FAMILIES.items() if family.encoder)
TWO_STACKS = frozenset(name for name, family in modeling.FAMILIES.items() if family.two_stacks)
# models that see too, whose language model converts in its own class, and such language models by themselves
LARGER = frozenset(
    {
        "gemma3",
        "idefics3",
        "internvl",
        "llava",
        "llava_next",
        "mistral3",
        "qwen2_5_vl",
        "qwen2_5_vl_text",
        "qwen2_vl",
        "qwen2_vl_text",
        "smolvlm",
    }
)
FALCON = frozenset({"falcon"})
GQA = frozenset({"gpt2_gqa"})
LATENT = frozenset({"gpt2_mla", "llama_mla"})
CUSTOM = GQA | LATENT
# our classes of which only transformers was tried
GROUPED = frozenset(modeling.FAMILIES) - ENCODERS - TWO_STACKS - CUSTOM
BIGCODE = frozenset({"gpt_bigcode"})
DEEPSEEK = frozenset({"deepseek_v3"})
GEMMA = frozenset({"gemma"})
PHI3 = frozenset({"phi3"})

TAKE_GQA = "for a small cache here convert --to gqa or mqa"
TAKE_NATIVE = "convert to a native class: --to mqa for GPT-2; --to gqa or mqa for Llama and its relatives"
BACKEND = "through its transformers backend: start it with --trust-remote-code"
EXPANDED = f"{BACKEND}; it is handed K and V of every head, so its cache is no smaller than before: {TAKE_GQA}"
BIASES = "its DeepSeek-V3 has no bias on kv_a_proj_with_mqa, which carries the constant that undoes the latent's norm"
EXACT_GELU = "its logits differ: it has the exact GELU where the model's is the tanh approximation"
HEAD_SIZE = "it takes a head's size to be hidden_size / num_attention_heads, which is not so here, nor in the source"
LATENT_HERE = "a latent of {kv_lora_rank} with a rotary key of {qk_rope_head_dim} and heads of {qk_nope_head_dim}"

ONE_NUMBER = "it takes one number of K/V heads for all layers: convert with one --groups N"

GITHUB = "https://github.com/"
ENGINE_TESTS = "tests/test_engines.py"


def always(config: Config) -> bool:
    """Give no condition."""
    return True


@dataclass(frozen=True, kw_only=True)
class Note:
    """What else to know where a rule applies that loads: mostly sizes that the best kernels do not take.

    Attributes:
        types: values of `model_type`.
        text: like `ServingRule.change`.
    """

    types: frozenset[str]
    text: str
    evidence: Evidence
    where: str
    applies: Condition = always


@dataclass(frozen=True, kw_only=True)
class ServingRule:
    """What one engine does with some model types.

    Attributes:
        version: of the engine, as far as it is known.
        types: values of `model_type`.
        kept: whether the engine's cache is the small one, or there is none to keep; None where it does not load.
        change: what to know or to do, "" where all is well; {names} stand for values of config.json (see `filled`).
        where: address or file of the evidence.
        applies: a further condition on config.json.
        notes: what else to know of a checkpoint, empty in the rules themselves.
    """

    engine: str
    version: str
    types: frozenset[str]
    loads: Loads
    kept: bool | None
    evidence: Evidence
    where: str
    change: str = ""
    applies: Condition = always
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class KernelSizes:
    """Sizes of a native latent that an engine's kernels take.

    Attributes:
        rank: the class's `kv_lora_rank`, with the channel that undoes its norm.
        rope_dim: `qk_rope_head_dim`.
        head_dim: `qk_nope_head_dim` and `v_head_dim`; None: any.
    """

    rank: int
    rope_dim: int
    head_dim: int | None = None

    def __str__(self) -> str:
        return f"{self.rank} + {self.rope_dim}"

    def met_by(self, config: Config) -> bool:
        """Tell whether a checkpoint has these sizes."""
        heads = {config.get("qk_nope_head_dim"), config.get("v_head_dim")}
        same = (config.get("kv_lora_rank"), config.get("qk_rope_head_dim")) == (self.rank, self.rope_dim)
        return same and (self.head_dim is None or heads == {self.head_dim})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine that serves checkpoints.

    Attributes:
        name: as its makers write it.
        option: as a value of `--for`.
        rules: of several that apply the first one counts.
        notes: added to the rule, every one that applies.
        latents: sizes of a native latent that its kernels take, the best first; empty: any, or no latent at all.
        elsewhere: the same for other machines than GPUs, by values of `--for`.
    """

    name: str
    option: str
    rules: tuple[ServingRule, ...]
    notes: tuple[Note, ...] = ()
    latents: tuple[KernelSizes, ...] = ()
    elsewhere: Mapping[str, tuple[KernelSizes, ...]] = field(default_factory=dict)

    def options(self) -> dict[str, Engine]:
        """Give the engine by each value of `--for` that means it, with the sizes that are meant."""
        others = {option: replace(self, option=option, latents=sizes) for option, sizes in self.elsewhere.items()}
        return {self.option: self} | others


def head_size(config: Config) -> int | None:
    """Give the size of a head where K and V are cached; None where the file does not tell."""
    size, heads, hidden = (config.get(key) for key in ("head_dim", "num_attention_heads", "hidden_size"))
    if size is None:  # GPTBigCode's names
        heads, hidden = heads or config.get("n_head"), hidden or config.get("n_embd")
        size = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    return size if isinstance(size, int) else None


def odd_heads(config: Config) -> bool:
    """Tell whether the size of a head is not what readers that do not look for it think."""
    size, heads, hidden = (config.get(key) for key in ("head_dim", "num_attention_heads", "hidden_size"))
    return not (size is None or heads is None or hidden is None) and size * heads != hidden


def heads_not_in(*sizes: int) -> Condition:
    """Give heads of a size that kernels for a fixed list of sizes do not take."""
    return lambda config: head_size(config) not in (None, *sizes)


def heads_not_multiple_of(step: int, most: int | None = None) -> Condition:
    """Give heads whose size is no multiple of `step`, or is above `most`."""

    def applies(config: Config) -> bool:
        size = head_size(config)
        return size is not None and (size % step != 0 or (most is not None and size > most))

    return applies


def activation(*without: str) -> Condition:
    """GPTBigCode with an activation that an engine does not compute as it is meant."""
    return lambda config: config.get("activation_function") not in without


def biased(config: Config) -> bool:
    """DeepSeek-V3 whose attention has biases, as the conversion's has."""
    return bool(config.get("attention_bias"))


def one_head(config: Config) -> bool:
    """Falcon with one K/V head, in the layout that is for one."""
    return bool(config.get("multi_query", True)) and not config.get("new_decoder_architecture")


def uneven_heads(config: Config) -> bool:
    """Our GPT-2 whose layers have other numbers of K/V heads."""
    return len(set(config.get(HEADS_BY_LAYER) or ())) > 1


def both(first: Condition, second: Condition) -> Condition:
    """Give two conditions at once."""
    return lambda config: first(config) and second(config)


def latent_in(*taken: KernelSizes) -> Condition:
    """Give a native latent of one of these sizes."""
    return lambda config: any(sizes.met_by(config) for sizes in taken)


def known(engine: str, version: str, folder: str, where: dict[str, str]) -> list[ServingRule]:
    """Give an engine has classes of its own for these types, and they keep as many K/V heads as there are."""
    return [
        ServingRule(
            engine=engine,
            version=version,
            types=frozenset({name}),
            loads="native class",
            kept=True,
            evidence="source",
            where=folder + place,
        )
        for name, place in where.items()
    ]


class _Values(dict[str, Any]):
    """What a config does not say is unknown, not an error."""

    def __missing__(self, key: str) -> str:
        return "unknown"


def filled(text: str, config: Config) -> str:
    """Give a rule's or note's text with the checkpoint's own sizes; {head_size} is `head_size`."""
    return text.format_map(_Values(config | {"head_size": head_size(config)}))
