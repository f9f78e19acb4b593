"""From a request to a plan.

A grid and the user's options enter; models and cells leave, resolved, checked, addressed by key, with their cost.
"""
