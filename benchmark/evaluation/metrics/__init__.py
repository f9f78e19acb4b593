"""The metrics, a file each: the figures of one cell, by name, from its outcome alone. Needs no torch.

Every rate carries a 95 % Wilson interval; means over classes and the worst class carry those of
``robbench.evaluation.statistics``. A figure that would rest on no sample is left out. ``name/3`` is the figure
of class 3.
"""
