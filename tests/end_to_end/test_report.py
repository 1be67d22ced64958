"""The report of a real run, read as numbers and opened in a real browser."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.cli import main
from beadwork.harvest.queue import Queue
from beadwork.ipi.outputs import find_positions, read_potentials
from beadwork.observe.record import read_record
from beadwork.report.run import read_run

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "water-revpbe0-d3"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def add_outputs(run: Any) -> None:
    """Let i-PI write what the error bar needs."""
    wanted = (
        "<trajectory stride='1' filename='pos' format='xyz' cell_units='angstrom'> positions{angstrom} </trajectory>"
        "<trajectory stride='1' filename='pot' extra_type='committee_pot'> extras </trajectory>"
    )
    run.path.write_text(run.path.read_text().replace("<checkpoint", wanted + "<checkpoint", 1))


def test_what_is_reported_is_what_was_kept(ipi: Any, models: Any, start: Any, tmp_path: Path) -> None:
    """Every frame of a one-bead run is kept: spreads by element, positions and members' energies are the queue's."""
    folder = tmp_path / "run"
    run = ipi.Input(folder, [ipi.Forcefield(latency=1e-3)], steps=3, beads=1).write()
    add_outputs(run)
    keep = ["--queue", "q.db", "--keep-force", "0", "9", "--cooldown", "0", "--distance", "0"]
    process = start.beadwork("run", run, "--baseline", models.baseline, "--delta", *models.delta, *keep)
    assert process.wait(ipi.PATIENCE) == 0, start.log(process)
    assert f"beadwork report {folder.resolve()}" in start.log(process)
    rows = Queue(folder / "q.db").rows()
    assert len(rows) == 4
    record, spread, _ = read_record(folder / "beadwork.out")
    files = read_run(folder).files  # by the names that the record has
    assert files.names
    trajectory = find_positions(files)
    potentials = read_potentials(files)
    assert trajectory is not None
    assert potentials is not None
    where = {step: frame for step, _, frame in trajectory}
    for row in rows:
        step, kept = row.kept.step, row.kept
        assert step is not None
        at = int(np.flatnonzero(record[:, 0] == step)[0])
        for number, symbol in ((8, "O"), (1, "H")):
            of_it = kept.force_spread[kept.frame.numbers == number]
            assert spread[symbol][at] == pytest.approx(np.sqrt(np.mean(of_it**2)), rel=1e-5)
        assert record[at, 4] == pytest.approx(kept.force_spread.max(), rel=1e-5)
        assert np.abs(where[step].positions - kept.frame.positions).max() < 2e-4
        theirs = potentials.by_step[step]
        ours = kept.member_energies / 27.211386
        assert np.allclose(theirs - theirs.mean(), ours - ours.mean(), atol=2e-7)
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "4 frames. The most uncertain" in text
    assert "from 4 steps and 3 members" in text


def browser() -> str | None:
    """A Chromium of this machine."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_page_in_a_browser(ipi: Any, start: Any, tmp_path: Path) -> None:
    """The shipped input, ten steps: the page loads from a file with nothing asked of anyone, no error in the console,
    every section seen, the viewer's canvases drawn; dark and on paper too.
    """
    program = browser()
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    from PIL import Image

    folder = tmp_path / "water"
    shutil.copytree(ROOT / "inputs" / "water", folder)
    xml = (folder / "input.xml").read_text().replace("<simulation ", f"<simulation sockets_prefix='{tmp_path}/s-' ", 1)
    (folder / "input.xml").write_text(re.sub(r"<total_steps>\d+", "<total_steps>10", xml))
    members = [MODELS / f"delta-{k}" for k in range(4)]
    keep = ["--queue", "q.db", "--keep-force", "0.001", "0.5", "--cooldown", "1"]
    command = [ipi.BIN / "beadwork", "run", "input.xml", "--baseline", MODELS / "baseline", "--delta", *members, *keep]
    process = start("beadwork", *command, cwd=folder)
    assert process.wait(600) == 0, start.log(process)
    assert main(["report", str(folder)]) == 0
    asked, said = [], []
    with playwright.sync_playwright() as driver:
        # a machine without a GPU draws in software
        options = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
        window = driver.chromium.launch(executable_path=program, args=options)
        page = window.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
        page.set_default_timeout(300_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append((message.type, message.text)))
        page.on("pageerror", lambda error: said.append(("error", str(error))))
        page.goto(f"file://{folder}/report.html")
        page.wait_for_function("document.documentElement.dataset.viewer")
        assert page.evaluate("document.documentElement.dataset.viewer") == "ready", page.inner_text("#viewer-says")
        assert asked == [f"file://{folder}/report.html"]
        assert [words for kind, words in said if kind in ("error", "warning")] == []
        for section in page.query_selector_all("section"):
            box = section.bounding_box()
            assert section.is_visible()
            assert box["height"] > 60, section.get_attribute("id")
            assert box["x"] + box["width"] <= 1100
        for figure in page.query_selector_all("figure svg"):
            assert figure.bounding_box()["height"] > 100
        for canvas in ("#viewer-structure", "#viewer-map"):
            picture = Image.open(io.BytesIO(page.locator(canvas).screenshot())).convert("RGB")
            colours = picture.getcolors(maxcolors=1 << 20)
            assert colours is not None
            assert len(colours) > 100, f"{canvas} is blank"
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        assert page.evaluate("getComputedStyle(document.querySelector('figure svg')).color") == "rgb(230, 234, 238)"
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
        assert not page.is_visible("#viewer")
        assert page.is_visible(".on-paper")
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 420, "height": 900})
        page.wait_for_function("document.documentElement.scrollWidth <= 420")  # the viewer follows after a moment
        window.close()
