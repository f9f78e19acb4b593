"""The ``robbench`` command.

Words of a shell enter; text in a terminal and an exit status leave.
"""
