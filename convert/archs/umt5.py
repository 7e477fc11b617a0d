"""umT5: mT5 with a table of distances in every block."""

from dataclasses import replace

from convert_attn.convert.archs.mt5 import ARCHITECTURE as MT5

assert MT5.cross is not None
ARCHITECTURE = replace(MT5, model_type="umt5", cross=replace(MT5.cross, hands_on=()))
