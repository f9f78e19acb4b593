"""What users of Python work with.

Models, images, attacks and directories of results enter; reports, comparisons and attacked images leave.
"""
