"""Bounds from below: radii within which no change alters a prediction, a method a file.

A model with images and their predictions enters; a proved radius for each image leaves. Interval and linear bounds can
be differentiated, for training towards certificates.
"""
