"""Pages that need nothing else: report.html with sections in it, and pictures in those."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beadwork.disk import write_whole
from beadwork.report import html


def write(file: Path, title: str, subtitle: str, sections: Sequence[str], footer: str) -> None:
    """Write a page whole or not at all. All of it is HTML already."""
    write_whole(file, html.fill(title, subtitle, sections, footer))


def panels(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure (size in inches) and its panels, side by side. Needs matplotlib (extra `plots`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=size, constrained_layout=True)
    return figure, axes


def png(figure: Any, alt: str) -> str:
    """A figure as an element of the page; it is closed."""
    from matplotlib import pyplot

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    pyplot.close(figure)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<figure><img alt="{alt}" style="width:100%" src="data:image/png;base64,{data}"></figure>'
