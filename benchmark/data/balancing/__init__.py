"""Balancers: what is done about unequal class counts before and during training."""
