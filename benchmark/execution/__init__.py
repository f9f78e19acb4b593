"""Where a plan is carried out.

A plan enters; a store with a record for every cell leaves.
"""
