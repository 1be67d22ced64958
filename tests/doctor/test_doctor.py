"""The doctor sees what is wrong: for each red and amber something deliberately broken, and a green one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from beadwork.cli import main
from beadwork.config import LimitSettings, SelectionSettings, ServeConfig
from beadwork.doctor import machine, models, structure
from beadwork.doctor.finding import AMBER, GREEN, RED, Finding
from beadwork.doctor.report import doctor, examine
from beadwork.errors import GeometryError, ModelError, ResourceError, SimulationError
from beadwork.frame import Frame
from beadwork.ipi.simulation import read_simulation
from beadwork.potential import load as loading
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import amend_card, load_card
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph
from beadwork.potential.potential import Potential
from beadwork.potential.torchscript import TorchScriptEngine

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "water-revpbe0-d3"
WATER = (ROOT / "inputs" / "water" / "init.xyz").read_text()
#: water in a tetrahedron's angle, in its own words
MONOMER = "3\n# CELL(abcABC): {} 90 90 90 cell{{angstrom}} positions{{angstrom}}\nO 1 1 1\nH 1.96 1 1\nH 0.76 1.93 1\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write an i-PI input of its own address, two beads, and its start structure; return the XML's path."""

    def call(
        start: str = WATER,
        socket: str = "<batch_size>2</batch_size><latency>1e-3</latency>",
        mode: str = "mode='unix'",
        address: str = "water",
        cell: str = "",
        steps: int = 100,
        output: str = "",
        step: str = "",
    ) -> Path:
        (tmp_path / "init.xyz").write_text(start)
        path = tmp_path / "input.xml"
        path.write_text(
            f"<simulation sockets_prefix='{tmp_path}/s-'><output prefix='run'>{output}</output>{step}"
            f"<total_steps>{steps}</total_steps>"
            f"<ffsocket name='beadwork' {mode}><address>{address}</address>{socket}</ffsocket>"
            f"<system><initialize nbeads='2'><file mode='xyz'>init.xyz</file>{cell}</initialize>"
            "<forces><force forcefield='beadwork'/></forces><motion mode='dynamics'><dynamics mode='nve'>"
            "<timestep units='femtosecond'>0.5</timestep></dynamics></motion></system></simulation>"
        )
        return path

    return call


def config(simulation: Path, **settings: object) -> ServeConfig:
    """The shipped baseline alone, unless more is said."""
    return replace(
        ServeConfig(simulation=str(simulation), baseline=str(MODELS / "baseline"), engine="torchscript"), **settings
    )  # type: ignore[arg-type]


def only(findings: Iterator[Finding] | list[Finding], topic: str = "") -> Finding:
    """The one finding of a topic."""
    found = [finding for finding in findings if topic in ("", finding.topic)]
    assert len(found) == 1, found
    return found[0]


def colours(findings: Iterator[Finding]) -> list[str]:
    """The colours alone."""
    return [finding.colour for finding in findings]


# ---- a whole visit


def test_the_shipped_models_are_well(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baseline, two Δ models and the shipped water, everything looked at: all green, exit code 0, plain words."""
    monkeypatch.setattr(machine, "BUSY_FRACTION", 0.0)  # what else runs here is no matter
    path = write(address="well")
    options = ["--baseline", MODELS / "baseline", "--delta", MODELS / "delta-0", MODELS / "delta-1", "--alpha", "1"]
    code = main(["doctor", str(path), *map(str, options), "--keep-force", "0.01", "0.5"])
    said = capsys.readouterr().out
    lines = said.splitlines()
    seen = {line.split()[1]: line.split()[0] for line in lines[:-1]}
    topics = "input cell distances periodicity cutoff elements time memory models spread novelty forces virial engines"
    assert seen == dict.fromkeys([*topics.split(), "precision", "i-PI", "address", "disk"], GREEN)
    assert lines[-1] == f"{len(lines) - 1} green, 0 amber, 0 red: it can be started"
    assert code == 0
    assert "\033" not in said
    assert "H64O32, 2 beads" in said
    # 9.86 Å and 32 waters of 18.015 dalton
    assert float(re.search(r"([\d.]+) g/cm3", said)[1]) == pytest.approx(0.998, abs=0.003)  # type: ignore[index]
    assert "native agrees with torchscript for 3 models" in said
    assert "the spread is that of Δ alone: the baseline's error against its own reference is not in it" in said


def test_a_refusal_of_the_server_is_the_doctors_too(write: Callable[..., Path], tmp_path: Path) -> None:
    """An element that no model knows is red with ModelError's code, and the rest is looked at all the same."""
    path = write(start=WATER.replace("O ", "N ", 1))
    found = list(examine(config(path)))
    models_found = only(found, "models")
    assert (models_found.colour, models_found.code) == (RED, ModelError.exit_code)
    assert "has N (atomic number 7)" in models_found.text
    assert models_found.remedy.startswith("use models trained with N")
    assert {"i-PI", "address", "disk"} <= {finding.topic for finding in found}
    assert doctor(config(path)) == ModelError.exit_code


def test_no_input_is_all_there_is_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there: SimulationError's code, and no traceback."""
    assert main(["doctor", str(tmp_path / "no.xml"), "--baseline", "x"]) == SimulationError.exit_code
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("red    input       cannot read the i-PI input")
    assert said[-1] == "0 green, 0 amber, 1 red: do not start it like this"


def test_damaged_models_are_red(write: Callable[..., Path], tmp_path: Path) -> None:
    """A truncated model file: the hash in its card says so."""
    bundle = tmp_path / "damaged"
    shutil.copytree(MODELS / "baseline", bundle)
    os.truncate(bundle / "model.pt", 1000)
    found = only(list(examine(config(write(), baseline=str(bundle)))), "models")
    assert (found.colour, found.code) == (RED, ModelError.exit_code)
    assert "truncated or changed" in found.text


def test_colours_on_a_terminal_alone() -> None:
    """Colours are for terminals; files get the word, and a remedy stands below its finding."""
    from beadwork.doctor.report import line

    finding = Finding(AMBER, "i-PI", "it is slow", "set this")
    assert line(finding, False) == "amber  i-PI        it is slow\n                   -> set this"
    assert line(finding, True).startswith("\033[33mamber ")
    long = replace(finding, text="word " * 30)
    folded = line(long, width=60).splitlines()
    assert max(map(len, folded)) <= 60
    assert " ".join(" ".join(folded).split()) == " ".join(line(long).split())


# ---- the structure


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


# ---- the models


class Broken:
    """An engine whose forces or virials are not quite what its energy says."""

    def __init__(self, engine: object, forces: Callable[[np.ndarray], np.ndarray], virial: float = 1.0) -> None:
        self._engine, self._forces, self._virial = engine, forces, virial
        self.name, self.cutoff, self.elements = "broken", engine.cutoff, engine.elements  # type: ignore[attr-defined]

    def evaluate(self, graph: Graph) -> Energies:
        answer = self._engine.evaluate(graph)  # type: ignore[attr-defined]
        return Energies(answer.energies, self._forces(answer.forces.copy()), self._virial * answer.virials)


def one_wrong(forces: np.ndarray) -> np.ndarray:
    """The last atom's force is off by a hundredth."""
    forces[-1] *= 1.01
    return forces


SOME = Frame(
    np.array([8, 1, 1, 8, 1, 1]), np.random.default_rng(5).uniform(-3, 3, (6, 3)), np.eye(3) * 20, (False,) * 3
)


@pytest.mark.parametrize(
    ("forces", "virial", "expected"),
    [
        (lambda f: f, 1.0, [GREEN, GREEN]),
        (lambda f: 1.001 * f, 1.0, [RED, GREEN]),
        (one_wrong, 1.0, [RED, GREEN]),
        (lambda f: f, 1.01, [GREEN, RED]),
        (lambda f: f, -1.0, [GREEN, RED]),
    ],
)
def test_forces_and_virial_are_held_against_the_energy(
    forces: Callable[[np.ndarray], np.ndarray], virial: float, expected: list[str]
) -> None:
    """A spring is true to its energy; a force off by a thousandth, one atom's alone, a virial's sign are found."""
    potential = Potential(Broken(Harmonic(2.0), forces, virial))
    found = list(models.derivatives(potential, SOME))
    assert colours(iter(found)) == expected
    assert {finding.code for finding in found if finding.colour == RED} <= {ModelError.exit_code}


def test_derivatives_of_a_periodic_model() -> None:
    """The shipped baseline in a tilted cell: forces and virial are its energy's to 1e-6; broken ones are not."""
    engine = TorchScriptEngine(MODELS / "baseline")
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid([0, 3.1], [0, 3.1], [0, 3.1], indexing="ij"), axis=-1).reshape(-1, 3)
    cell = np.array([[6.2, 0, 0], [0.7, 6.2, 0], [0.3, -0.5, 6.2]])
    frame = Frame(np.array([8, 1, 1, 8, 1, 1, 8, 1]), grid + rng.normal(0, 0.2, (8, 3)), cell)
    found = list(models.derivatives(Potential(engine), frame))
    assert colours(iter(found)) == [GREEN, GREEN]
    assert max(float(finding.text.split()[0]) for finding in found) < 1e-6
    assert colours(models.derivatives(Potential(Broken(engine, one_wrong)), frame)) == [RED, GREEN]


def test_a_broken_engine_in_a_whole_visit(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is slipped in where the doctor opens its models is found out."""
    real = loading.open_engine
    monkeypatch.setattr(loading, "open_engine", lambda *a: Broken(real(*a), lambda f: 1.002 * f))
    found = list(examine(config(write(start=MONOMER.format("7 7 7")))))
    assert only(found, "forces").colour == RED
    assert only(found, "virial").colour == GREEN


def bundle(tmp_path: Path, source: str, name: str, **about: object) -> str:
    """A copy of a shipped bundle with more in its card."""
    shutil.copytree(MODELS / source, tmp_path / name)
    amend_card(tmp_path / name, **about)
    return str(tmp_path / name)


def together(tmp_path: Path, delta: list[str], engines: list[Harmonic], offset: float = 0.0) -> list[Finding]:
    """What is said of the shipped baseline's card with these, where springs stand for the models."""
    cards = [load_card(MODELS / "baseline"), *(load_card(path) for path in delta)]
    base = Harmonic(2.0)
    potential = Potential(base, engines)
    answer = potential.evaluate([SOME])
    assert answer.delta is not None
    if offset:
        answer = replace(answer, delta=replace(answer.delta, energies=answer.delta.energies + offset))
    return list(models.together(cards, 1.0, potential, answer))


def test_models_made_for_each_other(tmp_path: Path) -> None:
    """Small differences are fine, and that the cards of the shipped members name their baseline is said."""
    deltas = [str(MODELS / "delta-0"), str(MODELS / "delta-1")]
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    found = only(together(tmp_path, deltas, small))
    assert found.colour == GREEN
    assert found.text.endswith(", and made for this baseline")


def test_a_card_that_names_no_baseline_is_amber(tmp_path: Path) -> None:
    """Nothing tells whose difference it is: amber, with the very line that would say it of this baseline."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    unnamed = bundle(tmp_path, "delta-1", "d1")
    card = Path(unnamed) / "card.toml"
    card.write_text("".join(line for line in card.read_text().splitlines(True) if not line.startswith("baseline = ")))
    fits, said = together(tmp_path, [str(MODELS / "delta-0"), unnamed], small)
    assert (fits.colour, said.colour) == (GREEN, AMBER)
    assert "made for this baseline" not in fits.text
    assert said.text.startswith(f"the card of {unnamed} does not say of which baseline it is the difference")
    card.write_text(
        card.read_text().replace("\n\n", f"\n{said.remedy.partition('write ')[2].partition(' below')[0]}\n\n", 1)
    )
    assert only(together(tmp_path, [str(MODELS / "delta-0"), unnamed], small)).colour == GREEN


def test_a_delta_worse_than_its_baseline_is_amber(tmp_path: Path) -> None:
    """By the errors in its committee.toml, where that is about these members."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    members = [bundle(tmp_path, f"delta-{k}", f"delta-{k}") for k in (0, 1)]
    (tmp_path / "committee.toml").write_text(
        'members = ["delta-0", "delta-1"]\n[held_out]\nframes = 2\nenergy_rmse_meV_per_atom = [351.0, 8.0]\n'
        "baseline_energy_rmse_meV_per_atom = [91.0, 12.0]\n"
    )
    fits, said = together(tmp_path, members, small)
    assert (fits.colour, said.colour) == (GREEN, AMBER)
    assert said.text.startswith("in energies this Δ is worse than its baseline alone: on 2 frames")
    assert said.remedy.startswith("label more frames")
    assert only(together(tmp_path, members[:1], small[:1])).colour == GREEN


def test_models_not_made_for_each_other(tmp_path: Path) -> None:
    """The baseline itself as Δ, whole models, foreign reference energies. Another baseline is refused by `load`."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    twice = together(tmp_path, [str(MODELS / "baseline"), str(MODELS / "delta-1")], small)
    assert only(twice).colour == RED
    assert "are the same model" in only(twice).text
    deltas = [str(MODELS / "delta-0"), str(MODELS / "delta-1")]
    whole = together(tmp_path, deltas, [Harmonic(2.1), Harmonic(1.9)])
    assert only(whole).colour == RED
    assert "whole models, no differences" in only(whole).text
    assert only(together(tmp_path, deltas, small, offset=-1e4)).colour == AMBER


def test_members_of_different_zero(tmp_path: Path) -> None:
    """Two members that agree about forces, but whose energies lie far apart."""

    class Raised(Harmonic):
        def evaluate(self, graph: Graph) -> Energies:
            answer = super().evaluate(graph)
            return replace(answer, energies=answer.energies + 5.0)

    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    found = only(
        together(
            tmp_path,
            [str(MODELS / "delta-0"), str(MODELS / "delta-1")],
            [Harmonic(0.1, sites), Raised(0.1, sites)],
        )
    )
    assert found.colour == AMBER
    assert "0.83 eV/atom apart" in found.text


def test_an_uncalibrated_spread_is_amber(tmp_path: Path) -> None:
    """Without alpha from the card or the user the spread is only a number."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    potential = Potential(Harmonic(2.0), [Harmonic(0.1, sites), Harmonic(0.101, sites)])
    cards = [load_card(MODELS / name) for name in ("baseline", "delta-0", "delta-1")]
    found = list(models.together(cards, None, potential, potential.evaluate([SOME])))
    assert colours(iter(found)) == [GREEN, AMBER]
    assert "--alpha" in found[1].remedy


@pytest.mark.parametrize(
    ("keep_force", "colour"), [([10.0], GREEN), ([0.001, 10.0], AMBER), ([0.0001, 0.001], AMBER), ([], GREEN)]
)
def test_spread_at_the_start(keep_force: list[float], colour: str) -> None:
    """Below, in and above the band, as the queue will see it."""
    potential = Potential(None, [Harmonic(2.0), Harmonic(2.1)])
    answer = potential.evaluate([SOME])
    assert answer.spread is not None
    assert 0.001 < answer.spread.largest[0] < 10.0
    finding = only(models.spread(answer, SelectionSettings(keep_force=keep_force), LimitSettings()))
    assert (finding.colour, finding.code) == (colour, 0)


def test_a_native_engine_that_disagrees_is_red_or_amber(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native that disagrees is red where it was asked for and amber where it is only left out; so is none at all."""
    card = load_card(MODELS / "delta-0")
    frame = read_simulation(ROOT / "inputs" / "water" / "input.xml").systems[0].frame()
    asked = {name: config(Path("x"), engine=name) for name in ("auto", "native", "torchscript")}
    assert only(models.engines([card], frame, asked["auto"])).colour == GREEN
    bare = load_card(bundle(tmp_path, "delta-1", "bare"))
    bare = replace(bare, sha256={"model.pt": bare.sha256["model.pt"]}, about={"native": "max_ell is 2"})
    finding = only(models.engines([bare], frame, asked["auto"]))
    assert (finding.colour, "max_ell is 2" in finding.text) == (AMBER, True)
    # what the architecture rules out no import mends; what the importing machine lacked one does, as the card says
    assert finding.remedy == "nothing to mend: torchscript serves every model"
    mendable = replace(bare, about={"native": "symmetrix-xl was not installed", "native_remedy": "import it again"})
    assert only(models.engines([mendable], frame, asked["auto"])).remedy == "import it again"
    real = models.NativeEngine
    monkeypatch.setattr(models, "NativeEngine", lambda *a: Broken(real(*a), lambda f: f + 1e-4))
    assert only(models.engines([card], frame, asked["auto"])).colour == AMBER
    finding = only(models.engines([card], frame, asked["native"]))
    assert (finding.colour, finding.code) == (RED, ModelError.exit_code)
    assert "does NOT agree with torchscript on the first structure" in finding.text
    assert "1.0e-04 eV/Å; allowed 1e-06 and 1e-05" in finding.text
    monkeypatch.setattr(models, "available", lambda: False)
    finding = only(models.engines([card], frame, asked["auto"]))
    assert (finding.colour, "pip install" in finding.remedy) == (AMBER, True)


def test_the_rounding_of_float32_has_its_size_said() -> None:
    """Rounding is green, more than that is amber where float32 was asked for, and always with its size."""
    exact = Potential(Harmonic(2.0)).evaluate([SOME])
    for error, colour in ((1e-4, GREEN), (1e-2, AMBER)):
        rough = replace(exact, forces=exact.forces + error)
        finding = only(models.precision(rough, exact, "float32"))
        assert finding.colour == colour
        assert f"{error:.1e} eV/Å" in finding.text
        assert only(models.precision(rough, exact, "float64")).colour == GREEN


# ---- i-PI and the machine


def settings(path: Path, seconds: float = 0.1) -> list[Finding]:
    """What is said of i-PI's settings."""
    return list(machine.settings(read_simulation(path), {"beadwork": seconds}))


GOOD = "<batch_size>2</batch_size><latency>1e-3</latency>"


@pytest.mark.parametrize(
    ("socket", "mode", "seconds", "colour", "said", "remedy"),
    [
        (GOOD, "", 0.1, GREEN, "none can hang", ""),
        ("<latency>1e-3</latency>", "", 0.1, AMBER, "without batching", "<batch_size> 2"),
        ("<batch_size>3</batch_size><latency>1e-3</latency>", "", 0.1, AMBER, "does not equal", "<batch_size> 2"),
        (GOOD + "<timeout>10</timeout>", "", 0.1, AMBER, "timeout 10 s", "<timeout> 0"),
        (GOOD + "<timeout>10</timeout>", "", 6.0, RED, "the same beads for ever", "<timeout> 0"),
        ("<batch_size>2</batch_size><latency>0.05</latency>", "", 0.1, AMBER, "waits 0.05 s", "<latency> 1e-3"),
        ("<batch_size>2</batch_size>", "", 0.1, AMBER, "before all beads are queued", "<latency> 1e-3"),
        (GOOD, "matching='lock'", 0.1, AMBER, "ties beads to clients", "leave it out"),
        (GOOD, "pbc='True'", 0.1, AMBER, "folds atoms", "leave it out"),
    ],
)
def test_settings_that_hang_or_slow_ipi_are_named_with_the_line(
    write: Callable[..., Path], socket: str, mode: str, seconds: float, colour: str, said: str, remedy: str
) -> None:
    """Each setting that costs speed or hangs is named with the line to change; a good input has nothing to change."""
    found = settings(write(socket=socket, mode=f"mode='unix' {mode}"), seconds)
    hit = [finding for finding in found if said in finding.text]
    assert [finding.colour for finding in hit] == [colour]
    assert remedy in hit[0].remedy
    assert all((finding.colour == GREEN) == (colour == GREEN) for finding in found)


def test_slots_are_named(write: Callable[..., Path]) -> None:
    """A queue of one for two clients."""
    found = settings(write(socket="<slots>1</slots>"))
    assert any("<slots> 2" in finding.remedy for finding in found)


def test_a_run_that_is_over_is_red(write: Callable[..., Path]) -> None:
    """i-PI would end at once, with success."""
    finding = only(settings(write(steps=50, step="<step>50</step>")))
    assert (finding.colour, finding.remedy, finding.code) == (RED, "raise total_steps", SimulationError.exit_code)


def test_a_leftover_exit_file(write: Callable[..., Path], tmp_path: Path) -> None:
    """i-PI would stop before its first step."""
    path = write()
    (tmp_path / "EXIT").touch()
    found = settings(path)
    assert [finding.colour for finding in found] == [AMBER]
    assert found[0].remedy == f"rm {tmp_path / 'EXIT'}"


def test_each_state_of_a_unix_address_is_told_apart(write: Callable[..., Path], tmp_path: Path) -> None:
    """Free, held by somebody who is not disturbed, left by a killed i-PI, too long, and in no folder."""
    here = read_simulation(write()).sockets[0]
    assert only(machine.address(here)).colour == GREEN
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(here.path))
        listener.listen(1)
        assert "a process listens" in only(machine.address(here)).text
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody dialled
    left = only(machine.address(here))
    assert (left.colour, "was killed left it" in left.text) == (AMBER, True)
    assert left.remedy.startswith(f"rm {here.path}")
    assert stat.S_ISSOCK(os.stat(str(here.path)).st_mode)
    long = only(machine.address(read_simulation(write(address="x" * 120)).sockets[0]))
    assert (long.colour, long.code) == (RED, SimulationError.exit_code)
    with pytest.raises(OSError, match="too long"), socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(tmp_path / ("x" * 120)))  # the system says so too
    assert only(machine.address(replace(here, prefix=f"{tmp_path}/none/s-"))).colour == RED


def test_a_port_that_listens_is_seen_and_left_alone(write: Callable[..., Path]) -> None:
    """A port that somebody listens on, before and after."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        inet = read_simulation(write(mode="mode='inet'", address="localhost", socket=f"<port>{port}</port>")).sockets[0]
        assert only(machine.address(inet)).colour == AMBER
    assert only(machine.address(inet)).colour == GREEN


def test_time_is_the_potentials(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A potential of known slowness: seconds, ns/day and days follow, and a month deserves a thought."""
    import time

    class Slow(Harmonic):
        def evaluate(self, graph: Graph) -> Energies:
            assert len(graph) == 2
            assert not np.array_equal(*graph.positions.reshape(2, -1))  # beads apart, as in a run
            time.sleep(0.05)
            return super().evaluate(graph)

    simulation = read_simulation(write(steps=1000))
    frames = [simulation.systems[0].frame(k) for k in range(2)]
    begin = time.perf_counter()
    wall, computing = machine.timed(Potential(Slow(1.0)), frames)
    # however slow the machine is: one evaluation, and no sum of several
    assert 0.05 <= wall <= (time.perf_counter() - begin) / 2
    assert computing < 0.5 * wall  # asleep
    found = list(machine.duration(simulation, simulation.sockets, [(0.05, 0.01)]))
    # 0.5 fs in 0.05 s is 0.864 ns/day; 1000 steps take 50 s
    assert "0.05 s per step for the models: at most 0.864 ns/day, at least 50 s for 1000 steps" in found[0].text
    assert [finding.colour for finding in found] == [GREEN, AMBER]
    assert "other programs use these cores" in found[1].text
    assert len(list(machine.duration(simulation, simulation.sockets, [(0.05, 0.05)]))) == 1
    long = replace(simulation, total_steps=10**8)
    assert only(machine.duration(long, long.sockets, [(0.05, 0.05)])).colour == AMBER


def test_multiple_time_steps_are_counted() -> None:
    """The inner forcefield is asked four times a step of 2 fs, the outer one once."""
    simulation = read_simulation(ROOT / "inputs" / "water-mts" / "input.xml")
    found = only(machine.duration(simulation, simulation.sockets, [(0.1, 0.1), (0.02, 0.02)], device="cuda"))
    assert found.text.startswith("0.42 s per step")


def test_memory_is_the_peak_against_what_the_machine_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of this process, as the kernel has it, against what is left of the machine."""
    peak = next(
        1024 * int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    room = machine._room()
    assert room is not None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert 0.5 * peak < room <= 1.05 * total
    for share, colour in ((10.0, GREEN), (1.5, AMBER), (1.05, RED)):
        monkeypatch.setattr(machine, "_room", lambda share=share: share * peak)
        finding = only(machine.memory())
        assert (finding.colour, bool(finding.remedy)) == (colour, colour != GREEN)
        assert finding.text.startswith(f"{peak / 1e9:.2f} GB")
    assert finding.code == ResourceError.exit_code


def test_a_disk_too_small_for_the_outputs_is_red(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What will be written follows from strides, beads and atoms; a disk too small for it is red."""
    traffic = "<trajectory stride='10' filename='pos'> positions{angstrom} </trajectory>"
    simulation = read_simulation(write(output=traffic, steps=100_000))
    # 2 beads of 96 atoms, a line of 48 bytes each, every 10th step; and a line of ours every step
    expected = 100_000 * (2 * (96 * 48 + 100) / 10 + 100)
    for free, colour in ((1e12, GREEN), (1.5 * expected, AMBER), (0.9 * expected, RED)):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        finding = only(machine.disk(simulation, tmp_path / "not" / "there", 0))
        assert finding.colour == colour
        assert "about 104 MB" in finding.text
    assert finding.code == ResourceError.exit_code


@pytest.mark.slow
def test_disk_against_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI's own outputs of the shipped input are as large as was foretold."""
    shutil.copytree(ROOT / "inputs" / "water", tmp_path / "water")
    path = tmp_path / "water" / "input.xml"
    text = path.read_text().replace("'16'", "'2'").replace(">16<", ">2<").replace(">120<", ">200<")
    path.write_text(text.replace("beadwork-water<", f"doctor-{os.getpid()}<"))
    monkeypatch.chdir(path.parent)
    deltas = [str(MODELS / f"delta-{k}") for k in range(2)]
    assert main(["run", "input.xml", "--baseline", str(MODELS / "baseline"), "--delta", *deltas]) == 0
    simulation = read_simulation(path)
    files = [file for file in path.parent.glob("simulation.*") if file.suffix != ".checkpoint"]
    written = sum(file.stat().st_size for file in files) / simulation.total_steps
    assert written == pytest.approx(simulation.bytes_per_step, rel=0.2)  # a frame of step 0, and a header


@pytest.mark.slow
def test_the_shipped_run_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """inputs/water with its TOML file, all five models and 16 beads, in a folder beside models/ as for make demo."""
    shutil.copytree(ROOT / "inputs" / "water", tmp_path / "demo")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path / "demo")
    assert main(["doctor", "run.toml"]) == 0
    said = capsys.readouterr().out
    assert "0 red: it can be started" in said
    assert "native agrees with torchscript for 5 models" in said
