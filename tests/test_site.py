"""The documentation as a site: every page in it, no dead link, no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_site() -> None:
    """A page that index.md does not list would be reached from nowhere."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted(listed) == sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in ("README", "index"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    """As `make site` does; a dead link, a heading that is missing and a docstring that Sphinx cannot read are warnings.
    The pages load nothing from elsewhere."""
    pytest.importorskip("sphinx", reason="pip install 'sphinx>=8,<10' 'myst-parser>=4,<6' furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, (page.name, loaded)
