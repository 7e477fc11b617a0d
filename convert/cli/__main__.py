"""`python -m convert_attn.convert.cli`, for `accelerate launch -m`."""

from convert_attn.convert.cli import main

main()
