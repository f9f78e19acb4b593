"""Metrics: pure functions of a cell's outcome."""
