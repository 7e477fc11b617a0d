"""What a rule of `inspect --serving` is, and the sentences that rules of several engines share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from convert_attn.convert.serving_rules.conditions import Condition, Config, always, around, head_size, odd_heads
from convert_attn.convert.serving_rules.results import NATIVE_ONE, NATIVE_TOO, OWN

Loads = Literal["native class", "custom code", "no", "not known"]
Evidence = Literal["tried", "source"]

TAKE_GQA = "for a small cache here convert --to gqa or mqa"
BACKEND = "through its transformers backend: start it with --trust-remote-code"
EXPANDED = f"{BACKEND}; it is handed K and V of every head, so its cache is no smaller than before: {TAKE_GQA}"
BIASES = "its DeepSeek-V3 has no bias on kv_a_proj_with_mqa, which carries the constant that undoes the latent's norm"
EXACT_GELU = "its logits differ: it has the exact GELU where the model's is the tanh approximation"
HEAD_SIZE = "it takes a head's size to be hidden_size / num_attention_heads, which is not so here, nor in the source"
LATENT_HERE = "a latent of {kv_lora_rank} with a rotary key of {qk_rope_head_dim} and heads of {qk_nope_head_dim}"
EVERY_HEAD = "its own class gives every query head a key and a value"
OWN_ATTENTION = (
    "its transformers backend puts an attention of its own in the place of the class's, and this class does not let "
    "it: the engine would learn nothing of its mask, its cap, or what its blocks do besides"
)
TWO_ATTENTIONS = (
    "its transformers backend has no second attention, on an encoder's states, nor does this class let it in"
)
ONE_NUMBER = "it takes one number of K/V heads for all layers: convert with one --groups N"
NO_CLASS = "it has no class for {model_type}, converted or not, and runs no other"
NOT_INSIDE = "what it makes of this language model inside was not followed"
NO_CODE = "it runs no code that a checkpoint brings"
NOT_ALONE = "such a model by itself was not read for"
NO_BOUND = "its class has no bound (clip_qkv)"
OTHER_NAMES = "its class reads tensors by the names of the model's own code, which transformers' class need not write"
UNDIVIDED = (
    "its transformers backend does not divide logits by logits_scaling: take a temperature "
    "{logits_scaling} times as high"
)
UNNORMED = "its class has no norms on queries and keys, which config.json asks for (qk_layernorm)"
TEXT_ALONE = "it reads the language model, and leaves out what sees"
# what to do then
IN_ITS_CLASS = f"{NO_CODE}: convert --to gqa or mqa, which end in the source's own class"
WITH_ONE_HEAD = f"{NO_CODE}: convert --to mqa --layout native, the one form of this family that a native class has"
NOWHERE_ELSE = f"{NO_CODE}, and convert-attn knows no native class for this family with fewer K/V heads"

GITHUB = "https://github.com/"
ENGINE_TESTS = "tests/test_engines.py"


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
        loads: "not known" where neither a test nor the engine's source has told.
        kept: whether the engine's cache is the small one, or there is none to keep; None where it does not load, or
            that is not known.
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


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What rules of one engine that were learned in one way have in common.

    Attributes:
        engine, version, evidence: as of `ServingRule`.
        folder: what the places of these rules begin with.
    """

    engine: str
    version: str
    evidence: Evidence
    folder: str = ""

    def takes(
        self,
        types: frozenset[str],
        place: str,
        change: str = "",
        *,
        code: bool = False,
        kept: bool = True,
        applies: Condition = always,
    ) -> ServingRule:
        """Give the rule that the engine loads these types, by a class of its own or, with `code`, by ours."""
        loads: Loads = "custom code" if code else "native class"
        return self._rule(types, place, loads=loads, kept=kept, change=change, applies=applies)

    def refuses(self, types: frozenset[str], place: str, change: str, applies: Condition = always) -> ServingRule:
        """Give the rule that the engine does not load these types, or computes something else."""
        return self._rule(types, place, loads="no", kept=None, change=change, applies=applies)

    def leaves_open(self, types: frozenset[str], place: str, change: str, applies: Condition = always) -> ServingRule:
        """Give the rule that nobody has found out what the engine does with these types."""
        return self._rule(types, place, loads="not known", kept=None, change=change, applies=applies)

    def knows(self, places: Mapping[str, str], change: str = "", *, sizes_heads: bool = True) -> list[ServingRule]:
        """Give the rules that the engine has classes for these types, which have as many K/V heads as config.json says.

        Args:
            places: where each class reads that.
            change: as of `ServingRule`.
            sizes_heads: these classes take a head's size as config.json says it, too.
        """
        rules = []
        for name, place in places.items():
            types = frozenset({name})
            if not sizes_heads:
                rules.append(self.refuses(types, place, HEAD_SIZE, odd_heads))
            rules.append(self.takes(types, place, change))
        return rules

    def takes_larger(self, places: Mapping[str, tuple[str, frozenset[str]]], change: str = "") -> list[ServingRule]:
        """Give the rules that the engine loads larger models, with some language models inside.

        Args:
            places: where each class makes the language model, and the types that it makes.
        """
        return [
            self.takes(frozenset({name}), place, change, applies=around(inside))
            for name, (place, inside) in places.items()
        ]

    def runs_no_code(self, place: str, types: frozenset[str] = OWN) -> list[ServingRule]:
        """Give the rules of an engine that reads classes of transformers alone, for ours, with what to do instead."""
        return [
            self.refuses(types & NATIVE_TOO, place, IN_ITS_CLASS),
            self.refuses(types & NATIVE_ONE, place, WITH_ONE_HEAD),
            self.refuses(types - NATIVE_TOO - NATIVE_ONE, place, NOWHERE_ELSE),
        ]

    def _rule(
        self,
        types: frozenset[str],
        place: str,
        *,
        loads: Loads,
        kept: bool | None,
        change: str,
        applies: Condition,
    ) -> ServingRule:
        return ServingRule(
            engine=self.engine,
            version=self.version,
            types=types,
            loads=loads,
            kept=kept,
            evidence=self.evidence,
            where=self.folder + place,
            change=change,
            applies=applies,
        )


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


def latent_in(*taken: KernelSizes) -> Condition:
    """Give a native latent of one of these sizes."""
    return lambda config: any(sizes.met_by(config) for sizes in taken)


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


class _Values(dict[str, Any]):
    """What a config does not say is unknown, not an error."""

    def __missing__(self, key: str) -> str:
        return "unknown"


def filled(text: str, config: Config) -> str:
    """Give a rule's or note's text with the checkpoint's own sizes; {head_size} is `head_size`."""
    return text.format_map(_Values(config | {"head_size": head_size(config)}))
