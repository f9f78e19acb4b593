"""Where requests are carried out.

A request enters; a store with a record for every cell leaves, and the boards that follow from it.
"""
