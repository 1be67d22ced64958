"""The PES for i-PI's ffdirect: the same numbers as over the wire, in a real i-PI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ipi.utils.io.inputs.io_xml import read_dict

import beadwork.pes
from beadwork.config import ServeConfig
from beadwork.errors import ConfigError, GeometryError, ModelError, SimulationError
from beadwork.pes import BeadworkPES
from beadwork.potential import load
from beadwork.units import BOHR, FORCE, HARTREE

MODELS = Path(__file__).resolve().parent.parent / "models" / "water-revpbe0-d3"
DELTA = [MODELS / "delta-0", MODELS / "delta-1"]
BIN = Path(sys.executable).parent
#: four waters on a grid of 2.9 Å
WATERS = np.concatenate(
    [
        np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]) + 2.9 * np.array(site)
        for site in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0))
    ]
)
CELL = np.array([5.8, 5.8, 2.9])
INPUT = """<simulation verbosity='low'>
  <output prefix='out'>
    <properties stride='1' filename='properties'> [ step, potential, conserved, pressure_cv ] </properties>
    <trajectory stride='1' filename='force' format='xyz'> forces </trajectory>
    <trajectory stride='1' filename='committee' extra_type='committee_pot'> extras </trajectory>
  </output>
  <total_steps>3</total_steps>
  <prng><seed>7</seed></prng>
  {forcefield}
  <system>
    <initialize nbeads='2'>
      <file mode='xyz'>init.xyz</file><velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces><force forcefield='beadwork'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'><dynamics mode='nve'><timestep units='femtosecond'>0.5</timestep></dynamics></motion>
  </system>
</simulation>
"""


def start(folder: Path, forcefield: str) -> Path:
    """Write a small simulation, and return its folder."""
    folder.mkdir()
    lengths = " ".join(map(str, CELL))
    lines = ["12", f"# CELL(abcABC): {lengths} 90 90 90 positions{{angstrom}} cell{{angstrom}}"]
    lines += [f"{s} {x:.6f} {y:.6f} {z:.6f}" for s, (x, y, z) in zip("OHH" * 4, WATERS, strict=True)]
    (folder / "init.xyz").write_text("\n".join(lines) + "\n")
    (folder / "input.xml").write_text(INPUT.format(forcefield=forcefield))
    return folder


def run(folder: Path, *words: str) -> None:
    """Run a command in a folder; its words are shown where it fails."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ffdirect_equals_the_socket(tmp_path: Path) -> None:
    """An unmodified i-PI writes the same digits whether it calls the PES itself or asks the server."""
    delta = " ".join(map(str, DELTA))
    direct = start(
        tmp_path / "direct",
        f"<ffdirect name='beadwork'><pes>custom</pes><pes_path>{beadwork.pes.__file__}</pes_path>"
        "<batch_size>2</batch_size>"
        f"<parameters>{{template: init.xyz, baseline: {MODELS / 'baseline'}, delta: {delta}, engine: torchscript}}"
        "</parameters></ffdirect>",
    )
    run(direct, str(BIN / "i-pi"), "input.xml")
    wire = start(
        tmp_path / "wire",
        f"<ffsocket name='beadwork' mode='unix'><address>beadwork-test-pes-{os.getpid()}</address>"
        "<batch_size>2</batch_size></ffsocket>",
    )
    models = ["--baseline", str(MODELS / "baseline"), "--delta", *map(str, DELTA), "--engine", "torchscript"]
    run(wire, "-m", "beadwork.cli", "run", "input.xml", *models)
    for name in ("out.properties", "out.force_0.xyz", "out.force_1.xyz", "out.committee_0", "out.committee_1"):
        one, two = ((folder / name).read_text() for folder in (direct, wire))
        numbers = [
            np.array([float(w) for line in text.splitlines() if "#" not in line for w in line.split() if w not in "OH"])
            for text in (one, two)
        ]
        assert numbers[0].size > 3
        # a batch of one (i-PI may send half a ring) and of two differ by rounding
        np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-7, atol=1e-9)


@pytest.fixture(scope="module")
def pes(tmp_path_factory: pytest.TempPathFactory) -> BeadworkPES:
    """A baseline and two members, in process."""
    folder = start(tmp_path_factory.mktemp("pes") / "run", "")
    delta = " ".join(map(str, DELTA))
    return BeadworkPES(str(folder / "init.xyz"), baseline=str(MODELS / "baseline"), delta=delta, engine="torchscript")


def test_force_is_minus_the_slope(pes: BeadworkPES) -> None:
    """Energy, force and virial are in i-PI's units and orientation: held to finite differences in a skewed cell."""
    cell = np.diag(CELL) / BOHR
    cell[0, 1] = 0.7  # columns are lattice vectors, so this skews the second one
    where = WATERS / BOHR
    _, force, virial, extra = pes(cell, where)
    assert '"committee_pot"' in extra
    step = 1e-3
    moves = np.zeros((2, 12, 3))
    moves[0, 1, 2], moves[1, 1, 2] = step, -step
    up, down = pes([cell, cell], [where + moves[0], where + moves[1]])
    assert force[1, 2] == pytest.approx((down[0] - up[0]) / (2 * step), abs=1e-7)
    strain = 1e-4
    strains = [np.eye(3) + s * np.outer([1, 0, 0], [0, 1, 0]) for s in (strain, -strain)]
    up, down = pes([s @ cell for s in strains], [where @ s.T for s in strains])
    assert virial[0, 1] == pytest.approx((down[0] - up[0]) / (2 * strain), abs=1e-6)
    assert HARTREE / BOHR == FORCE


def test_the_template_is_the_file_of_this_name(tmp_path: Path) -> None:
    """With an @ in it too, of which ASE would make another file's frame."""
    ase.io.write(tmp_path / "w.xyz", ase.build.molecule("CH4"))
    ase.io.write(tmp_path / "w.xyz@0.xyz", ase.build.molecule("H2O"), format="extxyz")
    assert beadwork.pes._species(str(tmp_path / "w.xyz@0.xyz")).tolist() == [8, 1, 1]


def test_what_it_refuses(pes: BeadworkPES, tmp_path: Path) -> None:
    """A wrong number of atoms, an unknown option and a missing template each get a sentence."""
    with pytest.raises(GeometryError, match=r"\[11\] atoms where the template has 12"):
        pes(np.diag(CELL) / BOHR, WATERS[1:] / BOHR)
    with pytest.raises(ConfigError, match=r"'basline', which is no option; did you mean baseline[?]"):
        BeadworkPES("init.xyz", basline="b")
    with pytest.raises(SimulationError, match="cannot be read"):
        BeadworkPES(str(tmp_path / "absent.xyz"), baseline=str(MODELS / "baseline"), engine="torchscript")


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("periodic: maybe", "periodic is 'maybe'; it wants true or false"),
        ("periodic: 2", "periodic is 2; it wants true or false"),
        ("member_forces: 0.5", r"member_forces is 0\.5; it wants true or false"),
        ("alpha: x", "alpha is 'x'; it wants a number"),
        ("threads: many", "threads is 'many'; it wants a whole number"),
        ("threads: 1.5", r"threads is 1\.5; it wants a whole number"),
        ("engine: 1", "engine is 1; it wants a text"),
        ("delta: 7", "delta is 7; it wants a text"),
        ("template: 7", "template is 7; it wants a text"),
        ("add: d3bj", "add is 'd3bj'; it wants"),
        ("weights: half", r"weights is \['half'\]; it wants"),
        ("at: a=sum", "sets 'at', which is no option"),
        ("dtype: float16", "dtype is 'float16'; choose from"),
    ],
)
def test_kinds_are_checked(written: str, error: str) -> None:
    """What <parameters> holds is a word or a number to i-PI: of the wrong kind it is refused by the option's name."""
    given = {"template": "init.xyz", "baseline": "b", **read_dict(f"{{{written}}}")}
    with pytest.raises(ConfigError, match=error):
        BeadworkPES(**given)


def test_all_that_models_are_served_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to the baseline by formula, the total charge and spin, and weights: what a Δ's card asks for, and
    what the sentence about it names, can be given here too; it was no option."""
    asked: list[ServeConfig] = []

    def loaded(config: ServeConfig) -> None:
        asked.append(config)
        raise ModelError("far enough")

    monkeypatch.setattr(load, "load_for", loaded)
    words = "{add: d3bj=revPBE zbl=1, charge: -1, spin: 1, weights: 0.5 1.5, also: dipole=models/mu}"
    with pytest.raises(ModelError, match="far enough"):
        BeadworkPES(template="init.xyz", baseline="b", delta="c d", **read_dict(words))
    (config,) = asked
    assert (config.add, config.also) == ({"d3bj": "revPBE", "zbl": "1"}, {"dipole": "models/mu"})
    assert (config.charge, config.spin, config.weights) == (-1, 1, [0.5, 1.5])


@pytest.mark.parametrize(
    ("words", "periodic"),
    [(("true", "True", "yes", "1", "YES"), True), (("false", "False", "no", "0"), False)],
)
def test_a_switch_in_any_words(tmp_path: Path, words: tuple[str, ...], periodic: bool) -> None:
    """On and off as people write them, and as i-PI reads them: 1 is on as true is, and no is not on."""
    template = str(start(tmp_path / "run", "") / "init.xyz")
    for word in words:
        given = read_dict(f"{{periodic: {word}, member_forces: {word}, alpha: 2, threads: 1}}")
        delta = " ".join(map(str, DELTA))
        pes = BeadworkPES(template, delta=delta, engine="torchscript", **given)
        *_, extra = pes(np.diag(CELL) / BOHR, WATERS / BOHR)
        assert pes._periodic == (periodic,) * 3
        assert ("committee_force" in json.loads(extra)) == periodic
        assert pes._potential.alpha == 2.0
