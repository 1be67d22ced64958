"""Self-contained HTML pages: report.html as the template, with sections and pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beadwork.disk import write_whole
from beadwork.report import html


def write(file: Path, title: str, subtitle: str, sections: Sequence[str], footer: str) -> None:
    """Write a page, completely or not at all. All arguments are HTML already."""
    write_whole(file, html.fill(title, subtitle, sections, footer))


def panels(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure (size in inches) and its panels, side by side. Needs matplotlib ."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=size, constrained_layout=True)
    return figure, axes


def png(figure: Any, alt: str) -> str:
    """Embed a figure as an element of the page, and close it."""
    from matplotlib import pyplot

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    pyplot.close(figure)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<figure><img alt="{alt}" style="width:100%" src="data:image/png;base64,{data}"></figure>'
