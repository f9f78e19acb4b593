"""Templates of the boards."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@functools.cache
def environment(autoescape: bool) -> Environment:
    """How the templates are read: names that are not given are errors, lines of tags leave no trace."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("robbench.leaderboards", "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
