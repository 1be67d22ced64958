"""The table and the pictures of the proton, from all the pieces that are there.

    python models/zundel-cc/figures.py models/zundel-cc/runs build/zundel-cc --published FES-md_hiq.bz2 FES-pimd_hiq.bz2

The first folder has what simulate.py kept; the second gets proton.png (F along dc), oxygens.png (F along d_OO),
three tables, notes.md, and CSV files of the curves. Published curves, one bead and 32, are those of the atomistic
cookbook (examples/pi-metad/data); without them the measured ones stand alone. F is in kJ/mol. In table.md it
is 0 where it is lowest, which of a noisy curve is too low; in regions.md it is of the mean p over ranges of dc, and 0
is that of |dc| < 0.1; in the picture of the proton and its CSV files 0 is the mean over |dc| < 0.1, of all curves.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ipi.utils.units import unit_to_internal

from beadwork.analyse.free_energy import Estimate, FreeEnergy, free_energy, read_curve
from beadwork.analyse.picture import draw_free_energy
from beadwork.analyse.series import read_series
from beadwork.analyse.table import notes, too_short
from beadwork.disk import write_csv
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray
from beadwork.units import KJ_MOL

DC, OXYGENS = "dc:O1,O2", "distance:O1,O2"
NAMES = {"classical": "classical", "quantum": "32 beads", "eco": "16 economised beads"}
PLACES = (0.0, 0.2, 0.4, 0.6)
#: of F at these places, and of the averages
DIGITS = (2, 2, 2, 2, 4, 4, 4)
#: where the mean is 0 of curves that are compared; bins of its width, and the middles of those beside it
ZERO = (-0.1, 0.1)
REGIONS, REACH = (0.2, 0.4, 0.6), (-0.7, 0.7)
KELVIN = 300.0
#: of the published metadynamics: one bead, 32
PUBLISHED = ("classical", "quantum")
#: how near the published numbers these were to be: F in kJ/mol at a place of dc, the root mean square of dc, d_OO in Å
AIMED, AIMS = 0.4, (0.6, 0.008, 0.005, 0.003)


def main() -> None:
    """Read, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--published", type=Path, nargs=2, metavar=("CLASSICAL", "QUANTUM"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found, pictured, regions = {}, {}, {}
    said: list[str] = []
    for kind, name in NAMES.items():
        if paths := sorted(options.pieces.glob(f"{kind}-*.csv.gz")):
            series = [read_series(path, [DC, OXYGENS]) for path in paths]
            along = free_energy(series, DC, 51, (-1.02, 1.02), None, PLACES, symmetric=True)
            apart = free_energy(series, OXYGENS, 50, (2.2, 2.8))
            found[kind] = along, apart
            try:
                pictured[kind] = free_energy(series, DC, 51, (-1.02, 1.02), ZERO, [AIMED], symmetric=True)
                regions[kind] = free_energy(series, DC, 7, REACH, ZERO, REGIONS, symmetric=True).at
            except ConfigError as error:  # a short run
                said.append(f"{name}: in the picture F is 0 where it is lowest: {error.what}")
                pictured[kind] = along
            said += [f"{name}: {note}" for note in cautions(along, apart)]
            picoseconds = sum(np.ptp(one.steps) * (one.time_step or 0.0) / 1000 for one in series)
            print(f"{name}: {len(paths)} pieces, {picoseconds:.1f} ps")
    if not found:
        raise SystemExit(f"{options.pieces} has no pieces")
    published = {}
    for kind, path in zip(PUBLISHED, options.published or (), strict=False):
        published[kind] = (
            read_curve(path, KELVIN, "dc", symmetric=True),
            read_curve(path, KELVIN, "doo", scale=10),
        )
    told = "".join(f"- {note}\n" for note in said)
    written = {
        "table": table(found, published),
        "differences": differences(found, published, {kind: curve.at[AIMED] for kind, curve in pictured.items()}),
        "regions": regional(regions, published),
        "notes": told,
    }
    for name, text in written.items():
        (options.out / f"{name}.md").write_text(text, encoding="utf-8")
        print(text)
    elsewhere = {kind: (_from_middle(*dc), apart) for kind, (dc, apart) in published.items()}
    drawn = {kind: (pictured[kind], apart) for kind, (_, apart) in found.items()}
    for number, (name, label) in enumerate([("proton", "Δc of the proton"), ("oxygens", "d(OO) (Å)")]):
        curves = {f"published, {NAMES[kind]}": both[number] for kind, both in elsewhere.items()}
        measured = {NAMES[kind]: both[number] for kind, both in drawn.items() if kind in PUBLISHED}
        draw_free_energy(options.out / f"{name}.png", measured, label, curves)
        for kind, both in drawn.items():
            _write(options.out / f"{name}-{kind}.csv", both[number], label)


def cautions(along: FreeEnergy, apart: FreeEnergy) -> list[str]:
    """What `beadwork analyse` says of such curves, a sentence each."""
    slow = too_short({"the root mean square of dc": along.dependence, "the mean of d_OO": apart.dependence})
    return [*notes(along.gap, max(along.wander, apart.wander)), *slow]


def table(
    found: Mapping[str, tuple[FreeEnergy, FreeEnergy]],
    published: Mapping[str, tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]],
) -> str:
    """Measured and published numbers; error bars are one standard deviation, statistical and committee's."""
    head = ["", *(f"F({place:g})" for place in PLACES), "rms dc", "mean d_OO, Å", "sd d_OO, Å", "independent frames"]
    rows = [head, ["---"] * len(head)]
    for kind, name in NAMES.items():
        if kind in published:
            numbers = zip(_published(*published[kind]), DIGITS, strict=True)
            rows.append([f"{name}, published", *(f"{one:.{digits}f}" for one, digits in numbers), ""])
        if kind in found:
            along, apart = found[kind]
            cells = [_bars(*one) for one in zip(_measured(along, apart), DIGITS, strict=True)]
            rows.append([name, *cells, f"{along.independent:.0f} of dc, {apart.independent:.0f} of d_OO"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def differences(
    found: Mapping[str, tuple[FreeEnergy, FreeEnergy]],
    published: Mapping[str, tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]],
    middle: Mapping[str, Estimate],
) -> str:
    """Measured less published, and economised less ordinary beads, of which the committee is one and has no say.

    middle: F at the place with the mean over |dc| < 0.1 as 0, which no bin that happens to lie low can shift.
    """
    names = [f"F({AIMED:g}), kJ/mol", f"F({AIMED:g}) from the middle", "rms dc", "mean d_OO, Å", "sd d_OO, Å"]
    rows = [["", *names], ["---"] * 6, ["aimed at, at most", str(AIMS[0]), *map(str, AIMS)]]
    measured = {}
    for kind, both in found.items():
        lowest, *others = _measured(*both, [AIMED])
        measured[kind] = [lowest, middle[kind], *others]
    for kind, curves in published.items():
        if kind in measured:
            lowest, *others = _published(*curves, [AIMED])
            there = zip(
                measured[kind], [lowest, float(np.interp(AIMED, *_from_middle(*curves[0]))), *others], strict=True
            )
            pairs = [(one.value - other, one.both) for one, other in there]
            rows.append([f"{NAMES[kind]} − published", *_apart(pairs)])
    if "eco" in measured and "quantum" in measured:
        both = zip(measured["eco"], measured["quantum"], strict=True)
        pairs = [(one.value - other.value, float(np.hypot(one.statistical, other.statistical))) for one, other in both]
        rows.append([f"{NAMES['eco']} − {NAMES['quantum']}", *_apart(pairs)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _apart(pairs: Sequence[tuple[float, float]]) -> list[str]:
    return [
        f"{value:+.{digits}f} ± {bar:.{digits}f}" if np.isfinite(value) else "not reached"
        for (value, bar), digits in zip(pairs, DIGITS[2:], strict=True)
    ]


def regional(
    found: Mapping[str, Mapping[float, Estimate]],
    published: Mapping[str, tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]],
) -> str:
    """F of ranges of |dc|, -kT ln of the mean p in each, against that of |dc| < 0.1."""
    kt = float(unit_to_internal("temperature", "kelvin", KELVIN)) * KJ_MOL
    head = ["F of", *(f"{place - 0.1:.1f} < \\|dc\\| < {place + 0.1:.1f}" for place in REGIONS)]
    rows = [head, ["---"] * len(head)]
    for kind, name in NAMES.items():
        if kind in published:
            x, energy = published[kind][0]
            # trapezoids of the curve's own grid are too coarse at the ends of a range
            means = [
                np.exp(-np.interp(np.linspace(place - 0.1, place + 0.1, 401), x, energy) / kt).mean()
                for place in (0.0, *REGIONS)
            ]
            rows.append([f"{name}, published", *(f"{-kt * np.log(one / means[0]):.2f}" for one in means[1:])])
        if kind in found:
            rows.append([name, *(_bars(found[kind][place], 2) for place in REGIONS)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _from_middle(x: FloatArray, energy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A curve less its mean over the range that is to be 0."""
    return x, energy - energy[(ZERO[0] <= x) & (x <= ZERO[1])].mean()


def _published(
    dc: tuple[FloatArray, FloatArray], oxygens: tuple[FloatArray, FloatArray], places: Sequence[float] = PLACES
) -> list[float]:
    """F at the places, root mean square of dc, mean and standard deviation of d_OO, of two curves."""
    kt = float(unit_to_internal("temperature", "kelvin", KELVIN)) * KJ_MOL
    x, energy = dc
    of_dc = [float(np.interp(place, x, energy)) for place in places]
    weight = np.exp(-energy / kt)
    of_dc.append(float(np.sqrt((weight * x**2).sum() / weight.sum())))
    x, energy = oxygens
    weight = np.exp(-energy / kt)
    mean = float((weight * x).sum() / weight.sum())
    return [*of_dc, mean, float(np.sqrt((weight * (x - mean) ** 2).sum() / weight.sum()))]


def _measured(along: FreeEnergy, apart: FreeEnergy, places: Sequence[float] = PLACES) -> list[Estimate]:
    """The same of two measured ones."""
    of_dc = [*(along.at[place] for place in places), along.averages["root mean square"]]
    return of_dc + [apart.averages[what] for what in ("mean", "standard deviation")]


def _bars(one: Estimate, digits: int) -> str:
    if np.isnan(one.value):
        return "not reached"
    committee = "" if one.committee is None else f", {one.committee:.{digits}f}"
    return f"{one.value:.{digits}f} ± {one.both:.{digits}f} ({one.statistical:.{digits}f}{committee})"


def _write(path: Path, found: FreeEnergy, label: str) -> None:
    committee = [None] * len(found.x) if found.committee is None else found.committee.tolist()
    columns = {label: found.x.tolist(), "F (kJ/mol)": found.energy.tolist()}
    columns |= {"statistical (kJ/mol)": found.statistical.tolist(), "committee (kJ/mol)": committee}
    write_csv(path, columns)


if __name__ == "__main__":
    main()
