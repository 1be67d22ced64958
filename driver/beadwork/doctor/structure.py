"""The start structure: units and orientation of the cell, distances, periodicity, and the models' cutoff."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import cell_to_cellpar

from beadwork.doctor.finding import AMBER, GREEN, RED, Finding, refused
from beadwork.errors import GeometryError, SimulationError
from beadwork.frame import FloatArray, Frame
from beadwork.ipi.simulation import Simulation, Socket, System
from beadwork.potential.graph import build
from beadwork.units import BOHR

#: the closest distance over the sum of covalent radii lies between these; Å read as Bohr gives 0.5 for a bond of 1.0,
#: and Bohr read as Å gives 1.9
MIN_CONTACT, MAX_CONTACT = 0.65, 1.6


def summary(simulation: Simulation) -> Iterator[Finding]:
    """The simulated system in one line, for the user to check."""
    for system in simulation.systems:
        counts = {z: int((system.numbers == z).sum()) for z in np.unique(system.numbers)}
        formula = "".join(f"{chemical_symbols[z]}{count}" for z, count in counts.items())
        each = f" of {system.timestep:g} fs" if system.timestep else ""
        warm = f", {system.temperature:.4g} K" if system.temperature else ""
        yield Finding(GREEN, "input", f"{formula}, {system.nbeads} beads{warm}, {simulation.steps} steps{each}")


def tilt(simulation: Simulation) -> Iterator[Finding]:
    """i-PI keeps the upper triangle of a cell in the XML, and silently drops the rest."""
    for cell in ElementTree.parse(simulation.path).getroot().iter("cell"):
        words = (cell.text or "").replace("[", " ").replace("]", " ").replace(",", " ").split()
        if cell.get("mode", "manual") == "manual" and len(words) == 9:
            # the nine numbers are the rows of a matrix whose columns are the lattice vectors
            below = [float(words[k]) for k in (3, 6, 7)]
            if any(below):
                yield Finding(
                    RED,
                    "cell",
                    f"the <cell> has {below} below its diagonal, which i-PI drops: its lattice vectors are columns",
                    "write the transpose, with the first vector along x, or <cell mode='abcABC'>",
                    SimulationError.exit_code,
                )


def cell(system: System) -> Iterator[Finding]:
    """Volume, handedness and density."""
    try:
        system.frame().check()
    except GeometryError as error:
        yield refused("cell", error)
        return
    # i-PI takes the determinant as the volume, sign and all
    volume = float(np.linalg.det(system.cell))
    if volume < 0:
        yield Finding(
            RED,
            "cell",
            f"the cell is left-handed (its volume is {volume:.4g} Å^3), so pressure and volume have the wrong sign",
            "turn one lattice vector around",
            GeometryError.exit_code,
        )
        return
    a, b, c, *angles = cell_to_cellpar(system.cell)
    density = float(system.masses.sum()) / volume * 1.66053906660  # dalton/Å^3 in g/cm3
    yield Finding(
        GREEN,
        "cell",
        f"{a:.4g} x {b:.4g} x {c:.4g} Å, {', '.join(f'{angle:.4g}' for angle in angles)} degrees, right-handed; "
        f"{density:.3g} g/cm3",
    )


def contacts(system: System, periodic: bool) -> Iterator[Finding]:
    """The closest atoms compared with their covalent radii, which shows wrong units."""
    frame = system.frame(periodic=periodic)
    units = "name the units beside the numbers: cell{angstrom} positions{angstrom} in an xyz, units='angstrom' in XML"
    try:
        graph = build([frame], 4.0)
    except GeometryError as error:
        yield Finding(RED, "distances", error.what, units, error.exit_code)
        return
    if not len(graph.lengths):
        if len(system.numbers) > 1:
            yield Finding(AMBER, "distances", "no atom has another within 4 Å", f"if that is not meant, {units}")
        return
    radii = covalent_radii[graph.numbers]
    # relative to covalent radii, so that one pair of limits holds for H2 and for iodine
    ratios = graph.lengths / (radii[graph.center] + radii[graph.neighbor])
    edge = int(np.argmin(ratios))
    i, j, ratio = int(graph.center[edge]), int(graph.neighbor[edge]), float(ratios[edge])
    pair = f"{name(frame, i)} and {name(frame, j)} are {graph.lengths[edge]:.3g} Å apart"
    apart = float(np.linalg.norm(frame.positions[j] - frame.positions[i]))
    # the pair is longer within the cell than through its border: positions and cell are of two units
    if ratio < MIN_CONTACT and apart > graph.lengths[edge] + 1e-6:
        yield Finding(
            RED,
            "distances",
            f"{pair} through the border of the cell, {100 * ratio:.0f} % of a bond: it is too small for its atoms",
            f"give the cell in the units of the positions ({units})",
            GeometryError.exit_code,
        )
    elif ratio < MIN_CONTACT:
        yield Finding(
            RED,
            "distances",
            f"{pair}, {100 * ratio:.0f} % of a bond; read as Å they would be {graph.lengths[edge] / BOHR:.3g} Å",
            units,
            GeometryError.exit_code,
        )
    elif ratio > MAX_CONTACT:
        yield Finding(
            AMBER,
            "distances",
            f"the closest atoms, {pair}, are not bonded; read as Bohr they would be {graph.lengths[edge] * BOHR:.3g} Å",
            f"if they should be, {units}",
        )
    else:
        yield Finding(GREEN, "distances", f"the closest atoms, {pair}, {100 * ratio:.0f} % of a bond")


def periodicity(system: System, periodic: bool, sockets: Sequence[Socket], cutoff: float) -> Iterator[Finding]:
    """Whether the cell is filled, against what the user and i-PI say of it. cutoff: Å, of the models."""
    gaps = _gaps(system)
    folded = [socket.name for socket in sockets if socket.pbc]
    if not periodic:
        if folded:
            yield Finding(
                RED,
                "periodicity",
                f"served as not periodic, but i-PI folds the atoms of {folded[0]!r} into the cell: molecules are torn",
                f"take pbc='True' out of <ffsocket name='{folded[0]}'>",
                SimulationError.exit_code,
            )
        # a cluster has vacuum around it on at least one side; atoms everywhere look like a liquid
        elif gaps.max() < cutoff:
            yield Finding(
                AMBER,
                "periodicity",
                f"not periodic, but the atoms fill the cell (no gap above {gaps.max():.2g} Å): a droplet",
                "leave --not-periodic out, unless a droplet is meant",
            )
        else:
            yield Finding(GREEN, "periodicity", "not periodic, as you say; the cell is not looked at")
        return
    # across a gap beyond the cutoff an atom sees no image in that direction
    empty = int((gaps > cutoff).sum())
    if empty == 3:
        yield Finding(
            AMBER,
            "periodicity",
            f"periodic, but no atom sees an image: the cell is empty for {gaps.min():.3g} Å and more each way",
            "a cluster: --not-periodic; a liquid or solid: the cell is too large for its atoms, look at its units",
        )
    elif empty:
        yield Finding(
            GREEN, "periodicity", f"{'a slab' if empty == 1 else 'a wire'}, empty for {gaps.max():.3g} Å across"
        )
    else:
        yield Finding(GREEN, "periodicity", f"periodic and filled: no gap above {gaps.max():.2g} Å")


def _gaps(system: System) -> FloatArray:
    """For each lattice direction, the widest stretch (Å) between lattice planes in which there is no atom; (3,)."""
    # folded into the cell: i-PI lets positions run out of it
    scaled = np.sort((system.positions[0] @ np.linalg.inv(system.cell)) % 1.0, axis=0)
    # the first atom again at the end: the widest gap may reach through the border
    around = np.vstack([scaled, scaled[:1] + 1.0])
    gaps: FloatArray = np.diff(around, axis=0).max(axis=0) * _widths(system)
    return gaps


def _widths(system: System) -> FloatArray:
    """The distances (Å) of opposite faces of the cell; (3,)."""
    # the columns of the inverse are the reciprocal vectors, as long as one over the distance of the faces
    widths: FloatArray = 1.0 / np.linalg.norm(np.linalg.inv(system.cell), axis=0)
    return widths


def cutoff(system: System, periodic: bool, cutoff: float) -> Iterator[Finding]:
    """The models' cutoff (Å) against the cell; a graph holds every image of an atom that is within it."""
    if not periodic:
        return
    width = float(_widths(system).min())
    text = f"the models' cutoff is {cutoff:g} Å, the cell's smallest width {width:.3g} Å"
    if width < cutoff:
        yield Finding(
            AMBER,
            "cutoff",
            f"{text}: every atom sees itself. Each image counts, so the numbers are right, but the system is small",
            "a larger cell, if the liquid and not this crystal is meant",
        )
    elif width < 2 * cutoff:
        yield Finding(GREEN, "cutoff", f"{text}: some pairs are seen twice, through two images, and both count")
    else:
        yield Finding(GREEN, "cutoff", f"{text}: every pair is seen once at most")


def name(frame: Frame, atom: int) -> str:
    """'O12': symbol and number, counted from 0."""
    return f"{chemical_symbols[frame.numbers[atom]]}{atom}"
