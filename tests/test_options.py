"""Keyword arguments of the public functions: an editor knows them, and a typing error is a sentence."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from convert_attn import UsageError, convert, heal
from convert_attn.convert.heal.state.settings import HealOptions, Settings
from convert_attn.convert.planning.request import Request, RequestOptions


@pytest.mark.parametrize(
    ("options", "made", "function"), [(RequestOptions, Request, convert), (HealOptions, Settings, heal)]
)
def test_options_are_the_fields_of_what_is_made_of_them(options: Any, made: Any, function: Any) -> None:
    own = signature(function).parameters.keys()
    assert {field.name for field in fields(made)} - own == set(options.__annotations__)


def test_an_option_that_is_not_there_is_named_with_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"convert\(\) has no argument 'grops': did you mean groups\?"):
        convert("sample:gpt2", to="gqa", output=tmp_path / "out", grops=4)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"heal\(\) has no argument 'learning_rate': it takes .*lr"):
        heal(tmp_path, data="sample", tokens=5, learning_rate=1.0)  # type: ignore[call-arg]
    assert not list(tmp_path.iterdir())
