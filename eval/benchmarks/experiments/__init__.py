"""Measurements of the experimental targets."""
