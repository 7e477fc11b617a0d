"""Checkpoints of our classes in a process that cannot import this package: remote code and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert_attn import modeling

_CODE = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "convert_attn":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
import torch, transformers

folder, auto_classes = sys.argv[1], sys.argv[2:]
ids, again = torch.load(folder + "/ids.pt"), folder + "-again"
for auto in auto_classes:
    for source in (folder, again):  # as written by us, and as saved after a fine-tuning
        model = getattr(transformers, auto).from_pretrained(source, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        if auto == "AutoModelForCausalLM":
            assert torch.equal(model(ids).logits, torch.load(folder + "/logits.pt"))
            options = {"max_new_tokens": 3, "do_sample": False}
            expected = model.generate(ids, **options, use_cache=False)
            assert expected.shape[1] == ids.shape[1] + 3
            assert torch.equal(model.generate(ids, **options), expected)
        else:
            model(ids)
        if source == folder:
            model.save_pretrained(again)
    print(type(model).__name__)
"""


def loads_without_the_package(model: Any, ids: Tensor, auto_classes: list[str], home: Path) -> list[str]:
    """Save a causal language model as a conversion does and load it, as it is and saved again, by every Auto class.

    Args:
        ids: tokens [B, S] on which its logits must be the same, bit for bit.
        home: a folder of its own, also for the Hub's cache.

    Returns:
        the names of the classes that were loaded.
    """
    folder, model_type = home / model.config.model_type, model.config.model_type
    model.config.auto_map = modeling.auto_map(model_type)
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["auto_map"] == modeling.auto_map(model_type)
    for path in modeling.source_files(model_type):
        shutil.copy(path, folder)
    torch.save(ids, folder / "ids.pt")
    torch.save(model(ids).logits.detach(), folder / "logits.pt")
    result = subprocess.run(
        [sys.executable, "-c", _CODE, str(folder), *auto_classes],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        cwd=home,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()
