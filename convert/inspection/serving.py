"""Which engines load a converted checkpoint and whether they keep the small cache."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.errors import UsageError
from convert_attn.convert.serving_rules import ENGINES, OPTIONS, RULES, Config, Engine, Note, ServingRule, filled


def verdict(engine: Engine, config: Config) -> ServingRule | None:
    """Tell what an engine makes of a checkpoint with this config.json, in its own sizes; None: no rule knows it."""

    def concerns(part: ServingRule | Note) -> bool:
        return config.get("model_type") in part.types and part.applies(config)

    rule = next((rule for rule in engine.rules if concerns(rule)), None)
    if rule is None:
        return None
    notes = [note for note in engine.notes if concerns(note) and rule.loads != "no"]
    return replace(
        rule,
        change=filled(rule.change, config),
        notes=tuple(replace(note, text=filled(note.text, config)) for note in notes),
    )


def verdicts(config: Config) -> list[ServingRule]:
    """Give the verdict of every engine; one without a rule is left out."""
    found = (verdict(engine, config) for engine in ENGINES)
    return [rule for rule in found if rule is not None]


def named(option: str) -> Engine:
    """Give the engine that --for names.

    Raises:
        UsageError: there are no rules for it.
    """
    if option not in OPTIONS:
        raise UsageError(f"--for '{option}' is no engine that there are rules for; choose one of {', '.join(OPTIONS)}")
    return OPTIONS[option]


def takes(engine: Engine, config: Config) -> bool:
    """Whether an engine serves a checkpoint by a class of its own and keeps the small cache; ours are transformers'."""
    rule = verdict(engine, config)
    own = ("native class", "custom code") if engine.option == "transformers" else ("native class",)
    return rule is not None and rule.loads in own and rule.kept is True


def engines() -> list[str]:
    """Give every engine that there are rules for."""
    return [engine.name for engine in ENGINES]


def as_dict(rule: ServingRule) -> dict[str, Any]:
    """For --json."""
    shown = {key: value for key, value in asdict(rule).items() if key not in ("types", "applies", "notes")}
    return shown | {"notes": [{"text": n.text, "evidence": n.evidence, "where": n.where} for n in rule.notes]}


def serving(
    model: str | Path, revision: str | None = None, subfolder: str | None = None, engine: str | None = None
) -> tuple[str, list[ServingRule]]:
    """Give the model type of a checkpoint and what engines make of it, from config.json alone.

    Args:
        engine: only this one, by the name that --for takes.

    Raises:
        ConvertAttnError: it is not there, quantised, or no rule knows its type.
    """
    source = Source.open(resolve(str(model), revision, subfolder, weights=False))
    source.refuse_quantised()
    rules = verdicts(source.whole)
    if not rules:
        known = ", ".join(sorted(frozenset().union(*(rule.types for rule in RULES))))
        raise UsageError(
            f"no rules for '{source.whole['model_type']}', which no conversion makes; there are rules for {known}"
        )
    asked = None if engine is None else named(engine).name
    return str(source.whole["model_type"]), [rule for rule in rules if asked in (None, rule.engine)]
