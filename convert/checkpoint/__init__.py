"""Bytes on disk, and names in them."""
