"""Models that others trained: where they come from, and how they become classifiers of images in [0, 1]."""
