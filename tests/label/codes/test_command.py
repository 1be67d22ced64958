"""Labels by a program: templates in, numbers out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import Frame
from beadwork.label.codes.command import Command, Pattern
from beadwork.label.constants import HARTREE

WATER = Frame(
    np.array([8, 1, 1]),
    np.array([[0.02, 0.01, 0.11], [0.05, 0.79, -0.45], [0, -0.71, -0.53]]),
    np.zeros((3, 3)),
    (False, False, False),
)
E = r"^energy\s+(?P<value>\S+)\s+(?P<error>\S+)"
F = r"^(?P<x>\S+) (?P<y>\S+) (?P<z>\S+)$"


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Command]:
    """A maker of commands that run a line of Python."""

    def make(code: str, **changes: Any) -> Command:
        settings: dict[str, Any] = {
            "theory": "T",
            "code": "toy",
            "version": "1",
            "command": [sys.executable, "run.py"],
            "files": {"run.py": code, "geometry": "$natoms $charge $multiplicity $up $down\n$atoms\n"},
            "energy": Pattern(E, "Hartree"),
            "directory": tmp_path / "work",
        }
        return Command(**settings | changes)

    return make


def test_a_real_code_through_files(command: Callable[..., Command]) -> None:
    """PySCF run as a script gives what PySCF gives in this process: geometry, units, signs and all digits arrive."""
    pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    from beadwork.label.codes.pyscf_labeller import PySCF

    script = """
from pyscf import gto, scf
lines = open("geometry").read().splitlines()
charge = int(lines[0].split()[1])
mol = gto.M(atom=lines[1:], unit="Bohr", basis="6-31g", charge=charge, verbose=0)
field = scf.RHF(mol)
field.conv_tol = 1e-10
print("energy", repr(float(field.kernel())))
with open("forces", "w") as file:
    for line in field.nuc_grad_method().kernel():
        print(*map(repr, map(float, line)), file=file)
"""
    forces = Pattern(F, "Hartree/Bohr", "forces", gradient=True)
    line, energy = "{symbol} {x:.12f} {y:.12f} {z:.12f}", Pattern(r"^energy (?P<value>\S+)", "Hartree")
    told = command(script, length="bohr", forces=forces, atom=line, energy=energy).label(WATER, 0, 0)
    assert told.energy_error == 0
    direct = PySCF("HF", "6-31g").label(WATER, 0, 0)
    assert told.energy == pytest.approx(direct.energy, abs=1e-7)
    assert told.forces is not None
    np.testing.assert_allclose(told.forces, direct.forces, atol=1e-6)


def test_templates_and_what_is_kept_of_them(command: Callable[..., Command], tmp_path: Path) -> None:
    """Every place is filled in, pseudopotentials take their electrons, and the label holds the input in full."""
    line = "{symbol} {number} {valence} {x:.3f}"
    made = command("print('energy -1.5 0.25')", atom=line, core={"O": 2}, keep=True)
    label = made.label(WATER, 1, 1)
    (folder,) = (tmp_path / "work").iterdir()
    assert (folder / "geometry").read_text() == "3 1 2 4 3\nO 8 6 0.020\nH 1 1 0.050\nH 1 1 0.000\n"
    assert "O 8 6 0.020" in label.input
    assert (label.energy, label.energy_error) == (-1.5 * HARTREE, 0.25 * HARTREE)
    assert (label.method, label.code, label.version, label.charge, label.spin) == ("T", "toy", "1", 1, 1)
    assert label.forces is None
    command("print('energy -1.5 0.25')").label(WATER, 0, 0)
    assert list((tmp_path / "work").iterdir()) == [folder]  # that of a good label goes, unless it is kept


def test_error_bars_and_fortran(command: Callable[..., Command]) -> None:
    """The last match counts, D exponents are read, errors are positive, and components come atom by atom."""
    code = "print('energy 0 0\\nenergy -2.0D+01 1d-2'); [print('Force =', k, 0.5, 'x') for k in range(-9, 9)]"
    forces = Pattern(r"Force = (?P<value>\S+) (?P<error>\S+)", "Rydberg/angstrom", gradient=True)
    label = command(code, energy=Pattern(E, "Rydberg"), forces=forces).label(WATER, 0, 0)
    assert (label.energy, label.energy_error) == pytest.approx((-10 * HARTREE, 0.005 * HARTREE))
    assert label.forces is not None
    assert label.forces_error is not None
    np.testing.assert_allclose(label.forces, -np.arange(9.0).reshape(3, 3) * HARTREE / 2)
    np.testing.assert_allclose(label.forces_error, HARTREE / 4)


@pytest.mark.parametrize("error", ["", "0", "0.000", "-0.1", "nan"])
def test_an_energy_without_its_error_is_no_label(command: Callable[..., Command], error: str) -> None:
    """A named error that is missing, 0 or negative is refused: the label would count as exact."""
    pattern = Pattern(r"^energy (?P<value>\S+) ?(?P<error>\S+)?", "eV")
    with pytest.raises(LabelError, match=r"standard error of|None was found for a number in .* by the group 'error'"):
        command(f"print('energy -1 {error}'.strip())", energy=pattern).label(WATER, 0, 0)
    assert command("print('energy -1 0.1')", energy=pattern).label(WATER, 0, 0).energy_error == 0.1


@pytest.mark.parametrize("whole", [True, False], ids=["atoms", "components"])
@pytest.mark.parametrize(
    ("first", "others", "said"),
    [
        ("1 ", "1 0.1", "None was found for a number"),
        ("1 0", "1 0.1", "forces with a standard error of 0.0"),
        ("0 -0.1", "1 0.1", "forces with a standard error of -0.1"),
        ("0 0", "0 0", "forces with a standard error of 0.0"),
        ("0 0", "1 0.1", None),
    ],
    ids=["missing", "zero", "negative", "nothing but zeros", "by symmetry"],
)
def test_forces_without_their_errors_are_no_label(
    command: Callable[..., Command], whole: bool, first: str, others: str, said: str | None
) -> None:
    """Named errors of forces are found and above 0; 0 stands only beside a component that symmetry makes 0."""
    text = f"{first};" + f"{others};" * 8
    one = r"(?P<{}>\S+) (?P<{}>[^;]+)?;"
    regex = "".join(one.format(k, f"e{k}") for k in "xyz") if whole else one.format("value", "error")
    code = f"print('energy -1 1'); open('forces', 'w').write('{text}')"
    made = command(code, forces=Pattern(regex, "eV/angstrom", "forces"))
    if said is None:
        forces_error = made.label(WATER, 0, 0).forces_error
        assert forces_error is not None
        assert forces_error.ravel().tolist() == [0.0] + [0.1] * 8
        return
    with pytest.raises(LabelError, match=said):
        made.label(WATER, 0, 0)


ROW = r"^ *\d+ \w+ +(?P<x>-?\d+\.\d+) +(?P<y>-?\d+\.\d+) +(?P<z>-?\d+\.\d+) *$"
GUESS = "forces\n 1 O -1.0 0.0 0.0\n 2 H 0.5 0.0 0.0\n 3 H 0.5 0.0 0.0\n"
LAST = "forces\n 1 O -12.0 -9.0 0.1\n 2 H 6.0 4.5 0.0\n 3 H 6.0 4.5 -0.1\n"
TOUCH = LAST.replace("-12.0 -9.0", "-12.345678-10.000000")
STARS = LAST.replace("-12.0", "*****")


@pytest.mark.parametrize(
    ("text", "atoms", "said"),
    [
        (GUESS + LAST, 3, None),
        (GUESS + LAST.replace("\n", "\n\n") + "*** the end ***\n", 3, None),
        (GUESS + TOUCH, 3, "has 5 matches .*, and 3 are wanted, or several blocks"),
        (LAST + " 4 sum 0.0 0.0 0.0\n", 3, "has 4 matches"),
        (3 * TOUCH, 3, "matches 1 and 2 of the last 3 .*'forces / 1 O -12.345678-10.000000 0.1'"),
        (
            2 * "".join(STARS.splitlines(True)[:3]),
            2,
            r"matches 1 and 2 of the last 2 .*'forces / 1 O \*\*\*\*\* -9.0 0.1'",
        ),
        (2 * (GUESS + " 4 sum 0.0 0.0 0.0\n--\n"), 4, None),
        (3 * (LAST + "--\n 4 sum 0.0 0.0 0.0\n"), 3, "matches 2 and 3 of the last 3 .* are not rows of one block"),
        (
            GUESS + LAST.replace("6.0", "NaN").replace("-12.0", "NaN"),
            3,
            "last match .* is '1 O NaN -9.0 0.1', which is no",
        ),
        (GUESS + "forces\n" + "".join(f" {k} {s} {30 * '*'}\n" for k, s in enumerate("OHH", 1)), 3, r"is '1 O \*{30}'"),
    ],
    ids=[
        "the last of two",
        "empty lines",
        "columns touch",
        "a sum",
        "in each block",
        "of two atoms",
        "sum is a row",
        "a sum apart",
        "no numbers",
        "stars",
    ],
)
def test_forces_are_of_one_block(tmp_path: Path, text: str, atoms: int, said: str | None) -> None:
    """A row that does not match never gets its place filled from the block before, which would give each atom another
    one's force, nor a block without numbers that of an earlier iteration."""
    (tmp_path / "output").write_text(text)
    pattern = Pattern(ROW, "eV/angstrom")
    if said is None:
        rows = text.split("forces")[-1].split()
        found = [match["x"] for match in pattern.find(tmp_path, atoms)]
        assert found == [rows[5 * k + 2] for k in range(atoms)]
        return
    with pytest.raises(LabelError, match=said):
        pattern.find(tmp_path, atoms)


def test_components_of_one_block(tmp_path: Path) -> None:
    """One match a component: x, y and z may have other texts between them than one atom has from the next, all atoms
    the same; and numbers that fill line after line are one block too."""
    force = Pattern(r"F[xyz] = (?P<value>-?\d+\.\d+)", "eV/angstrom")
    atom = "atom {0}\n  Fx = {0}.1\n  Fy = {0}.2\n  Fz = {0}.3\n"
    text = "".join(atom.format(k) for k in range(6))
    (tmp_path / "output").write_text(text)
    assert [match["value"] for match in force.find(tmp_path, 9)] == [f"{k}.{c}" for k in (3, 4, 5) for c in (1, 2, 3)]
    # as many matches as of three atoms, but of the first step's second atom one component is missing
    (tmp_path / "output").write_text("Fx = 0.0\n" + text[: text.index("atom 3")].replace("Fz = 1.3", "Fz = *****"))
    with pytest.raises(LabelError, match=r"matches . and . of the last 9 .* are not rows of one block"):
        force.find(tmp_path, 9)
    wrapped = Pattern(r"(?P<value>-?\d+\.\d+E[-+]\d+)", "eV/angstrom")
    (tmp_path / "output").write_text("\n".join(5 * " 1.0E+00" for _ in range(6)))
    assert len(wrapped.find(tmp_path, 15)) == 15


@pytest.mark.parametrize("last", ["NaN", "**********", "-Infinity"])
def test_an_energy_that_is_no_number_is_not_that_of_the_iteration_before(tmp_path: Path, last: str) -> None:
    """The last energy that is printed counts, also where the pattern does not match it."""
    pattern = Pattern(r"total energy += +(?P<value>-?\d+\.\d+)", "Hartree")
    (tmp_path / "output").write_text("  total energy   =  -76.1\n")
    assert pattern.find(tmp_path)[0]["value"] == "-76.1"
    with (tmp_path / "output").open("a") as file:
        file.write(f" total energy =  {last} after 100 iterations\nnan\n")
    with pytest.raises(
        LabelError, match=r"behind the last match .* is 'total energy = .* after 100 iterations', which"
    ):
        pattern.find(tmp_path)


ION = Frame(
    np.array([8, 1, 1, 1]),
    np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [-0.4, -0.5, 0.8]]),
    np.zeros((3, 3)),
    (False, False, False),
)


def test_charge_and_spin_reach_the_program(command: Callable[..., Command]) -> None:
    """A template with a fixed charge would give H3O+ the energy of another electron's system under charge 1: a frame
    that has a charge or unpaired electrons wants their place in a template, as an ASE calculator wants its argument."""
    fixed = command("", files={"in": "charge 0\nspin 1\n$$charge $atoms"})
    fixed.check(WATER, 0, 0)
    with pytest.raises(LabelError, match=r"toy is not told the charge, and the frame has 1; write \$charge where"):
        fixed.check(ION, 1, 0)
    with pytest.raises(
        LabelError, match=r"toy is not told the spin, and the frame has 2 unpaired electrons; .*sets_spin = 2"
    ):
        fixed.check(WATER, 0, 2)
    for told in ("$charge $spin", "${electrons} $multiplicity", "$up $down"):
        command("", files={"in": told}).check(ION, 1, 2)
    triplet = command("", files={"in": "$charge"}, sets_spin=2)
    triplet.check(ION, 1, 2)
    with pytest.raises(LabelError, match=r"has 0 unpaired electrons; .*sets_spin = 0"):
        triplet.check(ION, 1, 0)
    blind = command("", files={"in": "$atoms"}, ignores_charge=True)
    blind.check(ION, 0, 0)  # nine electrons in pairs: it knows of none
    with pytest.raises(LabelError, match="toy ignores charge and spin, but the frame has 1 and 0; "):
        blind.check(ION, 1, 0)


@pytest.mark.parametrize(("charge", "spin"), [(0, 1), (1, 0), (-1, 2), (0, 10), (9, 0), (0, -2)])
def test_electrons_that_do_not_fit(command: Callable[..., Command], tmp_path: Path, charge: int, spin: int) -> None:
    """No electron is lost by halving an odd number: charge and spin that do not fit are refused, and nothing runs."""
    made = command("print('energy -1 1')", core={"O": 2})
    with pytest.raises(LabelError, match=rf"spin is {spin} .* {8 - charge} electrons \(charge {charge}, core .*'O': 2"):
        made.label(WATER, charge, spin)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("eV", 1), ("Hartree", 27.211386), ("Rydberg", 13.605693), ("kcal/mol", 0.0433641), ("kJ/mol", 0.01036427)],
)
def test_units_are_those_of_the_usual_tables(unit: str, factor: float) -> None:
    """Against the usual tables; of forces, a length more."""
    assert Pattern(E, unit).factor(forces=False) == pytest.approx(factor, rel=1e-6)
    assert Pattern(F, f"{unit}/angstrom").factor(forces=True) == pytest.approx(factor, rel=1e-6)
    assert Pattern(F, f"{unit}/Bohr").factor(forces=True) == pytest.approx(factor / 0.5291772, rel=1e-6)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('no licence')", "ended with code 1: no licence"),
        ("print('nothing')", "nothing in .*output matches"),
        ("print('energy abc 1')", "'abc' was found for a number"),
        ("print('energy nan 1'); open('forces', 'w').write('1 2 3\\n' * 3)", "energy of nan"),
        ("print('energy -1 1')", "left no forces"),
        ("print('energy -1 1'); open('forces', 'w').write('1 2 3\\n')", "has 1 matches"),
        ("import time; time.sleep(60)", "stopped after 1.5 s"),
    ],
)
def test_failures_are_named_and_their_folder_stays(
    command: Callable[..., Command], tmp_path: Path, code: str, said: str
) -> None:
    """What the program did wrong becomes the reason in the queue, and its files are there to look at."""
    made = command(code, forces=Pattern(F, "eV/angstrom", "forces"), timeout=1.5 if "sleep" in code else 120.0)
    with pytest.raises(LabelError, match=said):
        made.label(WATER, 0, 0)
    (folder,) = (tmp_path / "work").iterdir()
    assert (folder / "geometry").exists()


WAITS = (
    "import os, time; open('../pid', 'w').write(str(os.getpid())); os.rename('../pid', '../started'); time.sleep(600)"
)


def gone(started: Path) -> bool:
    """Whether the program that left its number there runs no more."""
    try:
        os.kill(int(started.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def appears(file: Path) -> bool:
    """Wait for a file as long as a busy machine may need; whether it came."""
    end = time.monotonic() + 120
    while time.monotonic() < end and not file.exists():
        time.sleep(0.02)
    return file.exists()


def test_an_interruption_ends_the_program(command: Callable[..., Command], tmp_path: Path) -> None:
    """Ctrl-C kills the program and all that it started, not only the wait for it."""
    started = tmp_path / "work" / "started"

    def interrupt() -> None:
        appears(started)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        command(WAITS).label(WATER, 0, 0)
    thread.join()
    assert gone(started)


def test_an_interruption_while_the_program_is_started(
    command: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the start of the program and the moment in which we know its number: it is ended all the same.

    On a busy machine the program may be well under way by then.
    """
    started, start = tmp_path / "work" / "started", subprocess.Popen

    def slow(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*args, **options)
        assert appears(started)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return process

    made = command(WAITS)
    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        made.label(WATER, 0, 0)
    assert gone(started)


def test_a_program_that_is_not_there(command: Callable[..., Command]) -> None:
    """Named, with the system's word."""
    with pytest.raises(LabelError, match="cannot be started: No such file"):
        command("", command=["no-such-program"]).label(WATER, 0, 0)


def test_a_periodic_frame_needs_a_template_with_a_cell(command: Callable[..., Command], tmp_path: Path) -> None:
    """Refused unless the template is told the cell; then three lines of it are there."""
    box = Frame(WATER.numbers, WATER.positions, np.diag([7.0, 8.0, 9.0]))
    with pytest.raises(LabelError, match="is not told the cell"):
        command("print('energy -1 1')").label(box, 0, 0)
    files = {"run.py": "print('energy -1 1')", "cell": "$cell\n"}
    command("", files=files, periodic=True, keep=True).label(box, 0, 0)
    (folder,) = (tmp_path / "work").iterdir()
    assert (folder / "cell").read_text().splitlines()[1].split() == ["0.0000000000", "8.0000000000", "0.0000000000"]


@pytest.mark.parametrize(
    "changes",
    [
        {"command": []},
        {"timeout": 0.0},
        {"length": "foot"},
        {"files": {"../x": ""}},
        {"files": {"output": ""}},
        {"files": {"x": "$nonsense"}},
        {"files": {"x": "costs 5$"}},
        {"atom": "{symbl}"},
        {"atom": "{x:s}"},
        {"energy": Pattern("(", "eV")},
        {"energy": Pattern("no groups", "eV")},
        {"energy": Pattern(E, "eV/angstrom")},
        {"energy": Pattern(F, "eV")},
        {"energy": Pattern(E, "eV", gradient=True)},
        {"forces": Pattern(F, "eV")},
        {"forces": Pattern(r"(?P<x>.)(?P<y>.)", "eV/bohr")},
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_once(command: Callable[..., Command], changes: dict[str, Any]) -> None:
    """A typing error in template, pattern or unit ends before the first frame."""
    with pytest.raises(ConfigError):
        command("", **changes)
