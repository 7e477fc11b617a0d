"""Model types that conversions end in, by what they are: the facts of families and targets say so."""

from convert_attn import modeling
from convert_attn.convert.archs import adopted, architectures
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.classes.auto_classes import writes_alone
from convert_attn.convert.targets import plain_targets, targets

_KNOWN = {name: arch for name, arch in architectures().items() if name not in adopted()}
_MADE = frozenset(target.becomes for target in targets() if target.becomes)

# our classes
OWN = frozenset(modeling.FAMILIES)
ENCODERS = frozenset(name for name, family in modeling.FAMILIES.items() if family.encoder)
TWO_STACKS = frozenset(name for name, family in modeling.FAMILIES.items() if family.two_stacks)
EXPERIMENTS = frozenset(str(target.becomes) for target in targets() if target.experiment)
LATENT = OWN & {target.becomes for target in plain_targets() if target.form is LatentCache}
GROUPED = OWN - ENCODERS - TWO_STACKS - LATENT
# families that convert to fewer heads in their own class, and those of them that are in larger models only
NATIVE = frozenset(name for name, arch in _KNOWN.items() if arch.config_kv_heads is not None) - _MADE - OWN
INSIDE = frozenset(name for name in NATIVE if not writes_alone(name))
SINKS = frozenset(name for name in NATIVE if _KNOWN[name].sinks)
# models that see too, whose language model converts in its own class
LARGER = frozenset(
    {"gemma3", "idefics3", "internvl", "llava", "llava_next", "mistral3", "mllama", "qwen2_5_vl", "qwen2_vl", "smolvlm"}
)
# native classes for what comes from others
BIGCODE = frozenset({"gpt_bigcode"})
FALCON = frozenset({"falcon"})
DEEPSEEK = frozenset({"deepseek_v3"})
# what tests/test_engines.py converts
LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "gemma", "phi3"})
TRIED_OWN = frozenset({"gpt2_gqa", "gpt2_mla", "llama_mla"})
GQA = frozenset({"gpt2_gqa"})
GEMMA = frozenset({"gemma"})
PHI3 = frozenset({"phi3"})

_ONE_HEAD = frozenset(
    name for target in targets() if target.becomes in BIGCODE | FALCON for name in target.sources if target.becomes
)
# our classes whose family has a native one for fewer heads, and for one head alone
NATIVE_TOO = frozenset(name for name in LATENT | EXPERIMENTS if name.rpartition("_")[0] in NATIVE)
NATIVE_ONE = frozenset(name for name in OWN - NATIVE_TOO if name.rpartition("_")[0] in _ONE_HEAD)
