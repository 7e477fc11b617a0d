"""How the bundled samples and texts were made."""
