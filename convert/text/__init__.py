"""Text as documents and as windows of tokens."""
