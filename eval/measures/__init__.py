"""What is measured, and of what."""
