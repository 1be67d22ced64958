"""The generations of a loop side by side, on one page that can be opened anywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from beadwork.digits import with_bar
from beadwork.errors import LabelError
from beadwork.loop.loop import NEW_TO_BASELINE, Generation, Loop, committee_of, errors_of, generations, unseen
from beadwork.report import page
from beadwork.train.dataset import DATASET, Dataset
from beadwork.train.validate import PAGE as VALIDATION

PAGE = "generations.html"


def write_page(loop: Loop) -> Path:
    """Write generations.html into the loop's folder and return its path. Pictures need matplotlib.

    The committees of all generations are measured on one and the same set of frames: those that the last dataset holds
    out and that no earlier committee has learned from.
    """
    # a generation whose simulations go on has no rate yet
    done = [g for g in generations(loop.folder) if "simulate" in g.stages]
    if not done:
        raise LabelError(f"{loop.folder} holds no generation that has come to an end of its simulations")
    committees = [committee_of(loop, number) for number in range(len(done))]
    trained = [folder for folder in committees if (folder / DATASET).exists()]
    # one set for all: errors on different frames cannot be compared, and what one has learned would flatter it
    testing = unseen(Dataset.read(trained[-1]).testing, committees) if trained else []
    # the newest reference energies for all: those of the first committee may be of another program
    errors = [errors_of(folder, testing, trained[-1]) if testing else {} for folder in committees]
    end = done[-1].stages.get("end", {}).get("reason", "it goes on: give the command again")
    sections = [
        _table(loop, done, errors),
        f"<p>Flagged: fraction of the steps at which the largest force spread of some bead reached {loop.low:g} eV/Å, "
        f"or an atom's novelty for Δ reached {loop.new:g}. Errors: root mean square over {len(testing)} frames on "
        "which no committee here was trained, with standard errors; before the first training they include the offset "
        "of the old committee's reference energies.</p>",
        _picture(done, errors),
        "<h2>The simulations</h2>",
        _runs(done),
        "<h3>The largest novelty (1: the edge of training)</h3>",
        _novelty(done),
        "<h2>Where it all comes from</h2>",
        _origin(done),
    ]
    file = loop.folder / PAGE
    subtitle = f"{len(done)} generations; ended because {escape(str(end))}"
    page.write(file, "Generations side by side", subtitle, sections, f"<code>{escape(loop.folder.name)}</code>")
    return file


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is a name; cells are HTML already."""
    lines = [("th", header), *(("td", row) for row in rows)]
    kinds = ("", *[' class="number"'] * (len(header) - 1))
    cells = "".join(
        f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for tag, row in lines
    )
    return f'<div class="wide"><table>{cells}</table></div>'


def _table(loop: Loop, done: Sequence[Generation], errors: Sequence[dict[str, Any]]) -> str:
    header = ("generation", "learned from", "flagged", "frames kept", "new labels", "energy error<br>meV/atom")
    rows = []
    for generation, error in zip(done, errors, strict=True):
        stages = generation.stages
        kept = sum(len(run["kept"]) for run in stages["simulate"]["runs"].values())
        # a generation is served by what the one before it has trained
        before = done[done.index(generation) - 1].stages.get("train") if generation is not done[0] else None
        rows.append(
            (
                generation.folder.name,
                f"{before['frames']} frames" if before else "the start",
                f"{100 * generation.flagged:.1f} %",
                str(kept),
                str(len(stages.get("label", {}).get("labelled", []))),
                _bar(error.get("energy")),
                _bar(error.get("force")),
            )
        )
    return _rows((*header, "force error<br>meV/Å"), rows)


def _bar(value: Sequence[float] | None) -> str:
    return with_bar(value[0], value[1]) if value else ""


def _runs(done: Sequence[Generation]) -> str:
    names = list(done[0].stages["simulate"]["runs"])
    rows = []
    for generation in done:
        runs = generation.stages["simulate"]["runs"]
        cells = [
            f"{run['flagged']} of {run['steps']} steps, {len(run['kept'])} kept" for run in map(runs.__getitem__, names)
        ]
        rows.append((generation.folder.name, *cells))
    return _rows(("generation", *map(escape, names)), rows)


def _novelty(done: Sequence[Generation]) -> str:
    """Of each simulation, for Δ and for the baseline, and what the baseline's asks for."""
    names = list(done[0].stages["simulate"]["runs"])
    parts = {"delta": "Δ", "baseline": "the baseline"}
    rows, wanted = [], False
    for generation in done:
        runs = generation.stages["simulate"]["runs"]
        cells = []
        for run in map(runs.__getitem__, names):
            for part in parts:
                about = (run.get("novelty") or {}).get(part)  # of an earlier release: none
                wanted |= bool(part == "baseline" and about and about["new"])
                cells.append(f"{about['largest']:.2f}, {about['new']} steps above 1" if about else "unknown")
        rows.append((generation.folder.name, *cells))
    header = [f"{escape(name)}, for {part}" for name in names for part in parts.values()]
    return _rows(("generation", *header), rows) + (f"<p>{NEW_TO_BASELINE}.</p>" if wanted else "")


def _origin(done: Sequence[Generation]) -> str:
    rows = []
    for generation in done:
        begin = generation.stages["begin"]
        link = escape(f"{generation.folder.name}/{VALIDATION}")
        # the last generation measures, and trains nothing
        there = (generation.folder / VALIDATION).exists()
        rows.append(
            (
                generation.folder.name,
                f"<code>{escape(begin['hash'][:19])}</code>",
                f"<code>{escape(str(begin['dataset'] or 'unknown')[:19])}</code>",
                f'<a href="{link}">of what it trained</a>' if there else "",
                escape(str(generation.stages.get("validate", {}).get("calibration") or "")),
            )
        )
    return _rows(("generation", "committee that served", "its dataset", "validation", "calibration"), rows)


def _picture(done: Sequence[Generation], errors: Sequence[dict[str, Any]]) -> str:
    """Flagged rate and errors against the generation; a sentence where it cannot be drawn."""
    # the page has all numbers without it; matplotlib is an extra
    if importlib.util.find_spec("matplotlib") is None:
        return "<p>The picture needs matplotlib, which is not installed: <code>pip install matplotlib</code>.</p>"
    drawn, panels = page.panels(3)
    where = list(range(len(done)))
    runs = {name: [g.stages["simulate"]["runs"][name] for g in done] for name in done[0].stages["simulate"]["runs"]}
    for name, several in runs.items():
        # no step whose spread is known: nothing was flagged
        rates = [100 * run["flagged"] / max(1, run["steps"]) for run in several]
        panels[0].plot(where, rates, "o-", ms=4, lw=1, label=name)
    panels[0].set_ylabel("steps flagged (%)")
    panels[0].legend(frameon=False, fontsize=8)
    for panel, key, name in (
        (panels[1], "force", "force error (meV/Å)"),
        (panels[2], "energy", "energy error (meV/atom)"),
    ):
        points = [(x, *error[key]) for x, error in zip(where, errors, strict=True) if error.get(key)]
        panel.set_ylabel(name)
        if points:
            x, value, bar = zip(*points, strict=True)
            panel.errorbar(x, value, yerr=bar, fmt="o-", ms=4, lw=1, capsize=2)
    for panel in panels:
        panel.set_xlabel("generation")
        panel.set_xticks(where)
        # from 0, so that a small change does not look like a large one
        panel.set_ylim(bottom=0)
    return page.pictures(drawn, "flagged rate and errors")
