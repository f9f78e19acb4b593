"""From a planned model to weights.

A recipe, a loss and training samples enter; weights and a training history leave.
"""
