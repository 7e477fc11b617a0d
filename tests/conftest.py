"""Settings for every test: no network, quiet transformers, our classes registered."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub

import pytest
import torch
import transformers
from checkpoints import Command
from tiny import CONVERTIBLE, KINDS

from convert_attn.convert.text import windows as calibration_text

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny models: threads cost more than they give, and pytest-xdist uses the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="every family, many more random cases")


@pytest.fixture(scope="session")
def slow(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of the random tests was asked for."""
    return bool(request.config.getoption("--slow"))


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package's texts, a few tokens: the default text and the measurement take part in every conversion."""
    monkeypatch.setattr(calibration_text, "AUTO_TOKENS", 512)
    monkeypatch.setattr(calibration_text, "_HELD", 2)
    monkeypatch.setattr(calibration_text, "_HELD_WINDOW", 64)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `model_type`, where a test does not say which, one family of each kind; with --slow all families."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "model_type" in metafunc.fixturenames and not any("model_type" in str(mark.args[0]) for mark in marks):
        metafunc.parametrize("model_type", CONVERTIBLE if metafunc.config.getoption("--slow") else KINDS)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`convert-attn` in this process, as its console script runs it."""
    return Command(monkeypatch, capsys)
