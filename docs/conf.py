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
# some ten names: docs/python.md is their index
html_use_index = html_domain_indices = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"


def _leads_outside(match: re.Match[str]) -> str:
    text, target = match.groups()
    path = (DOCS / target.partition("#")[0]).resolve()
    if not path.exists():
        logging.getLogger(__name__).warning("there is no %s, to which a page links", target)
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else target
    if where in text:
        return text
    return f"`{where}`" if where.endswith(text.strip("`/")) else f"{text} (`{where}`)"


def _read(app: Any, name: str, source: list[str]) -> None:
    """Links out of this folder lead nowhere on a site: say where the file is in the repository, if it is there."""
    text = re.sub(r"\[([^\]]+)\]\(((?:\.\./|schemas)[^)]*)\)", _leads_outside, source[0])
    # the repository's reader looks for a file, the site's for a page: without a text a link has the title of its page
    source[0] = re.sub(r"\[[\w-]+\.md\]\(", "[](", text)


def _plain(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text: |F| is a length there, and no name of a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _plain)
