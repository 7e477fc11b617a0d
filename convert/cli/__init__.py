"""The command line: the only room that knows conversion, healing and measuring."""

from convert_attn.convert.cli.commands import main

__all__ = ["main"]
