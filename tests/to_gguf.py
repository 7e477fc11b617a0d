"""llama.cpp's own converter, for checkpoints with a tokenizer of ours: python to_gguf.py LLAMA_CPP MODEL OUT.

It knows tokenizers by a hash and refuses others. Ours cut text as GPT-2's does, and that is what it is told; for every
class it writes the vocabulary as for GPT-2. Nothing else is touched: weights and sizes are read by its own code.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path


def main(root: Path, model: str, out: str) -> None:
    """Writes MODEL as fp32 GGUF, with the converter of the llama.cpp source folder `root`."""
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    known, text = importlib.import_module("conversion"), importlib.import_module("conversion.base").TextModel
    text.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    known.get_model_class(
        json.loads((Path(model) / "config.json").read_text())["architectures"][0]
    ).set_vocab = text._set_vocab_gpt2
    sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", out, "--outtype", "f32"]
    runpy.run_path(str(root / sys.argv[0]), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
