"""Decoding over fewer K/V heads and over a latent, against all heads and against transformers' own functions."""
