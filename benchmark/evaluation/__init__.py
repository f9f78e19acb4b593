"""From a trained model and a condition to an outcome that can be trusted.

Models and test images enter; outcomes, metrics, statistics and audit flags leave.
"""
