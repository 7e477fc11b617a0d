"""What kvpress keeps of a text, and the loss behind it: run by an interpreter that has kvpress, and has none of ours.

    PYTHON kvpress_side.py FOLDER

FOLDER holds job.json and texts, and gets found.json; see latent_sequence.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def measure(place: Path) -> None:
    """Do the job in a folder."""
    import kvpress  # type: ignore[import-not-found]
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    job = json.loads((place / "job.json").read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    rows: list[dict[str, Any]] = []
    for number in range(job["jobs"]):
        tokens = torch.from_numpy(np.load(place / f"{number}.npy"))
        length = tokens.shape[1] - job["asked"]
        ratio = max(0.0, 1 - job["kept"] / length)
        for name in job["presses"]:
            press = getattr(kvpress, name)(compression_ratio=ratio)
            found = []
            for text in tokens.split(8):
                cache = DynamicCache()
                with torch.no_grad():
                    with press(model):
                        model(text[:, :length], past_key_values=cache, logits_to_keep=1)
                    where = torch.arange(length, tokens.shape[1])[None].expand(len(text), -1)
                    logits = model(text[:, length:], past_key_values=cache, position_ids=where).logits[:, :-1]
                target = text[:, length + 1 :]
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
                found += loss.view_as(target).mean(1).tolist()
            rows.append({"job": number, "press": name, "losses": found})
    (place / "found.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
