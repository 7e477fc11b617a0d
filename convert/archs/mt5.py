"""mT5: T5's layout for many languages."""

from dataclasses import replace

from convert_attn.convert.archs.t5 import ARCHITECTURE as T5

ARCHITECTURE = replace(T5, model_type="mt5", context=1024)
