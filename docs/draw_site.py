"""Draw docs/site.png: the site's home on a desktop, light, and a tutorial on a phone, dark.

python docs/draw_site.py, after `make site`; needs the extra dev, and a Chromium on PATH.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SITE = HERE.parent / "build" / "site"
HEIGHT = 900
SCREENS = (("index", 1280, "light"), ("tutorial-cluster", 390, "dark"))


def main() -> None:
    """Two first screens side by side, in few colours and so small."""
    sheet = Image.new("RGB", (sum(width for _, width, _ in SCREENS), HEIGHT))
    left = 0
    with sync_playwright() as driver:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        window = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, width, scheme in SCREENS:
            page = window.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
            page.goto(f"file://{SITE / name}.html")
            page.wait_for_timeout(1000)
            sheet.paste(Image.open(io.BytesIO(page.screenshot())), (left, 0))
            left += width
        window.close()
    sheet.quantize(200, kmeans=3, dither=Image.Dither.NONE).save(HERE / "site.png", optimize=True)


if __name__ == "__main__":
    main()
