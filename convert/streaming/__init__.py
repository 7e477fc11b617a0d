"""The original run block by block."""
