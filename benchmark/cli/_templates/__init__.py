"""What ``robbench new`` writes: packages enter as files with placeholder names, nothing imports from here.

``my-attack``, ``my_attack`` and ``MyAttack`` are replaced by the names of the new component, and alike for other kinds.
"""
