"""The package's version: read by setuptools, written into every converted checkpoint."""

__version__ = "0.1.0"
