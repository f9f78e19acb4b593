"""Print the lowest versions that pyproject.toml declares, a requirement a line, for what users and tests need.

Without torch and torchvision, which are too large to fetch each time.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

BORROWED = ("torch", "torchvision")


def main() -> None:
    """Print them."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    waiting = [*project["dependencies"], *extras["test"]]
    while waiting:
        requirement = waiting.pop(0)
        name, inner, lowest = re.fullmatch(r"([\w-]+)(?:\[(.+)\])?(?:>=([\d.]+))?", requirement).groups()
        if name == project["name"]:
            waiting += [found for extra in inner.split(",") for found in extras[extra]]
        elif name not in BORROWED:
            print(f"{name}=={lowest}")


if __name__ == "__main__":
    main()
