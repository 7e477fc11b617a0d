"""Linear algebra that knows no model."""
