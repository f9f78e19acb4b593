"""Executors: where the jobs of a plan are carried out."""
