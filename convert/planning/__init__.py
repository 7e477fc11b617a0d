"""What will be done, checked from headers."""
