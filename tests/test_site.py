"""The documentation as a site: every page in it, no dead link, no network."""

from __future__ import annotations

import re
import shutil
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` makes it; a dead link, a heading that is missing and a docstring that Sphinx cannot read
    are warnings, which end it."""
    pytest.importorskip("sphinx", reason="pip install 'sphinx>=8,<10' 'myst-parser>=4,<6' furo")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_is_built_without_a_warning(site: Path) -> None:
    """Every page of docs is a page of it, and none loads anything from elsewhere."""
    assert {page.stem for page in DOCS.glob("*.md")} - {"README"} <= {page.stem for page in site.glob("*.html")}
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, (page.name, loaded)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_a_screen(site: Path, width: int, scheme: str) -> None:
    """In a browser, on a desk and on a phone: no page is wider than the screen, fails in its scripts or asks for
    anything but files. What is too wide (a table, a line of code) is pushed within its own frame."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if (program := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("there is no Chromium")
    wrong: list[tuple[str, str]] = []
    with api.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = window.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, is_mobile=width < 600, device_scale_factor=1
        )
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: wrong.append((page.url, str(error))))
        page.on(
            "request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append((page.url, asked.url))
        )
        for file in sorted(site.glob("*.html")):
            page.goto(f"file://{file}")
            if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
                wrong.append((file.name, f"{wide} px wide"))
        window.close()
    assert not wrong
