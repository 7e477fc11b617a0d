"""What is kept, told and drawn of it."""
