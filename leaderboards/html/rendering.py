"""From templates to HTML, with everything escaped that does not come from them."""

from __future__ import annotations

import functools
import importlib.resources
import re
from typing import TYPE_CHECKING, Any

from robbench.core.safe_text import visible
from robbench.leaderboards.markdown import paragraphs, undivided
from robbench.leaderboards.templates import environment

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markupsafe import Markup

_FILES = {"style": "page.css", "page": "page.js", "view": "view.js", "panel": "panel.js"}
_PARTS = re.compile(r"(?<=\w_)(?=\w)")
_BREAKS = re.compile(r"(?<=\S)(?=[\[@+]|->)|(?<=[,_·])(?=\S)")


def render(template: str, **values: Any) -> str:
    """A template of the boards as HTML.

    Args:
        template: Its file name.
        values: What it shows; texts are escaped.
    """
    from markupsafe import Markup

    made = environment(autoescape=True)
    made.filters |= {
        "inline": inline,
        "breaks": breaks,
        "markdown": markdown,
        "paragraphs": paragraphs,
        "visible": visible,
    }
    folder = importlib.resources.files("robbench.leaderboards.templates")
    files = {name: Markup(folder.joinpath(file).read_text(encoding="utf-8")) for name, file in _FILES.items()}
    return made.get_template(template).render(files=files, **values)


def inline(text: str) -> Markup:
    """A line of our markdown as HTML: bold, italics, code and escapes; no links, no images, no HTML but ``<br>``."""
    from markupsafe import Markup

    # What comes from names has its angle brackets escaped, so this is ours.
    made = (_markdown().renderInline(part) for part in undivided(text).split("<br>"))
    # Our tags have no underscores, so that these are of names, which may be long.
    return Markup("<br>").join(Markup(_PARTS.sub("<wbr>", part)) for part in made)


def markdown(text: str) -> Markup:
    """Paragraphs and lists of our markdown as HTML."""
    from markupsafe import Markup

    return Markup(_markdown().render(text))


@functools.cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).disable(["link", "image", "autolink", "html_inline"])


def breaks(text: str) -> Markup:
    """A label that may be broken where its parts meet, since few have spaces."""
    from markupsafe import Markup

    return Markup("<wbr>").join(_BREAKS.split(text))
