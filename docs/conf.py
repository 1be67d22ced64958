"""Sphinx's settings for `make site`: the pages of this folder, without network and without a warning."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from sphinx.util import logging

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "beadwork"
author = copyright = "the beadwork authors"
release = importlib.metadata.version("beadwork")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
# README.md is the list of pages for who reads the repository; index.md has it here
exclude_patterns = ["README.md", "schemas"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"beadwork {release}"
html_copy_source = False
html_show_sphinx = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"


def _leads_outside(match: re.Match[str]) -> str:
    text, target = match.groups()
    path = (DOCS / target.partition("#")[0]).resolve()
    if not path.exists():
        logging.getLogger(__name__).warning("there is no %s, to which a page links", target)
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else target
    return text if where in text else f"{text} (`{where}`)"


def _read(app: Any, name: str, source: list[str]) -> None:
    """Links out of this folder lead nowhere on a site: say where the file is in the repository, if it is there."""
    source[0] = re.sub(r"\[([^\]]+)\]\(((?:\.\./|schemas)[^)]*)\)", _leads_outside, source[0])


def _plain(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text: |F| is a length there, and no name of a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _plain)
