"""What serving engines make of a converted checkpoint: rules as data, each with where it was learned.

A rule says of one engine and some model types whether the checkpoint loads, by a class of the engine's own or by our
code, whether the engine then keeps the small cache, and if not what to do. `evidence` is how it is known:

    tried   by tests of this repository, with that version
    source  read in the engine's source, at the line that `where` names, not run

An engine is one module here. Which classes of its own an engine has, and where they read the number of K/V heads, is a
table in its module; what it makes of a class that it runs through transformers follows from what that class says and
does (`asked`), and from config.json (`conditions`).
"""

from convert_attn.convert.serving_rules import ctranslate2, llama_cpp, mlx_lm, sglang, tgi, transformers, vllm
from convert_attn.convert.serving_rules.base import Engine, KernelSizes, Note, ServingRule, filled
from convert_attn.convert.serving_rules.conditions import Config

# in the order in which they are shown
ENGINES: tuple[Engine, ...] = tuple(
    module.ENGINE for module in (transformers, vllm, sglang, llama_cpp, ctranslate2, mlx_lm, tgi)
)
# the values of --for
OPTIONS: dict[str, Engine] = {option: meant for engine in ENGINES for option, meant in engine.options().items()}
RULES: tuple[ServingRule, ...] = tuple(rule for engine in ENGINES for rule in engine.rules)

__all__ = ["ENGINES", "OPTIONS", "RULES", "Config", "Engine", "KernelSizes", "Note", "ServingRule", "filled"]
