"""What is kept of a run: records, outcomes, the store, and published boards.

Outcomes and records enter; verified files leave.
"""
