"""What every stage shares: components, contracts, threat models, per-sample randomness, errors, atomic files.

Nothing enters; every other stage imports from here.
"""
