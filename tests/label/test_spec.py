"""LABELLER.toml, and what it makes."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ase.build
import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import Frame
from beadwork.label.clusters import Cut
from beadwork.label.codes.ase_calculator import AseCalculator
from beadwork.label.codes.command import Command, Pattern
from beadwork.label.codes.pyscf_labeller import PySCF
from beadwork.label.jobs import Jobs, Slurm
from beadwork.label.spec import Spec, read_spec

pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
INPUTS = Path(__file__).parents[2] / "inputs" / "labellers"

PYSCF = """
kind = "pyscf"
charge = 1
attempts = 3
lease = 60
[settings]
theory = "CCSD(T)"
basis = "cc-pVTZ"
frozen_core = true
[cut]
radius = 4
[jobs]
executor = "slurm"
workers = 16
[jobs.slurm]
partition = "long"
nodes = 2
"""


def test_every_table_of_a_labeller_arrives(tmp_path: Path) -> None:
    """Everything arrives where it belongs, whole numbers pass for numbers, and a worker elsewhere can be told it."""
    file = tmp_path / "l.toml"
    file.write_text(PYSCF)
    spec = read_spec(file)
    assert (spec.kind, spec.charge, spec.spin, spec.attempts, spec.lease) == ("pyscf", 1, None, 3, 60.0)
    assert spec.cut == Cut(radius=4.0)
    assert spec.jobs == Jobs("slurm", 16, 1, Slurm("long", nodes=2))
    assert spec.labeller() == PySCF("CCSD(T)", "cc-pVTZ", frozen_core=True)
    assert not spec.periodic
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_dashes_and_underscores(tmp_path: Path) -> None:
    """Options take both spellings in every table of the file; names that are the user's own stay as they are."""
    text = PYSCF.replace("frozen_core", "frozen-core").replace("attempts = 3", "same-theory = true")
    (tmp_path / "l.toml").write_text(text)
    spec = read_spec(tmp_path / "l.toml")
    assert spec.same_theory
    assert spec.settings == {"theory": "CCSD(T)", "basis": "cc-pVTZ", "frozen_core": True}
    (tmp_path / "underscores.toml").write_text(text.replace("frozen-core", "frozen_core"))
    assert read_spec(tmp_path / "underscores.toml").identity == spec.identity
    (tmp_path / "a.toml").write_text(
        """
        kind = "ase"
        [settings]
        calculator = "ase.calculators.emt:EMT"
        theory = "EMT"
        ignores-charge = true
        arguments = { a-b = 1, a_b = 2 }
        """
    )
    calculator = read_spec(tmp_path / "a.toml").labeller()
    assert isinstance(calculator, AseCalculator)
    assert calculator.ignores_charge
    assert calculator.arguments == {"a-b": 1, "a_b": 2}


def test_paths_and_tables_in_settings(tmp_path: Path) -> None:
    """Paths count from the file's folder; templates, patterns and lists become what a command wants."""
    (tmp_path / "l.toml").write_text(
        """
        kind = "command"
        [settings]
        theory = "T"
        code = "C"
        version = "1"
        command = ["true"]
        directory = "work"
        core = { O = 2 }
        files = { a = "$atoms" }
        energy = { regex = "(?P<value>.)", unit = "eV" }
        """
    )
    made = read_spec(tmp_path / "l.toml").labeller()
    assert isinstance(made, Command)
    assert made.directory == tmp_path / "work"
    assert made.command == ("true",)
    assert made.energy == Pattern("(?P<value>.)", "eV")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "pyscf"', 'kind = "vasp"', "no kind of labeller 'vasp'; choose from pyscf, qmc, ase, command"),
        ('kind = "pyscf"', "", "wants kind"),
        ("[settings]", "[setting]", "settings in a table"),
        ("attempts = 3", "attemps = 3", "sets 'attemps', which is no option; did you mean attempts[?]"),
        ("attempts = 3", "attempts = 0", "attempts is 0; it must be at least 1"),
        ("attempts = 3", 'attempts = "3"', "attempts is '3'; it wants a whole number"),
        ("charge = 1", "charge = 1.5", "charge is 1.5; it wants a whole number"),
        ('basis = "cc-pVTZ"', "", r"theory 'CCSD\(T\)' has no basis: set basis"),
        ("frozen_core = true", "frozen_core = 1", "frozen_core is 1; it wants true or false"),
        ("frozen_core = true", "frozen = true", "sets 'frozen', which is no option; did you mean frozen_core[?]"),
        ('theory = "CCSD(T)"', 'theory = "CCSDT"', "PySCF cannot compute 'CCSDT' .*: give HF, MP2"),
        ("radius = 4", "radius = 4\nmolecules = 3", "molecules or radius"),
        ("radius = 4", "radius = -4", "positive"),
        ('executor = "slurm"', 'executor = "threads"', "belong together"),
        ("nodes = 2", "node = 2", "jobs: slurm sets 'node', which is no option; did you mean nodes[?]"),
        ("charge = 1", "charge = ", "cannot read"),
        ("charge = 1", 'here = "/"', "sets 'here', which is no option; known are kind, charge, .*same_theory$"),
        ("attempts = 3", "same-theory = true\nsame_theory = true", "sets same_theory in both spellings"),
        ("frozen_core = true", "frozen_core = true\nfrozen-core = true", r"\[settings\] sets frozen_core in both"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    """Each typing error has its sentence, when the file is read."""
    file = tmp_path / "l.toml"
    assert old in PYSCF
    file.write_text(PYSCF.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        read_spec(file)


@pytest.mark.parametrize("file", sorted(INPUTS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_labeller_can_be_read_and_made(file: Path) -> None:
    """What ships can be read, makes its labeller, and fills its templates for a molecule."""
    spec = read_spec(file)
    labeller = spec.labeller()
    assert labeller.method
    frame = Frame.from_atoms(ase.build.molecule("H2O"))
    assert labeller.seconds(frame) > 0
    if isinstance(labeller, Command):
        filled = labeller._inputs(frame, 0, 0)
        assert any("O" in text for text in filled.values())


def test_an_ase_calculator_labels_by_its_import_path() -> None:
    """EMT by its import path: ASE's own energy and forces, with ASE's version in the label."""
    from ase.calculators.emt import EMT

    atoms = ase.build.molecule("H2O")
    atoms.calc = EMT()
    label = AseCalculator("ase.calculators.emt:EMT", "EMT", ignores_charge=True).label(Frame.from_atoms(atoms), 0, 0)
    assert label.energy == atoms.get_potential_energy()
    np.testing.assert_array_equal(label.forces, atoms.get_forces())
    assert label.version.startswith("ase 3.")


def test_charge_and_spin_reach_the_calculator() -> None:
    """Where an argument says so they are the frame's; where none does the file is refused, not the charge dropped."""
    made = AseCalculator("ase.calculators.lj:LennardJones", "LJ", {"epsilon": "{charge}", "rc": "{multiplicity}"})
    label = made.label(Frame.from_atoms(ase.build.molecule("H2")), -2, 4)
    assert '"epsilon": -2' in label.input
    assert '"rc": 5' in label.input
    with pytest.raises(ConfigError, match="does not get the charge"):
        AseCalculator("ase.calculators.emt:EMT", "EMT")
    blind = AseCalculator("ase.calculators.emt:EMT", "EMT", ignores_charge=True)
    with pytest.raises(LabelError, match="ignores charge"):
        blind.label(Frame.from_atoms(ase.build.molecule("H2")), 1, 0)


def test_a_spin_that_the_calculator_is_not_told_is_refused() -> None:
    """O2 of a triplet would be labelled as the singlet that a code takes by itself: an argument has to hold the spin,
    or the user says for which the others are set; and no label is of a spin that the electrons cannot have."""
    oxygen = Frame(np.array([8, 8]), np.array([[0, 0, 0], [0, 0, 1.2]]), np.zeros((3, 3)), (False,) * 3)
    made = AseCalculator("ase.calculators.lj:LennardJones", "LJ", {"epsilon": "{charge}"})
    with pytest.raises(
        LabelError, match=r"LennardJones does not get the spin, and the frame has 2 unpaired electrons; "
    ):
        made.label(oxygen, 0, 2)
    assert made.label(oxygen, 0, 0).spin == 0
    triplet = replace(made, sets_spin=2)
    assert triplet.label(oxygen, 0, 2).spin == 2
    with pytest.raises(LabelError, match=r"has 0 unpaired electrons; .*sets_spin = 0"):
        triplet.check(oxygen, 0, 0)
    with pytest.raises(LabelError, match="O2 with charge 1 has 15 electrons, of which 0 cannot be unpaired"):
        made.check(oxygen, 1, 0)


def test_what_a_calculator_does_not_take_or_have_is_refused() -> None:
    """An argument that it does not know, one that it lacks, and forces that it has not: before the first frame."""
    toy = f"{__name__}:Energies"
    sys.modules.setdefault(__name__, SimpleNamespace(Energies=Energies))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"does not take these arguments: .*'bassis'"):
        AseCalculator(toy, "T", {"bassis": "x", "cutoff": 3.0}, ignores_charge=True, forces=False)
    with pytest.raises(ConfigError, match=r"does not take these arguments: missing .*'cutoff'"):
        AseCalculator(toy, "T", ignores_charge=True, forces=False)
    with pytest.raises(ConfigError, match=r"has no forces \(it has energy\): set forces = false"):
        AseCalculator(toy, "T", {"cutoff": 3.0}, ignores_charge=True)
    assert AseCalculator(toy, "T", {"cutoff": 3.0}, ignores_charge=True, forces=False).method == "T"


class Energies(Calculator):
    """A calculator without forces."""

    implemented_properties = ("energy",)

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff


class Stopped(Calculator):
    """A calculator that gives the energy of its last iteration, and says whether it was enough, as VASP's does."""

    implemented_properties = ("energy", "forces")

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations, self.converged = iterations, None

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        """See ASE."""
        self.results = {"energy": -1.0, "forces": np.zeros((len(atoms), 3))}
        self.converged = self.iterations > 10


def summed(iterations: int) -> Calculator:
    """One that did not converge, below a correction."""
    return SumCalculator([Stopped(iterations), LennardJones()])


@pytest.mark.parametrize("name", ["Stopped", "summed"])
def test_a_calculation_that_did_not_converge_is_no_label(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An energy that the calculator itself calls unconverged is refused, also where it is one of a sum."""
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Stopped=Stopped, summed=summed))  # type: ignore[misc]
    frame = Frame.from_atoms(ase.build.molecule("H2O"))
    made = AseCalculator(f"{__name__}:{name}", "T", {"iterations": 60}, ignores_charge=True)
    assert np.isfinite(made.label(frame, 0, 0).energy)
    with pytest.raises(LabelError, match=rf"{name} says that its calculation did not converge; give it more"):
        replace(made, arguments={"iterations": 9}).label(frame, 0, 0)


def test_a_program_that_is_not_here(tmp_path: Path) -> None:
    """Refused when the file is read, unless the nodes of a cluster may have it; a relative path never works."""
    text = """
        kind = "command"
        [settings]
        theory = "T"
        code = "C"
        version = "1"
        command = ["no-such-program"]
        files = { a = "$atoms" }
        energy = { regex = "(?P<value>.)", unit = "eV" }
        """
    (tmp_path / "l.toml").write_text(text)
    with pytest.raises(ConfigError, match="there is no program 'no-such-program' to be run"):
        read_spec(tmp_path / "l.toml")
    (tmp_path / "l.toml").write_text(text + '[jobs]\nexecutor = "slurm"\n[jobs.slurm]\npartition = "long"\n')
    assert isinstance(read_spec(tmp_path / "l.toml").labeller(), Command)
    (tmp_path / "l.toml").write_text(text.replace('"no-such', '"./no-such'))
    with pytest.raises(ConfigError, match=r"begins with './no-such-program', but each label .* folder of its own"):
        read_spec(tmp_path / "l.toml")


@pytest.mark.parametrize("path", ["ase.calculators.emt", "ase.calculators.emt:Nothing", "no_such_module:Class"])
def test_a_calculator_that_is_not_there(path: str) -> None:
    """Refused when the file is read."""
    with pytest.raises(ConfigError):
        AseCalculator(path, "T", ignores_charge=True)


@pytest.mark.parametrize("name", ["toy_calculator:Files", "toy_calculator:mixed"])
def test_calculators_that_work_through_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, springs: Callable[..., Spec], name: str
) -> None:
    """Labels at the same time, of calculators whose files have one name, are each of their own structure; nothing is
    left of the good ones, and a folder that all would share is refused."""
    monkeypatch.chdir(tmp_path)
    springs()  # which makes the toys importable
    slow = {"command": "sleep 0.3; cp springs.inp springs.out"}
    made = AseCalculator(name, "springs", slow, ignores_charge=True, directory=tmp_path / "work")
    shakes = np.random.default_rng(0).normal(0, 0.1, (6, 3, 3))
    frames = [Frame.from_atoms(ase.build.molecule("H2O", positions=shake)) for shake in shakes]
    with ThreadPoolExecutor(3) as pool:
        labels = list(pool.map(lambda frame: made.label(frame, 0, 0), frames))
    assert [label.energy for label in labels] == [0.5 * float((f.positions**2).sum()) for f in frames]
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert list((tmp_path / "work").iterdir()) == []
    with pytest.raises(ConfigError, match="overwrite each other"):
        AseCalculator("toy_calculator:Files", "springs", {"directory": "x"}, ignores_charge=True)
    made = AseCalculator(name, "springs", {"command": "false"}, ignores_charge=True)
    with pytest.raises(LabelError, match=r"see .*/label-") as failure:
        made.label(frames[0], 0, 0)
    assert (Path(str(failure.value).rpartition("see ")[2]) / "springs.inp").exists()


def test_what_a_calculator_cannot_do_is_a_reason() -> None:
    """EMT knows no sodium."""
    with pytest.raises(LabelError, match="EMT could not label: NotImplementedError"):
        AseCalculator("ase.calculators.emt:EMT", "EMT", ignores_charge=True).label(
            Frame.from_atoms(ase.build.molecule("NaCl")), 0, 0
        )


def test_turborvb_as_far_as_that_goes_without_it(tmp_path: Path) -> None:
    """The shipped example finds energy and error in a pip0.d of TurboRVB's form; its programs are not run."""
    made = read_spec(INPUTS / "turborvb.toml").labeller()
    assert isinstance(made, Command)
    (tmp_path / "pip0.d").write_text(
        " number of bins read =         490\n"
        " Energy =   -17.2311574106943       1.213947581312E-003\n"
        " Variance square =   0.341018287131       4.0129381E-003\n"
    )
    assert made._energy(tmp_path) == pytest.approx(
        (-17.2311574106943 * 27.211386245988, 0.001213947581312 * 27.211386246)
    )
    filled = made._inputs(Frame.from_atoms(ase.build.molecule("H2O")), 1, 1)
    assert filled["atoms.txt"].startswith("O 0.0000000000 0.0000000000 0.2")
    assert "charge=1, spin=1" in filled["scf.py"]
    compile(filled["scf.py"], "scf.py", "exec")
