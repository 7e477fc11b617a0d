"""How each layer of a latent sequence merges, chosen on text: of a few rules that by which its output loses least.

The converted model reads texts with a cache that keeps all. For the tokens that follow, each layer's attention is
computed once more for each rule, on slots made by it of what the layer had read, and compared with what it gave: by
squared errors of the attention's output. Layers are compared one at a time, on the states of the original.

That is done with `SLOTS` slots at most and texts of 7 times as many tokens, however many slots the result has: with
more of both it would take hours.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.checkpoint.loading import load_language_model
from convert_attn.convert.fitting.session import windows_of
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.planning.provenance import public
from convert_attn.convert.progress import Progress
from convert_attn.convert.targets.latent_sequence import SINKS
from convert_attn.convert.text.windows import AUTO, AUTO_TOKENS
from convert_attn.modeling.latent_sequence import LatentSequenceCache, SlotAttention, SlotLayer
from convert_attn.modeling.latent_slots import SlotLatentAttention
from convert_attn.modeling.slot_merging import MergeRule, SlotSizes

SLOTS, ASKED, TEXTS = 32, 32, 8  # slots that are tried at most; tokens that ask; texts
_TIMES = 7  # as many tokens as slots are read at most
RULES = (MergeRule(), MergeRule(1.0, 0.0), MergeRule(0.0, 1.0), MergeRule(0.5, 1.0), MergeRule(1.0, 1.0))


def slot_texts(plan: Plan) -> Tensor | None:
    """Give texts [n, T] of token ids to choose on; None where the plan has no slots, no text, or none of some length.

    Raises:
        ConvertAttnError: text that was asked for by name cannot be read.
    """
    asked = plan.request.slots
    if asked is None:
        return None
    windows, _ = windows_of(plan, AUTO_TOKENS)
    if windows is None:
        return None
    slots = min(asked, SLOTS)
    texts = windows.fit[:TEXTS, : _TIMES * slots + ASKED]
    return texts if texts.shape[1] >= _least(slots) else None


def _least(slots: int) -> int:
    """Tokens that a text must have, or hardly anything is merged."""
    return SINKS + 3 * slots + ASKED


def unchosen(plan: Plan) -> tuple[str, ...]:
    """Tell what it means that `slot_texts` has none where text was asked for by name."""
    asked, slots = plan.request.calibration, plan.request.slots
    if slots is None or plan.text is None or asked == AUTO:
        return ()
    return (
        f"--calibration {public(asked)} has no windows of {_least(min(slots, SLOTS))} tokens, on which the way to "
        "merge is chosen: all layers merge by the same rule",
    )


def write_rules(plan: Plan, folder: Path, texts: Tensor, progress: Progress) -> None:
    """Choose the rule of each layer of a result that is otherwise complete, and write them into its config.json.

    Raises:
        ConvertAttnError: the result cannot be loaded.
    """
    model = load_language_model(folder, plan.output.name, dtype=torch.float32).to(plan.request.device)
    rules = [RULES[number] for number in rule_errors(model, texts, progress).argmin(0).tolist()]
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"cache_merging": [[*astuple(rule)] for rule in rules]}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def rule_errors(model: Any, texts: Tensor, progress: Progress) -> Tensor:
    """Squared errors [rules, layers] of the attention's output for the last ASKED tokens of texts [n, T].

    They are relative to the square of the output.
    """
    config, texts = model.config, texts.to(model.device)
    cache = LatentSequenceCache(config)
    cache.layers = [SlotLayer(SlotSizes(0, 1 << 30, 1)) for _ in cache.layers]
    model(texts[:, :-ASKED], past_key_values=cache, use_cache=True, logits_to_keep=1)
    slots = min(config.cache_slots, SLOTS)
    trials = _Trials(SlotSizes(config.cache_sinks, slots, slots), copy(cache), progress)
    trials.read.layers = [copy(layer) for layer in cache.layers]
    attentions = [module for module in model.modules() if isinstance(module, SlotAttention | SlotLatentAttention)]
    hooks = [module.register_forward_hook(trials.watch, with_kwargs=True) for module in attentions]
    try:
        model(texts[:, -ASKED:], past_key_values=cache, use_cache=True, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([trials.errors[layer] for layer in range(len(attentions))], 1)


@dataclass
class _Trials:
    """Every attention, run once more for each rule.

    Attributes:
        sizes: of the cache that is tried.
        read: what all layers hold of the texts.
    """

    sizes: SlotSizes
    read: LatentSequenceCache
    progress: Progress

    def __post_init__(self) -> None:
        self.errors: dict[int, Tensor] = {}

    def watch(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note the errors of a layer; a forward hook."""
        self.progress("slots", len(self.errors), len(self.read.layers))
        whole = output[0]
        found = [module.forward(*args, **self._with_slots(module, kwargs, rule))[0] - whole for rule in RULES]
        self.errors[module.layer_idx] = torch.stack([error.square().sum() for error in found]) / whole.square().sum()

    def _with_slots(self, module: Any, kwargs: dict[str, Any], rule: MergeRule) -> dict[str, Any]:
        """Arguments with slots in the place of the cache, and the mask of the new tokens alone, as slots want it."""
        given = dict(kwargs)
        for name, value in kwargs.items():
            if isinstance(value, LatentSequenceCache):
                given[name] = self._cache(module, rule)
        if given.get("attention_mask") is not None:
            given["attention_mask"] = given["attention_mask"][..., -ASKED:]
        return given

    def _cache(self, module: Any, rule: MergeRule) -> LatentSequenceCache:
        made, layer = copy(self.read), copy(self.read.layers[module.layer_idx])
        assert isinstance(layer, SlotLayer)
        layer.sizes = replace(self.sizes, rule=rule)
        rotary = module.rotary[0] if isinstance(module.rotary, tuple) else module.rotary
        layer.shrink(torch.zeros(0, device=layer.device) if rotary is None else rotary.inv_freq)
        made.layers = [*made.layers]
        made.layers[module.layer_idx] = layer
        return made
