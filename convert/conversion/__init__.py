"""The one loop, and the function that is called."""
