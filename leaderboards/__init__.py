"""Boards: from records and outcomes to tables."""
