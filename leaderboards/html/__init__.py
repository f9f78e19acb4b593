"""Boards as pages: one file each that opens without a network, every number of it leading to its record."""

from __future__ import annotations

from robbench.leaderboards.html.index import IndexEntry, ProvedTable, folder_link, index_page
from robbench.leaderboards.html.page import page

__all__ = ["IndexEntry", "ProvedTable", "folder_link", "index_page", "page"]
