"""The sections of the report: pictures, and how to read them. Missing data becomes a message in their place."""

from __future__ import annotations

import time as clock
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.formula import Formula
from numpy.typing import NDArray

from beadwork.digits import with_bar
from beadwork.events import NOVELTY_EDGE, WHOSE
from beadwork.frame import FloatArray
from beadwork.observe.pace import SPREAD_OF_DELTA_ALONE, TIME_PARTS, nanoseconds_per_day
from beadwork.report import figures, panels, quantities, viewer
from beadwork.report.distribution import Distribution
from beadwork.report.radial import MAX_DISTANCE
from beadwork.report.run import RunFolder
from beadwork.report.verdict import steps_asked, steps_done, verdict
from beadwork.report.viewer import Shown

#: frames in the viewer, the most uncertain and the newest; each takes some ten kB of the page
MOST_FRAMES = 300
#: how to read what i-PI printed, by its names
READ = {
    "potential": "The potential energy relative to its value at the first step. It reaches its mean within the first "
    "picoseconds (beads that start in one place spread out first), and then fluctuates about it.",
    "conserved": "The conserved quantity relative to its value at the first step. It belongs to the integrator and the "
    "thermostat, and should stay constant except for a jump at the start. If it rises or falls steadily, the time step "
    "is too long, or the forces are not the derivatives of the energy.",
    "kinetic_md": "The kinetic energy of an atom, from the momenta. It should fluctuate about the dashed line.",
    "Kinetic energy": "The quantum kinetic energy of an atom, the mean over all atoms or over those of one element. "
    "The dashed line is what a classical atom would have; light atoms in stiff bonds have several times as much. With "
    "too few beads it is too low.",
    "Temperature": "From the momenta of all beads. After equilibration it should fluctuate about the dashed line, the "
    "temperature of the thermostat. The fewer atoms, the larger the fluctuations.",
    "Pressure": "The instantaneous pressure of a small box fluctuates by hundreds to thousands of bar; only its "
    "average over a long run says something.",
    "Volume and density": "At constant volume a straight line. At constant pressure it drifts to its mean within some "
    "tens of picoseconds, and then fluctuates about it.",
}
#: sections of what i-PI printed that the page always has, and what to print for each
ALWAYS = {"Energies": "potential{electronvolt}, conserved{electronvolt}", "Temperature": "temperature{kelvin}"}
#: i-PI's ensembles in words
ENSEMBLES = {
    "nve": "NVE, constant energy",
    "nvt": "NVT, constant volume and temperature",
    "npt": "NPT, constant pressure and temperature",
    "nst": "NST, constant stress and temperature",
    "nvt-cc": "NVT, centroid constrained",
    "sc": "NVT, Suzuki-Chin",
    "scnpt": "NPT, Suzuki-Chin",
}
#: what to do about novelty above the edge, by the part of the potential
ASKS = {
    "baseline": "For atoms that are new to the baseline, train the baseline again with labels of its own level of "
    "theory: labels for Δ do not change their novelty.",
    "delta": "For atoms that are new to Δ, label these frames at the high level and train Δ again.",
}
#: how to read the viewer
UNCERTAIN_FIRST = (
    "Left, one point per frame: when it was kept, and its largest force spread. Right, the frame whose point was "
    "clicked; it can be turned with the mouse. On bright atoms the members disagree about the force, on dark ones they "
    "agree; large spheres are heavy atoms. One bright molecule among dark ones is a rare geometry: label this frame. "
    "If all atoms are bright, the committee was not trained on this phase."
)
NEWEST_FIRST = (
    "Left, one point per frame: when it was kept, and its largest novelty; the symbol, where there are two, says why "
    "it was kept. Right, the frame whose point was clicked; it can be turned with the mouse. Bright atoms are the "
    "newest: above 1 on the colour bar, the models were trained on no such atom; large spheres are heavy atoms. The "
    "settings (the three lines above the frame) colour by novelty for the baseline, by novelty for Δ or by the force "
    "spread. For an atom that is bright in novelty and dark in the spread, the members agree without having been "
    "trained on such an atom. If all atoms are above 1, the models were not trained on this phase."
)
NO_PLOTS = "Pictures need matplotlib, which is not installed: <code>pip install matplotlib</code>."


def section(title: str, content: str) -> str:
    """One section of the page; text that is not an HTML element becomes a paragraph."""
    name = title.lower().replace(" ", "-")
    body = content if content.startswith("<") else f"<p>{content}</p>"
    return f'<section id="{name}">\n<h2>{title}</h2>\n{body}\n</section>'


def _figure(svg: str, words: str) -> str:
    return f"<figure>{svg}<figcaption>{words}</figcaption></figure>"


def subtitle(run: RunFolder) -> str:
    """What was simulated, in one line."""
    about = run.about
    facts = []
    if run.composition:  # as `queue list` has it
        facts.append(f"{Formula.from_dict(run.composition):hill} ({sum(run.composition.values())} atoms)")
    if about.get("beads"):
        facts.append(f"{about['beads']} beads")
    if about.get("temperature_K"):
        facts.append(f"{about['temperature_K']:g} K")
    if about.get("time_step_fs"):
        facts.append(f"steps of {about['time_step_fs']:g} fs")
    if not about.get("periodic", True):
        facts.append("not periodic")
    if about.get("started"):
        facts.append(f"started {clock.strftime('%Y-%m-%d %H:%M', clock.localtime(about['started']))}")
    return escape(", ".join(facts)) or "beadwork.out has no settings of the run: an older beadwork wrote it."


def headline(run: RunFolder) -> str:
    """The verdict, tiles of figures, what was asked and what was simulated, and the models with their hashes folded."""
    summary = run.summary
    found = verdict(run)
    told = f"<p>{escape(found.text)}</p>" if found.text else ""
    lines = [
        f'<section id="headline"><div class="verdict {found.colour}"><strong>{escape(found.head)}</strong>{told}</div>'
    ]
    lines += [f"<p>{run.gaps['summary']}</p>"] if "summary" in run.gaps else []
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)} <small>{unit}</small></dd></div>" for name, value, unit in _tiles(run)
    )
    lines.append(f'<dl class="tiles">{cells}</dl>')
    rows = [("", "asked", "done"), *_asked(run)]
    lines.append(_table(rows) if len(rows) > 1 else "")
    for swap in [swap for swap in summary.get("committees", []) if swap["step"] != 0]:
        since = f"evaluation {swap['evaluation']}" if swap["step"] is None else f"step {swap['step'] + run.first}"
        text = f"From {since} on, the committee {swap['committee']} in {swap['folder']} was active."
        lines.append(f"<p>{escape(text)}</p>")
    if unnamed := run.about.get("unnamed_baseline"):
        text = f"The card of {', '.join(map(str, unnamed))} does not say of which baseline it is the difference: "
        lines.append(f'<p class="amber">{escape(text)}nothing but its name tells that it belongs to this one.</p>')
    if models := run.about.get("models"):
        names = ", ".join(Path(path).name for path in models)
        hashes = [("model", "where it was", "hash"), *((Path(path).name, path, str(of)) for path, of in models.items())]
        if simulation := run.about.get("simulation_sha256"):
            hashes.append((str(run.about.get("simulation", "input")), "", f"sha256:{simulation}"))
        lines.append(
            f"<details><summary>Models: {escape(names)} (unfold for files and hashes)</summary>"
            f"{_table(hashes, code=True)}</details>"
        )
    return "\n".join([*filter(None, lines), "</section>"])


def _tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    """Name, value and unit of each."""
    summary, steps, femtoseconds = run.summary, steps_done(run), run.about.get("time_step_fs")
    seconds = summary.get("seconds_per_step")
    tiles = [("steps", f"{steps}", "") if steps is not None else ("evaluations", f"{len(run.record)}", "")]
    if femtoseconds and steps:
        tiles.append(("simulated", f"{steps * femtoseconds / 1000:.4g}", "ps"))
    if seconds:
        if femtoseconds:
            tiles.append(("speed", f"{nanoseconds_per_day(femtoseconds, seconds):.3g}", "ns/day"))
        tiles.append(("time of one step", f"{seconds:.3g}", "s"))
    if (spreads := run.record[:, 4][np.isfinite(run.record[:, 4])]).size:
        tiles.append(("largest force spread", f"{1e3 * spreads.max():.3g}", "meV/Å"))
    if largest := {part: float(np.nanmax(values)) for part, values in run.novelty_of_parts.items()}:
        # the largest of all, with the part that has it: what to do differs between them
        part = max(largest, key=lambda part: largest[part])
        tiles.append(("largest novelty", f"{largest[part]:.2f}", f"for {WHOSE[part]}"))
    tiles.append(("frames kept", f"{summary.get('frames_kept', len(run.kept))}", ""))
    return tiles


def _asked(run: RunFolder) -> list[tuple[str, str, str]]:
    """What the input asks for, and what came of it."""
    about, asked, done = run.about, steps_asked(run), steps_done(run)
    rows = [("steps", "not known" if asked is None else str(asked), "not known" if done is None else str(done))]
    if step := about.get("time_step_fs"):
        times = ["not known" if steps is None else f"{1e-3 * steps * step:.4g} ps" for steps in (asked, done)]
        rows.append((f"time, in steps of {step:g} fs", times[0], times[1]))
    motions = about.get("motions") or []
    if ensemble := ", ".join(ENSEMBLES[name] for name in motions if name in ENSEMBLES):
        rows.append(("ensemble", ensemble, ""))
    for one in quantities.printed(run):
        if one.quantity.name == "temperature" and about.get("temperature_K"):
            rows.append(("temperature", f"{about['temperature_K']:g} K", _mean(one)))
    if about.get("beads"):
        each = run.summary.get("structures_per_bead_step")
        calls = f"{each:.3f} force evaluations per bead and step" if each else ""
        rows.append(("beads", str(about["beads"]), calls))
    return rows


def _mean(one: quantities.Printed) -> str:
    found = quantities.average(one)
    note = f" ({found.note})" if found.note else ""
    value = with_bar(found.mean, found.error) if found.error else f"{found.mean:.6g}"
    return f"{value} {one.unit}{note}"


def _table(rows: Sequence[Sequence[str]], code: bool = False) -> str:
    """A table whose first row is its head; cells are text. code: the last column is of hashes."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = []
    for row in rows[1:]:
        cells = [escape(cell) for cell in row]
        if code:
            cells[-1] = f"<code>{cells[-1]}</code>"
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def printed_sections(run: RunFolder) -> list[str]:
    """Titles of the sections of what i-PI printed: those that are always there, and those for which there are data."""
    there = {one.quantity.section for one in quantities.printed(run)}
    order = dict.fromkeys(quantity.section for quantity in quantities.QUANTITIES)
    return [title for title in order if title in ALWAYS or title in there]


def of_quantities(run: RunFolder, section: str, drawing: bool) -> str:
    """What i-PI printed that belongs into this section: pictures, and averages."""
    if not run.properties:
        return run.gaps["properties"]
    found = panels.of_quantities(run, section)
    if not found:
        return f"i-PI printed none of this; have it print <code>{ALWAYS[section]}</code> among its properties."
    if not drawing:
        return NO_PLOTS
    level = quantities.level(run, section)
    pictures = []
    for panel, group in found:
        words = READ.get(group[0].quantity.name) or READ[section]
        words += "".join(_drift(run, one) for one in group if one.quantity.name == "conserved")
        pictures.append(_figure(_draw(panel, level=level), words))
    return "\n".join(pictures)


def averages(run: RunFolder) -> str:
    """The means of what i-PI printed, with error bars by blocks."""
    rows, notes = [], {}
    for one in quantities.printed(run):
        if one.quantity.name == "conserved":
            continue
        found = quantities.average(one)
        # without a bar six digits: a mean that is not known well is still what is to be compared with
        value, _, bar = (with_bar(found.mean, found.error) if found.error else f"{found.mean:.6g}").partition(" ± ")
        section = "" if one.quantity.section == "Energies" else f"{one.quantity.section.lower()}, "
        label = section + one.label if one.label not in ("volume", "density") else one.label
        rows.append((label, value, bar or found.note, one.unit, str(found.samples)))
        notes[found.note] = quantities.NOTES.get(found.note, "")
    if not rows:
        return run.gaps.get("properties", "i-PI printed no property of the whole system.")
    head = ("mean of", "value", "±", "unit", "values")
    told = "; ".join(f"{note}: {words}" for note, words in notes.items() if note)
    return (
        "<p>Of the second half of the run, since the first may still be equilibration. The error is one standard "
        "deviation of the mean, from some 32 blocks; what the committee adds to it, and averages after a time of your "
        "choice, are in <code>beadwork analyse properties</code>.</p>"
        + _table([head, *rows])
        + (f'<p class="quiet">{told}.</p>' if told else "")
    )


def _draw(panel: panels.Panel, **look: Any) -> str:
    return figures.series(panel.x, panel.x_label, panel.curves, panel.y_label, panel.title, **look)


def _drift(run: RunFolder, one: quantities.Printed) -> str:
    """The drift of the second half of a series, by a straight line through it."""
    if (found := quantities.drift(run, one)) is None:
        return ""
    per = f"{one.unit}/ps" if run.about.get("time_step_fs") else f"{one.unit} per step"
    return (
        f" In the second half of this run it drifted by {found[0]:+.2g} {per}, with a scatter of {found[1]:.2g} "
        f"{one.unit} about the line."
    )


def spread(run: RunFolder) -> str:
    """Force spread with the frames kept, and energy spread."""
    found = panels.spreads(run)
    if not found:
        return "beadwork.out has no spread: the run had no committee of at least two Δ models."
    force, energy = found
    known = np.isfinite(run.record[:, 4])
    kept_for = [row for row in run.kept if "spread" in row.why]
    name = "frames kept" if len(kept_for) == len(run.kept) else "frames kept for it"
    points = (name, *_when_kept(run, force.x, known, kept_for, [1e3 * row.largest for row in kept_for]))
    alone = ""
    if run.about.get("spread_of_delta_alone"):
        # what is said of the first committee need not hold for a later one
        taken_up = any(swap["step"] != 0 for swap in run.summary.get("committees", []))
        which = "With the committee that the run began with, t" if taken_up else "T"
        alone = f" {which}{SPREAD_OF_DELTA_ALONE[1:]}."
    return _figure(
        _draw(force, points=points, from_zero=True),
        "How far the Δ models disagree about the force on the atom where they disagree most, in any bead. A constant "
        "level is the committee's usual uncertainty. A rise means that the run leaves the region where the models were "
        "trained. Single peaks are rare events, which the queue keeps (circles; a circle lies below the curve where "
        f"another bead of its step had a larger spread).{alone}",
    ) + _figure(
        _draw(energy, from_zero=True),
        "How far they disagree about the energy, the mean over the beads. For averages only the changes from step to "
        f"step of the whole system's matter, compared with kT{_thermal_words(run)}: a constant disagreement shifts all "
        "energies alike and changes no average.",
    )


def _when_kept(
    run: RunFolder, x: FloatArray, rows: NDArray[np.bool_], kept: Sequence[Shown], values: Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """The points of kept frames in a picture over the times x of these rows; frames of unknown step are left out."""
    # the unit of time is that of the whole run, not of its last kept frame
    steps = run.record[rows, 0] + run.first
    last = int(np.nanargmax(steps)) if np.isfinite(steps).any() else None
    size = x[last] / steps[last] if last is not None and steps[last] else 1.0
    when = np.array([np.nan if row.step is None else row.step for row in kept], dtype=np.float64)
    at = np.isfinite(when)
    return (when[at] + run.first) * size, np.asarray(values, dtype=np.float64)[at]


def novelty(run: RunFolder, drawing: bool) -> str:
    """The largest novelty over time, for baseline and Δ and by element, and how much of it was above the edge."""
    parts = run.novelty_of_parts
    words = ""
    if new := run.summary.get("novelty"):
        # only for the part that has seen something new
        asked = " ".join(ASKS[part] for part, values in parts.items() if float(np.nanmax(values)) > NOVELTY_EDGE)
        text = (
            f"{new['new_structures']} of {new['structures']} structures have an atom above {NOVELTY_EDGE:g}, the edge "
            f"of training; these are {new['new_atoms']} atoms. {asked}"
        )
        words = f"<p>{escape(text)}</p>"
    if not drawing:
        return f"{words}<p>{NO_PLOTS}</p>"
    over, *by_element = panels.novelties(run)
    kept = [row for row in run.kept if "novelty" in row.why]
    everything = np.ones(len(run.record), dtype=np.bool_)
    look: dict[str, Any] = {
        "level": ("1: the edge of training", NOVELTY_EDGE),
        "decades": max(float(np.nanmax(values)) for values in parts.values()) > figures.LOG_AXIS_ABOVE,
        "from_zero": True,
    }
    points = ("frames kept for it", *_when_kept(run, over.x, everything, kept, [row.newest for row in kept]))
    over_time = _draw(over, points=points, **look)
    pictures = _figure(
        over_time,
        "The novelty of the newest atom in any bead. Below 1 (dashed) the models were trained on atoms like all of "
        "these. Above 1 they were not, and there a small spread does not mean a small error; novelty is no error "
        "either. Above 1 from the first step on: the simulation is of another kind than the training frames. A rise: "
        "it moves away from them. Circles are frames that the queue keeps for their novelty.",
    )
    for panel in by_element:
        pictures += _figure(
            _draw(panel, **look),
            "The same by the element of the atom, the larger one of baseline and Δ. If one element alone is above 1, "
            "look at its bonds in the frames kept.",
        )
    return words + pictures


def _thermal_words(run: RunFolder) -> str:
    kelvin = run.about.get("temperature_K")
    # Boltzmann's constant in meV/K
    return f" ({8.617333e-2 * kelvin:.1f} meV here)" if kelvin else ""


def elements(run: RunFolder) -> str:
    """The force spread of each element."""
    found = panels.elements(run)
    if not found:
        return "beadwork.out has no spread by element: there was no committee, or an older beadwork wrote it."
    return _figure(
        _draw(found[0], from_zero=True),
        "The root mean square over all atoms of an element in all beads. Compare it with the error of the forces on "
        "held-out frames in the models' cards: about the same is normal. If one element rises alone, look at its "
        "surroundings in the frames kept.",
    )


def kept(run: RunFolder) -> tuple[str, list[str]]:
    """The section with the viewer, and the scripts that fill it."""
    if "queue" in run.gaps:
        return run.gaps["queue"], []
    program = viewer.program()
    sure = [row for row in run.kept if not np.isnan(row.largest)]
    known = [row for row in run.kept if not np.isnan(row.newest)]
    uncertain = sorted(sure, key=lambda row: -row.largest)
    newest = sorted(known, key=lambda row: -row.newest)
    # alternately the most uncertain and the newest, so that the limit cuts neither list alone
    ranked = [row for pair in zip_longest(uncertain, newest) for row in pair if row is not None]
    # each once: a frame may be among the most uncertain and the newest
    rows = list({row.row: row for row in ranked or run.kept}.values())[:MOST_FRAMES]
    rows.sort(key=lambda row: row.row)
    words = f"{len(run.kept)} frames"
    if known:
        counts = Counter(" and ".join(row.why) for row in run.kept)
        words += ": " + ", ".join(f"{count} for {escape(why)}" for why, count in counts.items())
    words += "."
    if uncertain:
        atom = int(uncertain[0].force_spread.argmax())
        words += (
            f" The most uncertain is row {uncertain[0].row} of the queue, "
            f"{1e3 * uncertain[0].largest:.3g} meV/Å on atom {_atom(uncertain[0], atom)}."
        )
    if newest:
        part = max(newest[0].novelty, key=lambda part: float(newest[0].novelty[part].max()))
        atom = int(newest[0].novelty[part].argmax())
        words += (
            f" The newest is row {newest[0].row}, of novelty {newest[0].newest:.2f} for {WHOSE[part]} on atom "
            f"{_atom(newest[0], atom)}."
        )
    if len(rows) < len(run.kept):
        which = "most uncertain and newest" if uncertain and newest else "newest" if newest else "most uncertain"
        words += f" The {len(rows)} {which} are shown."
    if program is None:
        return f"{words} The viewer needs chemiscope: <code>pip install chemiscope</code>.", []
    content = f"""<p>{words}</p>
<div id="viewer"><div id="viewer-meta"></div><div class="pair"><div id="viewer-map"></div>
<div id="viewer-structure"></div></div><div id="viewer-info"></div>
<p id="viewer-says">The viewer is starting …</p></div>
<p class="on-paper">The viewer is on the screen only.</p>
<p class="quiet">{NEWEST_FIRST if viewer.by_novelty(rows) else UNCERTAIN_FIRST}</p>"""
    start = f"""
addEventListener("load", () => setTimeout(async () => {{
  const says = document.getElementById("viewer-says");
  try {{
    const warnings = new Chemiscope.Warnings();
    warnings.addHandler((text) => {{ says.textContent = text; }});
    const places = {{ meta: "viewer-meta", map: "viewer-map", structure: "viewer-structure", info: "viewer-info" }};
    await Chemiscope.DefaultVisualizer.load(places, {viewer.data(rows, "frames kept")}, warnings);
    says.textContent = "";
    document.documentElement.dataset.viewer = "ready";
  }} catch (error) {{
    says.textContent = "The viewer cannot start here (does this browser have WebGL?): " + error;
    document.documentElement.dataset.viewer = "failed";
  }}
}}, 100));
"""
    return content, [viewer.inlined(program.read_text(encoding="utf-8")), start]


def _atom(row: Shown, atom: int) -> str:
    """'4 (H)'."""
    return f"{atom} ({chemical_symbols[row.frame.numbers[atom]]})"


def distributions(found: Distribution | str, drawing: bool) -> str:
    """g(r) of all pairs with their error bars, and their peaks in figures."""
    if isinstance(found, str):
        return found
    radial = found.radial
    # 1.3 times the sum of covalent radii: beyond every bond, before the first shell of neighbours
    bonds = {name: 1.3 * sum(_radius(symbol) for symbol in _symbols(name)) for name in radial.pairs}
    caption = (
        "The probability to find two atoms at this distance relative to an ideal gas (dashed: 1), for each bead "
        "separately. The peaks of bonds may be cut off at the top, so that the shells around a molecule can be "
        f"seen; the curves go up to {radial.reach:.3g} Å"
        + (". " if radial.reach >= MAX_DISTANCE else ", half the cell's smallest width. ")
    )
    known = [kind for kind, of in (("committee", found.committee), ("statistical", found.statistical)) if of]
    if known:
        which = "committee's and the statistical error together" if len(known) == 2 else f"{known[0]} error"
        caption += (
            f"The shaded range is the {which}, one standard deviation either way. Where it cannot be seen, it is "
            "thinner than the line."
        )
    drawn = (
        [figures.distribution(panel, bonds[panel.title]) for panel in panels.of_distribution(found)] if drawing else []
    )
    pictures = f'<figure><div class="grid">{"".join(drawn)}</div><figcaption>{caption}</figcaption></figure>'
    return (
        f"<p>{found.source} {found.words}</p>" + (pictures if drawing else f"<p>{NO_PLOTS}</p>") + _peaks(found, bonds)
    )


def _peaks(found: Distribution, bonds: dict[str, float]) -> str:
    """The highest peak beyond the bonds, in figures."""
    rows: list[tuple[str, ...]] = [("pair", "highest beyond a bond (Å)", "g there", "± (committee)", "± (statistical)")]
    for name, values in found.radial.pairs.items():
        mean = values.mean(axis=0)
        beyond = np.flatnonzero(found.radial.distances > bonds[name])
        if not len(beyond):
            continue
        at = int(beyond[mean[beyond].argmax()])
        errors = (f"{of[name][at]:.2g}" if name in of else "not known" for of in (found.committee, found.statistical))
        rows.append((name, f"{found.radial.distances[at]:.2f}", f"{mean[at]:.3f}", *errors))
    return _table(rows)


def time(run: RunFolder, drawing: bool) -> str:
    """The mean step by part, and each evaluation."""
    parts = run.summary.get("seconds_per_step_by_part")
    after = panels.after_start(run)
    if not parts and ("summary" in run.gaps or not after.any()):
        return run.gaps.get("summary", "The run ended before its first step, so there is nothing to time.")
    if not drawing:
        return NO_PLOTS
    ordered = sorted((parts or {}).items(), key=lambda part: -part[1])
    bars = [(TIME_PARTS["idle"][0] if name == "idle" else name, 1e3 * value) for name, value in ordered]
    pictures = "i-PI's steps are not known, so none is timed."
    if parts:
        pictures = _figure(
            figures.bar(bars, "time of one step by part"),
            "The mean of all steps after the start. Each model has its own piece; <i>graph</i> is the neighbour lists, "
            "<i>reduce</i> the committee's mean and spread, <i>pack</i> and <i>send</i> the reply. A large piece of "
            "i-PI says that it waits for something else (its latency, its own outputs) or has much to integrate.",
        )
    for panel in panels.timed(run):
        pictures += _figure(
            _draw(panel, from_zero=True),
            "What each evaluation took. It should be level; steps up say that something else wanted the same cores.",
        )
    return pictures


def _symbols(pair: str) -> list[str]:
    # "OH" is O and H, "HeH" is He and H
    return [pair[:2], pair[2:]] if pair[1:2].islower() else [pair[:1], pair[1:]]


def _radius(symbol: str) -> float:
    return float(covalent_radii[atomic_numbers.get(symbol, 0)])
