"""Looking without converting."""
