"""report.html filled in: pages that ask for nothing from anywhere, and run no script but those that they came with."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from string import Template


def fill(title: str, subtitle: str, sections: Sequence[str], footer: str, scripts: Sequence[str] = ()) -> str:
    """A page. All of it is HTML already, but for the scripts, which the page's policy names by their hash."""
    template = Template((Path(__file__).with_name("report.html")).read_text(encoding="utf-8"))
    return template.substitute(
        title=title,
        policy=" ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'",
        subtitle=subtitle,
        sections="\n".join(sections),
        footer=footer,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
