"""Memory, predicted before it is taken."""
