"""What goes out with the weights."""
