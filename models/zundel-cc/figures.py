"""The table and the pictures of the proton, from all the pieces that are there.

    python models/zundel-cc/figures.py models/zundel-cc/runs build/zundel-cc --published FES-md_hiq.bz2 FES-pimd_hiq.bz2

The first folder has what simulate.py kept; the second gets proton.png (F along dc), oxygens.png (F along d_OO),
table.md, and CSV files of the curves. Published curves, one bead and 32, are those of the atomistic cookbook
(examples/pi-metad/data); without them the measured ones stand alone. F is in kJ/mol and 0 where it is lowest.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ipi.utils.units import unit_to_internal

from beadwork.analyse.free_energy import Estimate, FreeEnergy, free_energy, read_curve
from beadwork.analyse.picture import draw_free_energy
from beadwork.analyse.series import read_series
from beadwork.analyse.table import write_csv
from beadwork.frame import FloatArray
from beadwork.units import KJ_MOL

DC, OXYGENS = "dc:O1,O2", "distance:O1,O2"
NAMES = {"classical": "classical", "quantum": "32 beads", "eco": "16 economised beads"}
PLACES = (0.0, 0.2, 0.4, 0.6)
KELVIN = 300.0
#: of the published metadynamics: one bead, 32
PUBLISHED = ("classical", "quantum")


def main() -> None:
    """Read, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--published", type=Path, nargs=2, metavar=("CLASSICAL", "QUANTUM"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in NAMES:
        if paths := sorted(options.pieces.glob(f"{kind}-*.csv.gz")):
            series = [read_series(path, [DC, OXYGENS]) for path in paths]
            along = free_energy(series, DC, 51, (-1.02, 1.02), None, PLACES, symmetric=True)
            apart = free_energy(series, OXYGENS, 50, (2.2, 2.8))
            found[kind] = along, apart
            picoseconds = sum(np.ptp(one.steps) * (one.time_step or 0.0) / 1000 for one in series)
            print(f"{NAMES[kind]}: {len(paths)} pieces, {picoseconds:.1f} ps")
    if not found:
        raise SystemExit(f"{options.pieces} has no pieces")
    published = {}
    for kind, path in zip(PUBLISHED, options.published or (), strict=False):
        published[kind] = (
            read_curve(path, KELVIN, "dc", symmetric=True),
            read_curve(path, KELVIN, "doo", scale=10),
        )
    text = table(found, published)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    for number, (name, label) in enumerate([("proton", "Δc of the proton"), ("oxygens", "d(OO) (Å)")]):
        curves = {f"published, {NAMES[kind]}": both[number] for kind, both in published.items()}
        measured = {NAMES[kind]: both[number] for kind, both in found.items() if kind in PUBLISHED}
        draw_free_energy(options.out / f"{name}.png", measured, label, curves)
        for kind, both in found.items():
            _write(options.out / f"{name}-{kind}.csv", both[number], label)


def table(
    found: Mapping[str, tuple[FreeEnergy, FreeEnergy]],
    published: Mapping[str, tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]],
) -> str:
    """Measured and published numbers; error bars are one standard deviation, statistical and committee's."""
    head = ["", *(f"F({place:g})" for place in PLACES), "rms dc", "mean d_OO, Å", "sd d_OO, Å", "independent frames"]
    rows = [head, ["---"] * len(head)]
    for kind, name in NAMES.items():
        if kind in published:
            rows.append([f"{name}, published", *_published(*published[kind]), ""])
        if kind in found:
            along, apart = found[kind]
            cells = [_bars(along.at[place], 2) for place in PLACES]
            cells += [_bars(along.averages["root mean square"], 4)]
            cells += [_bars(apart.averages[what], 4) for what in ("mean", "standard deviation")]
            rows.append([name, *cells, f"{along.independent:.0f} of dc, {apart.independent:.0f} of d_OO"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _published(dc: tuple[FloatArray, FloatArray], oxygens: tuple[FloatArray, FloatArray]) -> list[str]:
    """The same numbers of two curves."""
    kt = float(unit_to_internal("temperature", "kelvin", KELVIN)) * KJ_MOL
    x, energy = dc
    cells = [f"{np.interp(place, x, energy):.2f}" for place in PLACES]
    weight = np.exp(-energy / kt)
    cells.append(f"{np.sqrt((weight * x**2).sum() / weight.sum()):.4f}")
    x, energy = oxygens
    weight = np.exp(-energy / kt)
    mean = (weight * x).sum() / weight.sum()
    return [*cells, f"{mean:.4f}", f"{np.sqrt((weight * (x - mean) ** 2).sum() / weight.sum()):.4f}"]


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
