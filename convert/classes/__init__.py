"""What the installed transformers' classes are and do."""
