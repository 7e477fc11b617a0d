"""Which engines load a converted checkpoint and whether they keep the small cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import UsageError
from convert_attn.convert.hub import resolve
from convert_attn.convert.serving_rules import RULES, Config, Rule
from convert_attn.convert.source import Source


def verdicts(config: Config) -> list[Rule]:
    """The rule of every engine for a checkpoint with this config.json; an engine without one is left out."""
    found: dict[str, Rule] = {}
    for rule in RULES:
        if config.get("model_type") in rule.types and rule.applies(config):
            found.setdefault(rule.engine, rule)
    return list(found.values())


def engines() -> list[str]:
    """Every engine that there are rules for."""
    return list(dict.fromkeys(rule.engine for rule in RULES))


def as_dict(rule: Rule) -> dict[str, Any]:
    """For --json."""
    return {key: value for key, value in asdict(rule).items() if key not in ("types", "applies")}


def serving(model: str | Path, revision: str | None = None, subfolder: str | None = None) -> tuple[str, list[Rule]]:
    """The model type of a checkpoint and what engines make of it, from config.json alone.

    Raises:
        ConvertAttnError: it is not there, or no rule knows its type.
    """
    source = Source.open(resolve(str(model), revision, subfolder, weights=False))
    rules = verdicts(source.config)
    if not rules:
        known = ", ".join(sorted(frozenset().union(*(rule.types for rule in RULES))))
        raise UsageError(
            f"no rules for '{source.config['model_type']}', which no conversion makes; there are rules for {known}"
        )
    return str(source.config["model_type"]), rules
