"""Self-contained HTML pages: report.html as the template, with sections and pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beadwork.disk import write_whole
from beadwork.report import figures, html


def write(file: Path, title: str, subtitle: str, sections: Sequence[str], footer: str) -> None:
    """Write a page, completely or not at all. All arguments are HTML already."""
    write_whole(file, html.fill(title, subtitle, sections, footer))


def panels(count: int) -> tuple[list[Any], list[Any]]:
    """Figures of one panel each, in the page's style; they stand side by side where there is room. Needs matplotlib."""
    pairs = [figures.start(figures.SMALL) for _ in range(count)]
    return [figure for figure, _ in pairs], [panel for _, panel in pairs]


def pictures(drawn: Sequence[Any], alt: str) -> str:
    """The figures as an element of the page, closed."""
    inside = "".join(figures.svg(figure, alt) for figure in drawn)
    return f'<figure><div class="grid">{inside}</div></figure>'
