"""Settings for every test: no network, quiet transformers, our classes registered."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub

import pytest
import transformers
from tiny import CONVERTIBLE

transformers.logging.set_verbosity_error()


@pytest.fixture(params=CONVERTIBLE)
def model_type(request: pytest.FixtureRequest) -> str:
    """Every architecture that can be converted."""
    return str(request.param)
