"""The source's own class, with fewer K/V heads: what every RoPE family in transformers can hold."""

from convert_attn.convert.geometry import Geometry
from convert_attn.convert.targets.base import Config, Target


def _configure(config: Config, geometry: Geometry, groups: int) -> Config:
    """head_dim is written out: readers that derive it from the K/V heads would get it wrong."""
    return {"num_key_value_heads": groups, "head_dim": geometry.head_dim}


TARGET = Target(
    name="same class",
    layout="native",
    sources=frozenset(),
    becomes=None,
    configure=_configure,
    holds=lambda heads, groups: True,
)
