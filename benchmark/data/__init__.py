"""From files to splits.

A data set's name and the files of the user enter; decoded images, the split, and balanced training samples leave.
"""
