"""Templates of the boards."""
