"""What text tells of the original."""
