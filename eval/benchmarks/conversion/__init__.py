"""Time, processor time and memory of whole conversions, beside copying the same bytes."""
