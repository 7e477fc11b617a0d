"""What kvpress keeps of a text, and the loss behind it: run by an interpreter that has kvpress, and has none of ours.

    PYTHON kvpress_side.py FOLDER

FOLDER holds job.json and texts, and gets found.json; see latent_sequence.py. A text is read once: no press changes what
the layers above its own read, so that each is asked there what it would keep.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def measure(place: Path) -> None:
    """Do the job in a folder."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    job = json.loads((place / "job.json").read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    rows: list[dict[str, Any]] = []
    for number in range(job["jobs"]):
        given = {name: torch.from_numpy(tokens) for name, tokens in np.load(place / f"{number}.npz").items()}
        texts = given.pop("texts")
        found: dict[tuple[str, str], list[float]] = {}
        for start in range(0, len(texts), job["batch"]):
            part = slice(start, start + job["batch"])
            for name, kept in pressed(model, texts[part], job["presses"], job["kept"]).items():
                for what, tokens in given.items():
                    found.setdefault((what, name), []).extend(behind(model, kept, texts.shape[1], tokens[part]))
        rows += [{"job": number, "what": what, "press": name, "losses": of} for (what, name), of in found.items()]
    (place / "found.json").write_text(json.dumps(rows))


def pressed(model: Any, texts: Any, names: list[str], most: int) -> dict[str, list[Any]]:
    """Give keys and values of every layer that each press keeps of texts [n, T], `most` tokens of each or all."""
    import kvpress  # type: ignore[import-not-found]
    import torch
    from transformers import DynamicCache

    ratio = max(0.0, 1 - most / texts.shape[1])
    presses: dict[str, Any] = {}
    for name in names:
        outer, _, inner = name.rpartition(" ")
        press = getattr(kvpress, f"{inner}Press")(compression_ratio=ratio)
        presses[name] = getattr(kvpress, f"{outer}Press")(press=press) if outer else press
        presses[name].post_init_from_model(model)
    kept: dict[str, list[Any]] = {name: [] for name in names}

    class All(kvpress.BasePress):  # type: ignore[misc]
        def compress(self, module: Any, *given: Any) -> Any:
            for name, press in presses.items():
                kept[name].append(press.compress(module, *given))
            return given[1:3]  # keys and values

    with torch.no_grad(), All()(model):
        model(texts, past_key_values=DynamicCache(), logits_to_keep=1)
    return kept


def behind(model: Any, kept: list[Any], length: int, tokens: Any) -> list[float]:
    """Give the mean loss of tokens [n, S] but the first behind so many that were read."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(kept):
        cache.update(keys, values, layer)
    where = torch.arange(length, length + tokens.shape[1])[None].expand(len(tokens), -1)
    with torch.no_grad():
        logits = model(tokens, past_key_values=cache, position_ids=where).logits[:, :-1]
    target = tokens[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    found: list[float] = loss.view_as(target).mean(1).tolist()
    return found


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
