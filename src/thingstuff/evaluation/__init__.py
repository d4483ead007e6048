"""Metrics as accumulators over Segments."""
