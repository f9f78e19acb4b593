"""Boards: from records and outcomes to tables."""

from __future__ import annotations

from robbench.leaderboards.board import Board
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.files import write_board, write_files
from robbench.leaderboards.summary import summary_rows

__all__ = ["Board", "board_data", "summary_rows", "write_board", "write_files"]
