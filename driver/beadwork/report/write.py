"""`beadwork report RUN`: one page about a run, from what it left in its folder.

Missing data is replaced by a message. The page is self-contained: opening it loads nothing from a network.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TypeVar

from beadwork.disk import DAMAGE, damage, reading, writing
from beadwork.errors import ConfigError, QueueError
from beadwork.events import WHOSE
from beadwork.harvest.queue import Queue
from beadwork.observe.record import NAME
from beadwork.report import html, panels, sections
from beadwork.report.distribution import distribution
from beadwork.report.run import RunFolder, read_run
from beadwork.report.viewer import Shown

Made = TypeVar("Made")


def report(folder: Path, page: Path | None = None, queue: str | None = None, csv: Path | None = None) -> str:
    """Write the page (report.html in the run's folder by default), and return a message that says where it is.

    queue: where it is not the one that the run names. csv: a file for the curves of the page. Raises ConfigError where
    there is no run, or no page can be written, and QueueError where the queue that was named cannot be read.
    """
    with reading(folder / NAME, ConfigError, "name the folder of another run, or restore the file from a copy"):
        run = read_run(folder)
        kept, gap = _kept(run, queue)
    if gap:
        run.gaps["queue"] = gap
    run = replace(run, kept=kept)
    page = page or folder / "report.html"
    # the whole text before the file is opened, so that a failure leaves the old page
    text = write(run)
    with writing(page):
        page.write_text(text, encoding="utf-8")
    told = ""
    if csv is not None:
        with reading(folder / NAME, ConfigError, "name the folder of another run, or restore the file from a copy"):
            found = distribution(run)
            told = f"\n{panels.write(run, None if isinstance(found, str) else found, csv)} points of its curves: {csv}"
    return f"the run on one page: {page} ({len(text.encode()) / 1e6:.1f} MB, opens in any browser){told}"


def _kept(run: RunFolder, queue: str | None) -> tuple[list[Shown], str]:
    """This run's frames, or a message. A queue that the user named must be readable; the run's own may be gone."""
    named = run.about.get("queue")
    if queue is not None:
        rows = Queue(queue).rows()
    elif named is None:
        return [], "No frames were kept: the run had no <code>--queue</code>."
    elif named == "elsewhere":
        return [], "The frames kept are in a database: name it with <code>--queue URL</code> to see them here."
    else:
        try:
            rows = Queue(run.folder / named).rows()
        except QueueError as error:
            return [], f"The frames kept cannot be shown: {escape(str(error))}."
    mine = [
        Shown(
            row.kept.frame,
            row.id,
            row.kept.step,
            row.kept.force_spread,
            row.kept.energy_spread,
            {part: of for part, of in row.kept.novelty.items() if part in WHOSE},
            row.kept.why,
        )
        for row in rows
        # of this input and since this start: the queue may have frames of an earlier run of the same file
        if row.kept.simulation == f"sha256:{run.about.get('simulation_sha256')}"
        and row.kept.time >= run.about.get("started", 0.0)
    ]
    return mine, "" if mine else f"No frame was kept; the queue holds {len(rows)} of other runs."


def write(run: RunFolder) -> str:
    """The page as text."""
    drawing = importlib.util.find_spec("matplotlib") is not None
    kept, scripts = _whole(lambda: sections.kept(run), lambda said: (said, []))

    # called later: a part that fails must not take the page with it
    def part(title: str, content: Callable[[], str]) -> str:
        return sections.section(title, _whole(content, str))

    found = _whole(lambda: distribution(run), str)
    titles = _whole(lambda: sections.printed_sections(run), lambda said: list(sections.ALWAYS))
    parts = [
        _whole(lambda: sections.headline(run), lambda said: sections.section("headline", said)),
        part("Averages", lambda: sections.averages(run)),
        *(part(title, partial(sections.of_quantities, run, title, drawing)) for title in titles),
        part("Spread of the committee", lambda: sections.spread(run) if drawing else sections.NO_PLOTS),
        part("Spread by element", lambda: sections.elements(run) if drawing else sections.NO_PLOTS),
        *([part("Novelty", lambda: sections.novelty(run, drawing))] if run.novelty_of_parts else []),
        sections.section("Frames kept", kept),
        part("Radial distribution functions", lambda: sections.distributions(found, drawing)),
        part("Where the time goes", lambda: sections.time(run, drawing)),
    ]
    name = str(run.about.get("simulation", run.folder.resolve().name))
    return html.fill(
        title=f"beadwork: {escape(name)}",
        subtitle=_whole(lambda: sections.subtitle(run), str),
        sections=parts,
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M %Z')} from the files of {escape(run.folder.resolve().name)}. "
        "The definitions are in docs/formulas.md of beadwork.",
        scripts=scripts,
    )


def _whole(make: Callable[[], Made], instead: Callable[[str], Made]) -> Made:
    """A part of the page; where the files that it is made of are damaged, a sentence takes its place."""
    try:
        return make()
    except DAMAGE as cause:
        return instead(
            f"What the run left for this part is damaged ({escape(damage(cause))}): see beadwork.out, summary.json and "
            "i-PI's own files."
        )
