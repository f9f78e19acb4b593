"""Architectures and objectives."""
