"""The sections of the report: pictures, and how to read them. Missing data becomes a message in their place."""

from __future__ import annotations

import re
import time as clock
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ipi.utils.units import unit_to_internal
from numpy.typing import NDArray

from beadwork.events import NOVELTY_EDGE, WHOSE
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import Series, find_positions
from beadwork.observe.pace import SPREAD_OF_DELTA_ALONE, TIME_PARTS, nanoseconds_per_day
from beadwork.report import figures, viewer
from beadwork.report.committee import read_committee
from beadwork.report.radial import MAX_DISTANCE, Radial, deviations, matched, offsets, radial, reweight
from beadwork.report.run import RunFolder
from beadwork.report.viewer import Shown

#: frames in the viewer, the most uncertain and the newest; each takes some ten kB of the page
MOST_FRAMES = 300
#: the output by which i-PI writes bead positions
POSITIONS = (
    "<code>&lt;trajectory stride='20' filename='positions' format='xyz'&gt; positions{angstrom} "
    "&lt;/trajectory&gt;</code>"
)
#: how to read i-PI's energies
ENERGIES = {
    "potential": "The potential energy relative to its value at the first step. It reaches its mean within the first "
    "picoseconds (beads that start in one place spread out first), and then fluctuates about it.",
    "conserved": "The conserved quantity relative to its value at the first step. It belongs to the integrator and the "
    "thermostat, and should stay constant except for a jump at the start. If it rises or falls steadily, the time step "
    "is too long, or the forces are not the derivatives of the energy.",
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
    """The system and its settings, in one line."""
    about = run.about
    facts = []
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
    """Tiles of figures and the table of models."""
    summary, about = run.summary, run.about
    # NaN where i-PI's step is not known
    counted = run.record[np.isfinite(run.record[:, 0]), 0]
    steps = summary.get("steps", int(counted.max()) if len(counted) else None)
    seconds, femtoseconds = summary.get("seconds_per_step"), about.get("time_step_fs")
    # without steps nothing else that is counted in steps can be told
    tiles = [("steps", f"{steps}", "") if steps is not None else ("evaluations", f"{len(run.record)}", "")]
    if femtoseconds and steps:
        tiles.append(("simulated", f"{steps * femtoseconds / 1000:.4g}", "ps"))
    if seconds:
        if femtoseconds:
            tiles.append(("speed", f"{nanoseconds_per_day(femtoseconds, seconds):.3g}", "ns/day"))
        tiles.append(("time of one step", f"{seconds:.3g}", "s"))
    if summary.get("structures_per_bead_step"):
        tiles.append(("force evaluations per bead and step", f"{summary['structures_per_bead_step']:.3f}", ""))
    if (spreads := run.record[:, 4][np.isfinite(run.record[:, 4])]).size:
        tiles.append(("largest force spread", f"{1e3 * spreads.max():.3g}", "meV/Å"))
    if largest := {part: float(np.nanmax(values)) for part, values in run.novelty_of_parts.items()}:
        # the largest of all, with the part that has it: what to do differs between them
        part = max(largest, key=lambda part: largest[part])
        tiles.append(("largest novelty", f"{largest[part]:.2f}", f"for {WHOSE[part]}"))
    tiles.append(("frames kept", f"{summary.get('frames_kept', len(run.kept))}", ""))
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)} <small>{unit}</small></dd></div>" for name, value, unit in tiles
    )
    lines = [f'<section id="headline"><dl class="tiles">{cells}</dl>']
    lines += [f"<p>{run.gaps['summary']}</p>"] if "summary" in run.gaps else []
    if code := summary.get("exit_code"):
        lines.append(
            f"<p><strong>It ended with exit code {escape(str(code))}: {escape(str(summary['why']))}</strong></p>"
        )
    if passed := summary.get("marks_passed"):
        listed = ", ".join(f"{kind} {times}" for kind, times in passed.items())
        lines.append(f"<p>Safety thresholds, and how many structures exceeded them: {escape(listed)}.</p>")
    if about.get("models"):
        rows = "".join(
            f"<tr><td>{escape(Path(path).name)}</td><td><code>{escape(str(digest))}</code></td></tr>"
            for path, digest in about["models"].items()
        )
        lines.append(f'<div class="wide"><table><tr><th>model</th><th>its hash</th></tr>{rows}</table></div>')
    # that of step 0 is in the table of models
    for swap in [swap for swap in summary.get("committees", []) if swap["step"] != 0]:
        since = f"evaluation {swap['evaluation']}" if swap["step"] is None else f"step {swap['step'] + run.first}"
        text = f"From {since} on, the committee {swap['committee']} in {swap['folder']} was active."
        lines.append(f"<p>{escape(text)}</p>")
    return "\n".join([*lines, "</section>"])


def energies(run: RunFolder) -> str:
    """Potential and conserved energy, relative to their start."""
    if not run.properties:
        return run.gaps["properties"]
    names = [name for name in ENERGIES if name in run.properties]
    if not names:
        return "None of i-PI's property files has a <code>potential</code> or <code>conserved</code>."
    pictures = []
    for name in names:
        series = run.properties[name]
        x, label = run.clock(series.steps)
        # from its start on: total energies of hundreds of eV would hide every change
        curve = {name: series.values - series.values[:1]}
        svg = figures.series(x, label, curve, f"{name} energy ({_unit(series.unit)})", f"{name} energy over time")
        drift = _drift(run, series) if name == "conserved" else ""
        pictures.append(_figure(svg, ENERGIES[name] + drift))
    return "\n".join(pictures)


def _drift(run: RunFolder, series: Series) -> str:
    """The drift of the second half of a series, by a straight line through it."""
    # the first half may still contain the equilibration
    half = slice(len(series.values) // 2, None)
    steps, rest, unit = series.steps[half], series.values[half], _unit(series.unit)
    if len(rest) < 4 or steps[-1] == steps[0]:
        return ""
    # a line through all of it: the difference of two points would be that of two fluctuations
    slope, level = np.polyfit(steps, rest, 1)
    scatter = float(np.std(rest - slope * steps - level))
    step = run.about.get("time_step_fs")
    # 1000 fs in a ps
    per = f"{1e3 * slope / step:+.2g} {unit}/ps" if step else f"{slope:+.2g} {unit} per step"
    return (
        f" In the second half of this run it drifted by {per}, with a scatter of {scatter:.2g} {unit} about the line."
    )


def temperature(run: RunFolder) -> str:
    """The temperature of all beads, with that of the thermostat."""
    if not run.properties:
        return run.gaps["properties"]
    if "temperature" not in run.properties:
        return "None of i-PI's property files has a <code>temperature</code>."
    series = run.properties["temperature"]
    x, label = run.clock(series.steps)
    unit, target = series.unit, run.about.get("temperature_K")
    # in another unit the line would stand at a wrong place
    level = ("set", float(target)) if target and unit == "kelvin" else None
    return _figure(
        figures.series(
            x,
            label,
            {"of all beads": series.values},
            f"temperature ({_unit(unit)})",
            "temperature over time",
            level=level,
        ),
        "From the kinetic energy of all beads. After equilibration it should fluctuate about the dashed line, the "
        "temperature of the thermostat. The fewer atoms, the larger the fluctuations.",
    )


def spread(run: RunFolder) -> str:
    """Force spread with the frames kept, and energy spread."""
    known = np.isfinite(run.record[:, 4])
    if not known.any():
        return "beadwork.out has no spread: the run had no committee of at least two Δ models."
    record = run.record[known]
    x, label = run.when(known)
    # frames that were kept for their novelty may have any spread
    kept_for = [row for row in run.kept if "spread" in row.why]
    name = "frames kept" if len(kept_for) == len(run.kept) else "frames kept for it"
    points = (name, *_when_kept(run, x, known, kept_for, [1e3 * row.largest for row in kept_for]))
    force = figures.series(
        x,
        label,
        {"largest of any atom": 1e3 * record[:, 4]},
        "force spread (meV/Å)",
        "force spread over time",
        points=points,
        from_zero=True,
    )
    energy = figures.series(
        x,
        label,
        {"mean over the beads": 1e3 * record[:, 3]},
        "energy spread (meV)",
        "energy spread over time",
        from_zero=True,
    )
    alone = ""
    if run.about.get("spread_of_delta_alone"):
        # what is said of the first committee need not hold for a later one
        taken_up = any(swap["step"] != 0 for swap in run.summary.get("committees", []))
        which = "With the committee that the run began with, t" if taken_up else "T"
        alone = f" {which}{SPREAD_OF_DELTA_ALONE[1:]}."
    return _figure(
        force,
        "How far the Δ models disagree about the force on the atom where they disagree most, in any bead. A constant "
        "level is the committee's usual uncertainty. A rise means that the run leaves the region where the models were "
        "trained. Single peaks are rare events, which the queue keeps (circles; a circle lies below the curve where "
        f"another bead of its step had a larger spread).{alone}",
    ) + _figure(
        energy,
        "How far they disagree about the energy of the whole system, the mean over the beads. For averages only its "
        f"changes from step to step matter, compared with kT{_thermal_words(run)}: a constant disagreement shifts all "
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
    x, label = run.when()
    kept = [row for row in run.kept if "novelty" in row.why]
    everything = np.ones(len(run.record), dtype=np.bool_)
    look: dict[str, Any] = {
        "level": ("1: the edge of training", NOVELTY_EDGE),
        "decades": max(float(np.nanmax(values)) for values in parts.values()) > figures.LOG_AXIS_ABOVE,
        "from_zero": True,
    }
    over_time = figures.series(
        x,
        label,
        {f"for {WHOSE[part]}": values for part, values in parts.items()},
        "largest novelty (no unit)",
        "novelty over time",
        points=("frames kept for it", *_when_kept(run, x, everything, kept, [row.newest for row in kept])),
        **look,
    )
    # beadwork.out has parts and elements in columns of one kind
    elements = {name: values for name, values in run.novelty.items() if name not in WHOSE}
    elements = {name: values for name, values in elements.items() if np.isfinite(values).any()}
    pictures = _figure(
        over_time,
        "The novelty of the newest atom in any bead. Below 1 (dashed) the models were trained on atoms like all of "
        "these. Above 1 they were not, and there a small spread does not mean a small error; novelty is no error "
        "either. Above 1 from the first step on: the simulation is of another kind than the training frames. A rise: "
        "it moves away from them. Circles are frames that the queue keeps for their novelty.",
    )
    if elements:
        by_element = figures.series(
            x, label, elements, "largest novelty (no unit)", "novelty by element over time", **look
        )
        pictures += _figure(
            by_element,
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
    curves = {name: 1e3 * values for name, values in run.elements.items() if np.isfinite(values).any()}
    if not curves:
        return "beadwork.out has no spread by element: there was no committee, or an older beadwork wrote it."
    # on one trunk the spread is known now and then: a line would have gaps and vanish
    known = np.isfinite(next(iter(curves.values())))
    x, label = run.when(known)
    return _figure(
        figures.series(
            x,
            label,
            {name: values[known] for name, values in curves.items()},
            "force spread (meV/Å)",
            "force spread by element over time",
            from_zero=True,
        ),
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


def distributions(run: RunFolder, drawing: bool) -> str:
    """g(r) of all pairs with the committee's error bar, and their peaks in figures."""
    about = run.about
    if not about.get("periodic", True):
        return (
            "The run was not periodic (<code>--not-periodic</code>): there is no volume, and so no density to compare "
            "the numbers of pairs with."
        )
    trajectory = find_positions(run.directory, str(about["outputs"])) if "outputs" in about else None
    found = radial(trajectory) if trajectory is not None else None
    kept = _alike(run.kept)
    errors: dict[str, tuple[FloatArray, FloatArray]] = {}
    if trajectory is not None and found is not None:
        source = f"From i-PI's bead positions: {len(found.steps)} steps of {len(trajectory.files)} beads"
        source += f", every {_ordinal(trajectory.stride)} that was written." if trajectory.stride > 1 else "."
        errors, words = _committee_error(run, found)
    elif (found := radial((one.row, 0, one.frame) for one in kept)) is not None:
        those = "frames kept" if len(kept) == len(run.kept) else f"frames kept of one composition, of {len(run.kept)}"
        source = (
            f"i-PI wrote no bead positions, so this is from the {len(kept)} {those}. They are unusual structures, and "
            f"this is no thermal average. For the average, let i-PI write {POSITIONS}."
        )
        words = ""
    else:
        return f"There are no periodic structures to count pairs in; let i-PI write {POSITIONS}."
    # 1.3 times the sum of covalent radii: beyond every bond, before the first shell of neighbours
    bonds = {name: 1.3 * sum(_radius(symbol) for symbol in _symbols(name)) for name in found.pairs}
    svg = figures.distributions(found, errors, bonds, "radial distribution functions") if drawing else ""
    caption = (
        "The probability to find two atoms at this distance relative to an ideal gas (dashed: 1), for each bead "
        "separately. The peaks of bonds may be cut off at the top, so that the shells around a molecule can be "
        f"seen; the curves go up to {found.reach:.3g} Å"
        + (". " if found.reach >= MAX_DISTANCE else ", half the cell's smallest width. ")
    )
    if errors:
        caption += (
            "The shaded range is one standard deviation over the members of the committee: the curve that each member "
            "alone would give. Where it cannot be seen, it is thinner than the line. The statistical error of a short "
            "run adds to it."
        )
    return (
        f"<p>{source} {words}</p>"
        + (_figure(svg, caption) if drawing else f"<p>{NO_PLOTS}</p>")
        + _peaks(found, errors, bonds)
    )


def _alike(kept: Sequence[Shown]) -> list[Shown]:
    """The frames of the most frequent composition."""
    groups: dict[bytes, list[Shown]] = {}
    for one in kept:
        groups.setdefault(np.sort(one.frame.numbers).tobytes(), []).append(one)
    # g(r) compares with a density, so all structures must be of the same atoms
    return max(groups.values(), key=len, default=[])


def _committee_error(run: RunFolder, found: Radial) -> tuple[dict[str, tuple[FloatArray, FloatArray]], str]:
    """Mean and standard deviation over the members of each pair's g(r), and what there is to say of them."""
    potentials = read_committee(run)
    if isinstance(potentials, str):
        return {}, f"No error bar: {_code(potentials)}."
    thermal = float(unit_to_internal("temperature", "kelvin", run.about["temperature_K"]))
    pair = matched(found, potentials.by_step)
    if pair is None:
        return {}, (
            "No error bar: fewer than two steps have both positions and the members' energies; give both outputs the "
            "same stride."
        )
    rows, energies = pair
    # reweighting by the cumulant expansion holds while the members' energies wander by less than about kT
    wander = float(deviations(energies, thermal).std(axis=0).max())
    errors = {}
    for name, values in found.pairs.items():
        members = reweight(energies, values[rows], thermal)
        errors[name] = members.mean(axis=1), members.std(axis=1, ddof=1)
    words = (
        f"The error bar is the committee's, from {len(rows)} steps and {energies.shape[1]} members, reweighted by the "
        "cumulant expansion as <code>i-pi-committee-reweight</code> does it. From step to step a member's energy "
        f"wanders about the others' by {wander:.2g} kT"
        f" (what they are apart at all times, up to {np.abs(offsets(energies)).max() / thermal:.2g} kT, changes no "
        "average and is left out)"
        + ("; the expansion holds up to about 1." if wander <= 1 else ", and above 1 the expansion does not hold.")
    )
    # i-PI writes eight digits after the point by default, of energies of thousands of eV
    if potentials.resolution > 0.05 * thermal:
        words += (
            f" i-PI wrote these energies to {potentials.resolution / thermal:.2g} kT only: give "
            "<code>&lt;simulation floatformat='%20.12e'&gt;</code> for a bar that is not rounded away."
        )
    return errors, words


def _code(text: str) -> str:
    """Plain words as those of a page, with what stands in backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))


def _peaks(found: Radial, errors: dict[str, tuple[FloatArray, FloatArray]], bonds: dict[str, float]) -> str:
    """The first peak beyond the bonds, in figures."""
    lines = []
    for name, values in found.pairs.items():
        mean = values.mean(axis=0)
        beyond = np.flatnonzero(found.distances > bonds[name])
        # a small cell: its half width ends before the first shell
        if not len(beyond):
            continue
        at = int(beyond[mean[beyond].argmax()])
        error = f"± {errors[name][1][at]:.2g}" if name in errors else "not known"
        lines.append(
            f'<tr><td>{escape(name)}</td><td class="number">{found.distances[at]:.2f}</td>'
            f'<td class="number">{mean[at]:.3f}</td><td class="number">{error}</td></tr>'
        )
    head = (
        '<tr><th>pair</th><th class="number">highest beyond a bond (Å)</th><th class="number">g there (no unit)</th>'
        '<th class="number">committee\'s error (no unit)</th></tr>'
    )
    return f'<div class="wide"><table>{head}{"".join(lines)}</table></div>'


def time(run: RunFolder, drawing: bool) -> str:
    """The mean step by part, and each evaluation."""
    parts = run.summary.get("seconds_per_step_by_part")
    # this way round, so that evaluations of unknown step (NaN) are among them
    after = ~(run.record[:, 0] <= 0)
    after[:1] = False  # whatever its step, it also loads and compiles
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
    if after.sum() > 1:
        table = run.record[after]
        x, label = run.when(after)
        pictures += _figure(
            figures.series(
                x, label, {"evaluation": 1e3 * table[:, 5]}, "evaluation (ms)", "time over the run", from_zero=True
            ),
            "What each evaluation took. It should be level; steps up say that something else wanted the same cores.",
        )
    return pictures


def _unit(name: str) -> str:
    """i-PI's word for a unit as a sign, where there is one."""
    signs = {"electronvolt": "eV", "kelvin": "K", "kilojoule/mol": "kJ/mol", "atomic_unit": "atomic units"}
    return signs.get(name, name)


def _symbols(pair: str) -> list[str]:
    # "OH" is O and H, "HeH" is He and H
    return [pair[:2], pair[2:]] if pair[1:2].islower() else [pair[:1], pair[1:]]


def _radius(symbol: str) -> float:
    return float(covalent_radii[atomic_numbers.get(symbol, 0)])


def _ordinal(number: int) -> str:
    # 11th, 12th, 13th
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
