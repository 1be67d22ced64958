"""The start structure: something deliberately wrong for each red and amber, and a green one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from beadwork.doctor import structure
from beadwork.doctor.finding import AMBER, GREEN, RED, Finding
from beadwork.doctor.report import doctor, examine
from beadwork.errors import GeometryError
from beadwork.frame import Frame
from beadwork.ipi.simulation import read_simulation
from support.doctor import MONOMER, WATER, config, only
from support.doctor import input_writer as input_writer

UNITS = "cell{angstrom} positions{angstrom}"


def structure_of(path: Path, **settings: object) -> list[Finding]:
    """What is said of the structure, and whether the models were asked at all."""
    simulation = read_simulation(path)
    system = simulation.systems[0]
    asked = config(path, **settings)
    return [
        *structure.tilt(simulation),
        *structure.cell(system),
        *structure.contacts(system, asked.periodic),
        *structure.periodicity(system, asked.periodic, simulation.sockets, 4.5),
        *structure.cutoff(system, asked.periodic, 4.5),
    ]


@pytest.mark.parametrize(
    ("start", "colour", "said"),
    [
        (WATER.replace(UNITS, ""), RED, "read as Å they would be 0.968 Å"),
        (WATER.replace(UNITS, "cell{atomic_unit} positions{angstrom}"), RED, "closer than 0.2 Å"),
        (MONOMER.format("9 9 9").replace("positions{angstrom}", ""), RED, "read as Å they would be 0.9"),
        (
            "2\n# CELL(abcABC): 9 9 9 90 90 90 cell{angstrom} positions{angstrom}\nO 1 1 1\nH 2.83 1 1\n",
            AMBER,
            "are not bonded; read as Bohr they would be 0.968 Å",
        ),
        (
            "2\n# CELL(abcABC): 40 40 40 90 90 90 cell{angstrom} positions{angstrom}\nAr 1 1 1\nAr 9 9 9\n",
            AMBER,
            "no atom has another within 4 Å",
        ),
        (WATER, GREEN, "0.968 Å apart, 100 % of a bond"),
    ],
)
def test_units_show_in_the_distances(write: Callable[..., Path], start: str, colour: str, said: str) -> None:
    """Å read as Bohr, the cell alone read so, Bohr read as Å: each is found, and the line to change is named."""
    finding = only(structure_of(write(start=start)), "distances")
    assert finding.colour == colour
    assert said in finding.text
    assert ("angstrom" in finding.remedy) == (colour != GREEN)
    assert finding.code == (GeometryError.exit_code if colour == RED else 0)


def test_red_structures_stop_the_models(write: Callable[..., Path]) -> None:
    """No model is loaded for a structure that is nonsense."""
    found = list(examine(config(write(start=WATER.replace(UNITS, "")), baseline="not there")))
    assert not {"models", "forces"} & {finding.topic for finding in found}
    assert doctor(config(write(start=WATER.replace(UNITS, "")))) == GeometryError.exit_code


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("[-10, 0, 0, 0, 11, 0, 0, 0, 12]", "left-handed (its volume is -1320 Å^3)"),
        ("[10, 0, 0, 3, 11, 0, 0, 0, 12]", "[3.0, 0.0, 0.0] below its diagonal, which i-PI drops"),
        ("[10, 0, 0, 0, 11, 0, 0, 0, 1e-9]", "no volume in its periodic directions"),
    ],
)
def test_left_handed_transposed_and_flat_cells_are_red(write: Callable[..., Path], cell: str, said: str) -> None:
    """Left-handed, transposed (i-PI drops what is below the diagonal) and flat cells are red."""
    path = write(start=MONOMER.format("10 11 12"), cell=f"<cell mode='manual' units='angstrom'>{cell}</cell>")
    red = [finding for finding in examine(config(path, baseline="not there")) if finding.colour == RED]
    assert said in red[0].text
    assert red[0].topic == "cell"
    assert red[0].remedy


def test_a_tiny_cell_is_red(write: Callable[..., Path]) -> None:
    """Molecules that overlap with their own images."""
    finding = only(structure_of(write(start=MONOMER.format("1.4 9 9"))), "distances")
    assert finding.colour == RED
    assert "through the border of the cell" in finding.text


@pytest.mark.parametrize(
    ("start", "settings", "mode", "colour", "said"),
    [
        (MONOMER.format("30 30 30"), {}, "", AMBER, "no atom sees an image"),
        (MONOMER.format("3 3 30"), {}, "", GREEN, "a slab, empty for 30 Å across"),
        (WATER, {}, "", GREEN, "periodic and filled"),
        (WATER, {"periodic": False}, "", AMBER, "not periodic, but the atoms fill the cell"),
        (MONOMER.format("30 30 30"), {"periodic": False}, "", GREEN, "as you say"),
        (MONOMER.format("30 30 30"), {"periodic": False}, "pbc='True'", RED, "molecules are torn"),
    ],
)
def test_a_periodicity_that_does_not_fit_the_structure_is_said(
    write: Callable[..., Path], start: str, settings: Mapping[str, object], mode: str, colour: str, said: str
) -> None:
    """A cluster called periodic, a liquid called a cluster, a cluster that i-PI folds; and what is right."""
    finding = only(structure_of(write(start=start, mode=f"mode='unix' {mode}"), **settings), "periodicity")
    assert finding.colour == colour
    assert said in finding.text
    assert bool(finding.remedy) == (colour != GREEN)


def test_gaps_and_widths_of_a_tilted_cell(write: Callable[..., Path]) -> None:
    """In a hexagonal cell a width is not an edge, and atoms outside of the cell are taken back in."""
    start = MONOMER.format("8 8 20").replace("90 90 90", "90 90 60").replace("O 1 1 1", "O 1 1 41")
    system = read_simulation(write(start=start)).systems[0]
    high = 8 * np.sqrt(3) / 2
    np.testing.assert_allclose(structure._widths(system), [high, high, 20.0])
    # along c all atoms lie in one plane, or two planes 0 Å apart
    assert structure._gaps(system)[2] == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("edge", "colour", "said"),
    [(4.0, AMBER, "every atom sees itself"), (8.0, GREEN, "seen twice"), (9.5, GREEN, "once at most")],
)
def test_images_within_the_cutoff_are_counted_as_the_graph_does(
    write: Callable[..., Path], edge: float, colour: str, said: str
) -> None:
    """What is said of the images is what the graph does: the pairs it holds are counted."""
    from beadwork.potential.graph import build

    path = write(start=MONOMER.format(f"{edge} {edge} {edge}"))
    finding = only(structure_of(path), "cutoff")
    assert finding.colour == colour
    assert said in finding.text
    rng = np.random.default_rng(0)
    cell = edge * np.eye(3)
    frame = Frame(np.full(60, 1), rng.uniform(0, edge, (60, 3)), cell)
    try:
        graph = build([frame], 4.5)
    except GeometryError:  # atoms on top of each other, with this seed
        pytest.fail("another seed")
    pairs = graph.center * 60 + graph.neighbor
    once = len(np.unique(pairs)) == len(pairs)
    itself = bool((graph.center == graph.neighbor).any())
    assert (itself, once) == {4.0: (True, False), 8.0: (False, False), 9.5: (False, True)}[edge]
