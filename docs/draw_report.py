"""Draw docs/report.png: the report of a run's folder (demo by default) in a browser, light, two columns.

python docs/draw_report.py [RUN]; needs the extra dev, and a Chromium on PATH.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from beadwork.report.write import report

HERE = Path(__file__).parent
WIDTH = 860
#: px; the browser draws on one texture, which ends at 8192 and goes on with the page's head
PIECE = 4096


def picture(page_file: Path) -> Image.Image:
    """The whole page, once its viewer has drawn."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    options = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=program, args=options)
        page = window.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.set_default_timeout(0)
        page.goto(f"file://{page_file}")
        page.wait_for_function("document.documentElement.dataset.viewer == 'ready'")
        page.wait_for_timeout(3000)
        height = page.evaluate("document.documentElement.scrollHeight")
        sheet = Image.new("RGB", (WIDTH, height))
        for top in range(0, height, PIECE):
            part = {"x": 0, "y": top, "width": WIDTH, "height": min(PIECE, height - top)}
            shot = page.screenshot(full_page=True, clip=part)
            sheet.paste(Image.open(io.BytesIO(shot)), (0, top))
        window.close()
    return sheet


def main(run: Path) -> None:
    """Write the picture, few colours and so small."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.html"
        report(run, target)
        whole = picture(target)
    # between two lines of text: the emptiest row near the middle
    middle = whole.height // 2
    rows = range(middle - 150, middle + 150)
    cut = min(rows, key=lambda y: len(whole.crop((0, y, WIDTH, y + 12)).getcolors(1 << 16) or []))
    sheet = Image.new("RGB", (2 * WIDTH, max(cut, whole.height - cut)), "white")
    sheet.paste(whole.crop((0, 0, WIDTH, cut)), (0, 0))
    sheet.paste(whole.crop((0, cut, WIDTH, whole.height)), (WIDTH, 0))
    sheet.quantize(200, kmeans=3, dither=Image.Dither.NONE).save(HERE / "report.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
