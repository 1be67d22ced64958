"""What the user wrote in the XML reaches the server unchanged; what i-PI would not start from ends in one sentence."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import ase.data
import ase.io
import numpy as np
import pytest
from ipi.engine.outputs import TrajectoryOutput
from ipi.engine.properties import Trajectories
from ipi.engine.simulation import Simulation as TheirSimulation
from ipi.utils.io.inputs.io_json import xmlnode_to_json
from ipi.utils.io.inputs.io_xml import xml_parse_string
from ipi.utils.messages import verbosity

from beadwork.errors import SimulationError
from beadwork.ipi.advice import advice
from beadwork.ipi.simulation import Extra, Socket, _output, as_xml, read_simulation
from beadwork.units import BOHR, FEMTOSECOND

INPUTS = Path(__file__).parents[2] / "inputs"
SCRIPTS = Path(sys.executable).parent
FORCEFIELD = "<ffsocket name='a' mode='unix'><address>one</address></ffsocket>"
SYSTEM = (
    "<system><initialize nbeads='4'><file mode='xyz'>init.xyz</file></initialize>"
    "<forces><force forcefield='a'/></forces></system>"
)
WATER = """3
# CELL(abcABC): 10 11 12 90 90 60 cell{angstrom} positions{angstrom}
O 0 0 0
H 0.8 0.6 0
H -0.8 0.6 0
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write an input and its start structure to an empty current directory."""
    monkeypatch.chdir(tmp_path)

    def go(body=FORCEFIELD + SYSTEM, structure=WATER, head="<simulation>"):
        Path("init.xyz").write_text(structure)
        Path("input.xml").write_text(f"{head}{body}</simulation>")
        return tmp_path / "input.xml"

    return go


def theirs(path, monkeypatch):
    """i-PI's own objects for this input, bound but with nothing opened."""
    monkeypatch.chdir(path.parent)
    level = verbosity.level
    try:
        with path.open() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # i-PI leaves the closing of its files to Python
            return TheirSimulation.load_from_xml(stream, custom_verbosity="quiet", read_only=True)
    finally:
        verbosity.level = ("quiet", "low", "medium", "high", "debug")[level]


@pytest.mark.parametrize("name", sorted(folder.name for folder in INPUTS.iterdir() if (folder / "input.xml").exists()))
def test_shipped_inputs_say_what_ipi_says(name, monkeypatch, capfd):
    """Every field of every shipped input is the value i-PI itself would run with, and reading it prints nothing."""
    path = INPUTS / name / "input.xml"
    ours = read_simulation(path)
    assert capfd.readouterr().out == ""
    ipi = theirs(path, monkeypatch)
    assert ours.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert ours.directory == path.parent
    assert [(ours.directory / file).is_file() for file in ours.files] == [True]
    assert (ours.step, ours.total_steps, ours.prefix) == (ipi.step, ipi.tsteps, ipi.outtemplate.prefix)
    assert [output.name for output in ours.properties] == ["simulation.out"]
    assert [socket.name for socket in ours.sockets] == list(ipi.fflist)
    for socket in ours.sockets:
        ff = ipi.fflist[socket.name]
        interface = ff.socket
        assert (socket.mode, socket.address, socket.port) == (interface.mode, interface.address, interface.port)
        assert (socket.prefix, socket.batch_size) == (interface.sockets_prefix, interface.batch_size)
        assert (socket.slots, socket.latency, socket.timeout) == (interface.slots, ff.latency, interface.timeout)
        assert (socket.matching, socket.consolidate) == (interface.match_mode, interface.consolidate_messages)
        assert (socket.pbc, socket.offset, socket.active) == (ff.dopbc, ff.offset, None)
    for system, peer in zip(ours.systems, ipi.syslist, strict=True):
        assert [ase.data.chemical_symbols[z] for z in system.numbers] == list(peer.beads.names)
        assert system.nbeads == peer.beads.nbeads == ours.nbeads
        np.testing.assert_allclose(system.positions.reshape(system.nbeads, -1) / BOHR, peer.beads.q, rtol=1e-14)
        np.testing.assert_allclose(system.cell.T / BOHR, peer.cell.h, rtol=1e-14)
        np.testing.assert_allclose(system.masses, ase.data.atomic_masses[system.numbers], rtol=1e-3)
        assert system.temperature == pytest.approx(300)
        assert system.timestep == pytest.approx(peer.motion.dt * FEMTOSECOND)
        for part, component in zip(system.forces, peer.forces.mforces, strict=True):
            assert (part.forcefield, part.nbeads, part.weight) == (component.ffield, component.nbeads, component.weight)
            assert part.mts_weights == tuple(component.mts_weights)


@pytest.mark.parametrize("name", ["water", "zundel-water", "h2-water"])
def test_start_structures_are_liquid_water(name):
    """Nothing overlaps across molecules and every molecule is whole, by ASE's own reader and distances."""
    simulation = read_simulation(INPUTS / name / "input.xml")
    frame = simulation.systems[0].frame()
    assert frame.bead == 0
    frame.check()
    atoms = frame.to_atoms()
    distances = atoms.get_all_distances(mic=True) + 9 * np.eye(len(atoms))
    oxygen, hydrogen = atoms.numbers == 8, atoms.numbers == 1
    assert atoms.cell.cellpar() == pytest.approx([9.86] * 3 + [90] * 3, abs=1e-4)
    bonds = np.sort(distances[np.ix_(oxygen, hydrogen)], axis=1)
    protons = {"water": (2, 0), "zundel-water": (2, 1), "h2-water": (2, 0)}[name]
    bonded = (bonds < 1.1).sum(axis=1)
    assert sorted(bonded.tolist()) == [protons[0]] * (len(bonded) - protons[1]) + [3] * protons[1]
    assert bonds[bonds < 1.1].min() > 0.9
    assert bonds[bonds > 1.1].min() > 1.5
    assert distances[np.ix_(oxygen, oxygen)].min() > 2.4
    free = hydrogen & ~(distances[:, oxygen].min(axis=1) < 1.1)
    assert free.sum() == (2 if name == "h2-water" else 0)
    if free.any():
        assert atoms.get_distance(*np.flatnonzero(free), mic=True) == pytest.approx(0.74, abs=0.03)


def test_positions_and_cell_are_rows_in_angstrom(write):
    """A triclinic cell and positions in Å come back as they stand in the file."""
    system = read_simulation(write()).systems[0]
    assert system.numbers.tolist() == [8, 1, 1]
    for bead in range(4):
        np.testing.assert_allclose(system.positions[bead], [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]], atol=1e-12)
    np.testing.assert_allclose(system.cell, ase.geometry.cellpar_to_cell([10, 11, 12, 90, 90, 60]), atol=1e-6)
    frame = system.frame(bead=2, active=(1, 2))
    assert (frame.numbers.tolist(), frame.bead) == ([1, 1], 2)


def test_every_socket_setting(write):
    """Each setting of an ffsocket arrives, with a value that is not the default."""
    body = (
        "<ffsocket name='a' mode='shm' matching='lock' pbc='True'><address>elsewhere</address><port>4000</port>"
        "<slots>2</slots><latency>0.01</latency><timeout>30</timeout><batch_size>4</batch_size>"
        "<offset units='electronvolt'>2</offset><activelist>[0, 2]</activelist></ffsocket>"
    )
    simulation = read_simulation(write(body + SYSTEM, head="<simulation sockets_prefix='/run/x_'>"))
    socket = simulation.socket()
    assert socket == Socket(
        name="a", mode="shm", address="elsewhere", port=4000, prefix="/run/x_", batch_size=4, slots=2, latency=0.01,
        timeout=30.0, matching="lock", consolidate=True, exit_on_disconnect=True, pbc=True, active=(0, 2),
        offset=pytest.approx(2 * 0.036749326), parent=None, rotated=False,
    )  # fmt: skip
    assert socket.path == Path("/run/x_elsewhere")
    assert simulation.numbers(socket).tolist() == [8, 1]
    assert read_simulation("input.xml", sockets_prefix="/other/").socket().path == Path("/other/elsewhere")


def test_sockets_inside_other_forcefields(write, monkeypatch):
    """Members of a committee and the socket of ffrotations are found; i-PI leaves them the default prefix."""
    inner = "<ffsocket name='{}' mode='unix'><address>{}</address></ffsocket>"
    body = (
        f"<ffcommittee name='c'>{inner.format('m1', 'x')}{inner.format('m2', 'y')}</ffcommittee>"
        f"<ffrotations name='r'><grid_order>2</grid_order>{inner.format('base', 'z')}</ffrotations>"
    )
    system = SYSTEM.replace("<force forcefield='a'/>", "<force forcefield='c'/><force forcefield='r' nbeads='2'/>")
    path = write(body + system, head="<simulation sockets_prefix='/run/x_'>")
    simulation = read_simulation(path)
    ipi = theirs(path, monkeypatch)
    peers = [*ipi.fflist["c"].fflist, ipi.fflist["r"].ff]
    assert [(s.name, s.parent, s.rotated) for s in simulation.sockets] == [
        ("m1", "c", False), ("m2", "c", False), ("base", "r", True),
    ]  # fmt: skip
    assert [str(s.path) for s in simulation.sockets] == [p.socket.sockets_prefix + p.socket.address for p in peers]
    assert [simulation.structures(s) for s in simulation.sockets] == [4, 4, 2]
    assert simulation.numbers(simulation.sockets[1]).tolist() == [8, 1, 1]
    assert not [one for one in advice(simulation) if one.socket == "base" and one.key == "batch_size"]

    # without a socket of its own, a RESTART says so by a name
    direct = "<ffrotations name='a'><ffsocket name='__DUMMY__'/><ffdirect name='d'/></ffrotations>"
    assert read_simulation(write(direct + SYSTEM)).sockets == ()
    assert read_simulation(write(direct.replace("<ffsocket name='__DUMMY__'/>", "") + SYSTEM)).sockets == ()


def test_templates_labels_masses_and_cell(write, monkeypatch):
    """A template makes a system an instance; labels, masses and a cell given by hand override the file, as in i-PI."""
    template = SYSTEM.replace("<system>", "<system prefix='NAME'>").replace(
        "</initialize>",
        "<labels mode='manual'>[O, D, T]</labels>"
        "<masses mode='manual' units='dalton'>[16, 5, 6]</masses>"
        "<cell mode='abc' units='angstrom'>[SIZE, 9, 10]</cell></initialize>",
    )
    body = (
        f"{FORCEFIELD}<system_template><template>{template.replace('<', '&lt;').replace('>', '&gt;')}</template>"
        "<labels>[NAME, SIZE]</labels><instance>[left, 8]</instance><instance>[right, 7]</instance></system_template>"
    )
    path = write(body)
    text = path.read_text().replace("&lt;", "<").replace("&gt;", ">")
    for content in (path.read_text(), text):  # i-PI takes both; the second is how its examples write it
        path.write_text(content)
        simulation = read_simulation(path)
        left, right = simulation.systems
        assert (left.prefix, right.prefix) == ("left", "right")
        assert [o.name for o in simulation.properties] == [f"{s}_i-pi.md" for s in ("left", "right")]
        # what is averaged is of the first system
        assert [files[0] for files in simulation.trajectories] == ["left_i-pi.pos_0.xyz"]
        assert left.numbers.tolist() == [8, 1, 1]
        np.testing.assert_allclose(left.masses, [16, 5, 6])
        np.testing.assert_allclose(right.cell, np.diag([7.0, 9.0, 10.0]), atol=1e-12)
        assert simulation.structures(simulation.socket()) == 8


@pytest.mark.parametrize("mode", ["xyz", "pdb", "ase", "chk"])
def test_start_structures_of_every_format(write, mode, monkeypatch):
    """The same water comes out of each format that i-PI starts from, with the cell of that file."""
    name = {"xyz": "init.xyz", "pdb": "w.pdb", "ase": "w.extxyz", "chk": "w.chk"}[mode]
    path = write(FORCEFIELD + SYSTEM.replace("mode='xyz'", f"mode='{mode}'").replace("init.xyz", name))
    water = ase.Atoms("OHH", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]], cell=[10, 11, 12], pbc=True)
    water.write("w.pdb")
    lines = Path("w.pdb").read_text().splitlines()  # i-PI's reader wants these records alone
    Path("w.pdb").write_text("\n".join([*(s for s in lines if s.startswith(("CRYST1", "ATOM"))), "END"]) + "\n")
    water.write("w.extxyz")
    Path("w.chk").write_text(
        f"<simulation>{FORCEFIELD}<system><beads natoms='3' nbeads='1'><q shape='(1, 9)' units='angstrom'>"
        f"{water.positions.ravel().tolist()}</q><m shape='(3)' units='dalton'>[16, 1, 1]</m>"
        "<names shape='(3)'>[O, H, H]</names></beads><cell units='angstrom'>[10, 0, 0, 0, 11, 0, 0, 0, 12]</cell>"
        "<forces><force forcefield='a'/></forces></system></simulation>"
    )
    system = read_simulation(path).systems[0]
    assert system.numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(system.positions[3], water.positions, atol=1e-3)  # pdb has three decimals
    expected = ase.geometry.cellpar_to_cell([10, 11, 12, 90, 90, 60 if mode == "xyz" else 90])
    np.testing.assert_allclose(system.cell, expected, atol=1e-6)
    peer = theirs(path, monkeypatch).syslist[0]
    np.testing.assert_allclose(system.positions.reshape(4, -1) / BOHR, peer.beads.q, atol=1e-12)


def test_files_are_looked_for_where_ipi_runs_then_beside_the_input(write, tmp_path, monkeypatch):
    """The current directory, as for i-PI, unless only the input's folder has all of them; never half of each. An input
    that names none is run where i-PI would be: in the current directory."""
    path = write()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert read_simulation(path).directory == tmp_path
    Path("init.xyz").write_text(WATER.replace("3\n", "2\n", 1).replace("H -0.8 0.6 0\n", ""))
    simulation = read_simulation(path)
    assert (simulation.directory, simulation.files) == (other, (Path("init.xyz"),))
    assert len(simulation.systems[0].numbers) == 2
    path.write_text(path.read_text().replace("init.xyz", str(tmp_path / "init.xyz")))
    absolute = read_simulation(path)
    assert (absolute.directory, absolute.files) == (other, (tmp_path / "init.xyz",))
    assert len(absolute.systems[0].numbers) == 3
    (tmp_path / "labels.xyz").write_text(WATER)
    path.write_text(
        f"<simulation>{FORCEFIELD}{SYSTEM}</simulation>".replace(
            "</initialize>", "<labels mode='xyz'>labels.xyz</labels></initialize>"
        )
    )
    assert read_simulation(path).directory == tmp_path


def test_a_checkpoint_is_gone_on_with_where_ipi_would(write, tmp_path, monkeypatch):
    """It names no files, so i-PI would write where it is started; nothing draws it to the folder of the checkpoint."""
    path = write()
    simulation = read_simulation(path)
    beads = "<beads nbeads='1' natoms='1'><q shape='(1, 3)'>[0,0,0]</q><m shape='(1)'>[1837]</m>"
    beads += "<names shape='(1)'>[H]</names></beads><cell shape='(3, 3)'>[9,0,0,0,9,0,0,0,9]</cell>"
    system = re.sub("<initialize.*</initialize>", beads, SYSTEM)
    path.write_text(f"<simulation><step>5</step>{FORCEFIELD}{system}</simulation>")
    there = tmp_path / "cont"
    there.mkdir()
    monkeypatch.chdir(there)
    simulation = read_simulation("../input.xml")
    assert (simulation.directory, simulation.files, simulation.step) == (there, (), 5)


PATHS = [
    ("<output prefix='a/b'><properties filename='out'>[step]</properties></output>", "", "no folder {0}/a,"),
    ("<output prefix='b'><trajectory filename='c/pos'>positions</trajectory></output>", "", "no folder {0}/b.c,"),
    ("<output prefix='b'><checkpoint filename='c/chk'/></output>", "", "no folder {0}/b.c,"),
    ("<output prefix='a/b'><properties filename='out'>[step]</properties></output>", "a/b.out", "{0}/a/b.out exists"),
    (
        "<output prefix='a/b'><trajectory filename='x'>positions</trajectory></output>",
        "a/b.x_0.xyz",
        "a/b.x_0.xyz exists",
    ),
    ("<output prefix='a/b'><checkpoint filename='chk'/></output>", "a/b.chk", "a/b.chk exists"),
    ("<output prefix='a/b'><trajectory filename='x'>positions</trajectory></output>", "a/b.y_0.xyz", ""),
    ("<output prefix='a/b'><trajectory filename='x'>positions</trajectory></output>", "a/b.x_centroid.xyz", ""),
    ("<step>1</step><output prefix='a/b'><properties filename='out'>[step]</properties></output>", "a/b.out", ""),
    ("<step>1</step><output prefix='a/b'><checkpoint filename='chk'/></output>", "a/b.chk", "a/b.chk exists"),
    ("<output prefix='b'><properties filename='out'>[step]</properties></output>", "b.out", ""),
]


@pytest.mark.parametrize(("outputs", "there", "said"), PATHS)
def test_outputs_that_ipi_could_not_open(write, tmp_path, outputs, there, said):
    """i-PI makes no folders, and cannot move aside what lies in one: it ends, minutes after the models were loaded."""
    path = write(outputs + FORCEFIELD + SYSTEM)
    if there:
        Path(there).parent.mkdir(exist_ok=True)
        Path(there).touch()
    simulation = read_simulation(path)
    if said:
        with pytest.raises(SimulationError, match=re.escape(said.format(tmp_path))):
            simulation.check_outputs()
    else:
        simulation.check_outputs()


def test_outputs_are_what_ipi_says(write, monkeypatch):
    """Names, strides and columns, which a run that goes on elsewhere has no header for."""
    asked = "[ step, cell_h, temperature(O){kelvin}, stress_md ]"
    outputs = f"<properties stride='3' filename='a'>{asked}</properties><checkpoint filename='c'/>"
    path = write(
        f"<output prefix='p'>{outputs}</output>" + FORCEFIELD + SYSTEM.replace("<system>", "<system prefix='s'>")
    )
    table, checkpoint = read_simulation(path).outputs
    assert (table.name, table.kind, table.stride, checkpoint.name) == ("s_p.a", "properties", 3, "p.c")
    cell, stress = ([f"{name}[{column}]" for column in range(6)] for name in ("cell_h", "stress_md"))
    assert table.columns == ("step", *cell, "temperature(O){kelvin}", *stress)


def test_files_of_a_trajectory_are_those_that_ipi_opens(write, monkeypatch, tmp_path):
    """One a bead or one in all, for every trajectory that i-PI has; for each form, each choice of beads and two digits,
    in i-PI's order, so that the last one is written last."""
    words = list(Trajectories().traj_dict)
    kinds = [(what, "xyz", -1, 4) for what in words]
    kinds += [("positions", form, -1, 4) for form in ("pdb", "ase", "binary")]
    kinds += [("positions", "xyz", bead, beads) for bead, beads in ((-1, 1), (-1, 9), (-1, 10), (-3, 12), (2, 12))]
    assert {"positions", "extras", "x_centroid"} <= set(words)
    for number, (what, form, bead, beads) in enumerate(kinds):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        theirs = TrajectoryOutput("sim.x", what=what, format=form, ibead=bead)
        theirs.system = SimpleNamespace(beads=SimpleNamespace(nbeads=beads))
        theirs.open_stream("w")
        streams = [s for s in (theirs.out if isinstance(theirs.out, list) else [theirs.out]) if s is not None]
        theirs.close_stream()
        given = TrajectoryOutput("x", what=what, format=form, ibead=bead)
        ours = _output(SimpleNamespace(prefix="sim"), 0, given, SimpleNamespace(prefix="", nbeads=beads))
        assert list(ours.files) == [stream.name for stream in streams], (what, form, bead, beads)
        assert bool(ours.every) == (form in ("xyz", "pdb")), "only a text with i-PI's title tells of its step"


def test_json_is_read_as_xml_is(write, tmp_path):
    """i-PI 3.3 takes its input as JSON too, by the name's ending; what is no JSON is a sentence."""
    path = write()
    same = tmp_path / "input.json"
    same.write_text(json.dumps(xmlnode_to_json(xml_parse_string(path.read_text()))))
    one, two = read_simulation(path), read_simulation(same)
    assert (two.sockets, two.outputs, two.files) == (one.sockets, one.outputs, one.files)
    assert (two.systems[0].positions == one.systems[0].positions).all()
    (tmp_path / "again.xml").write_bytes(as_xml(same))
    assert read_simulation(tmp_path / "again.xml").sockets == one.sockets
    for text in (path.read_text(), "[1, 2]", "{}", '{"output": 7'):
        same.write_text(text)
        with pytest.raises(SimulationError):
            read_simulation(same)


def test_files_are_looked_for_where_the_caller_says(write, tmp_path, monkeypatch):
    """A caller that knows where i-PI will run gets the files that lie there, never those of the current directory;
    where they are missing it is told of that folder alone."""
    path = write()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    Path("init.xyz").write_text(WATER.replace("3\n", "2\n", 1).replace("H -0.8 0.6 0\n", ""))
    simulation = read_simulation(path, directory=tmp_path)
    assert (simulation.directory, simulation.files) == (tmp_path, (Path("init.xyz"),))
    assert len(simulation.systems[0].numbers) == 3
    (tmp_path / "init.xyz").unlink()
    with pytest.raises(SimulationError, match=rf"no file in {tmp_path}; put it there$"):
        read_simulation(path, directory=tmp_path)


def test_restart_of_a_real_run(monkeypatch, tmp_path):
    """The RESTART that i-PI leaves behind describes the same sockets, species and forces as the input did."""
    source = INPUTS / "water-mts"
    # a unix socket's name must stay short, so not under tmp_path
    with tempfile.TemporaryDirectory(prefix="ipi") as short:
        text = (source / "input.xml").read_text().replace("<simulation ", f"<simulation sockets_prefix='{short}/' ")
        text = re.sub("<total_steps>.*<", "<total_steps>2<", text)
        (tmp_path / "input.xml").write_text(text)
        (tmp_path / "init.xyz").write_text((source / "init.xyz").read_text())
        monkeypatch.chdir(tmp_path)
        before = read_simulation("input.xml")
        paths = [socket.path for socket in before.sockets]
        assert not any(path.exists() for path in paths)
        with (tmp_path / "log").open("w") as log:
            command = [sys.executable, SCRIPTS / "i-pi", "input.xml"]
            processes = [subprocess.Popen(command, stdout=log, stderr=log)]
            try:
                deadline = time.monotonic() + 60
                while not all(path.exists() for path in paths):
                    assert processes[0].poll() is None, (tmp_path / "log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                for path in paths:
                    driver = [sys.executable, SCRIPTS / "i-pi-py_driver", "-m", "gas", "-u", "-a", path.name]
                    processes.append(subprocess.Popen([*driver, "-S", f"{short}/"], stdout=log, stderr=log))
                assert processes[0].wait(60) == 0, (tmp_path / "log").read_text()
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
    after = read_simulation("RESTART")
    assert after.step == 2
    assert after.sockets == before.sockets
    assert (after.directory, after.files) == (tmp_path, ())
    assert after.properties == before.properties
    assert [system.forces for system in after.systems] == [system.forces for system in before.systems]
    old, new = before.systems[0], after.systems[0]
    np.testing.assert_array_equal(new.numbers, old.numbers)
    np.testing.assert_allclose(new.cell, old.cell, rtol=1e-7)
    assert new.nbeads == 16
    # two steps without forces: moved, but by less than an angstrom
    assert 0 < np.abs(new.positions - old.positions).max() < 1
    assert [one.key for one in advice(after) if one.socket is None] == ["total_steps"]


def test_choice_of_socket(write):
    """One socket is taken, several want a name, none is said so; the names are listed."""
    two = FORCEFIELD + FORCEFIELD.replace("'a'", "'b'")
    simulation = read_simulation(write(two + SYSTEM))
    assert simulation.socket("b").name == "b"
    with pytest.raises(SimulationError, match=r"several ffsockets \(a, b\)"):
        simulation.socket()
    with pytest.raises(SimulationError, match=r"no ffsocket named 'c'; it has: a, b"):
        simulation.socket("c")
    with pytest.raises(SimulationError, match=r"no <force> of .* uses the forcefield 'b'"):
        simulation.numbers(simulation.socket("b"))
    lonely = read_simulation(write("<fflj name='a'/>" + SYSTEM))
    assert (lonely.sockets, advice(lonely)) == ((), [])
    with pytest.raises(SimulationError, match="has no <ffsocket>"):
        lonely.socket()


def test_several_systems_behind_one_socket(write):
    """Species never travel: the same atoms in the same order are served, anything else is refused."""
    path = write(FORCEFIELD + SYSTEM + SYSTEM.replace("nbeads='4'", "nbeads='8'"))
    simulation = read_simulation(path)
    assert (simulation.nbeads, simulation.structures(simulation.socket())) == (8, 12)
    assert simulation.numbers(simulation.socket()).tolist() == [8, 1, 1]
    path.write_text(path.read_text().replace("init.xyz", "swapped.xyz", 1))
    lines = WATER.splitlines()
    Path("swapped.xyz").write_text("\n".join([*lines[:2], lines[3], lines[2], lines[4]]) + "\n")
    simulation = read_simulation(path)
    with pytest.raises(SimulationError, match=r"systems 0 and 1 of .* differ in their atoms"):
        simulation.numbers(simulation.socket())


def test_keys_that_the_outputs_expect(write):
    """An output that nobody's extras fill would stop i-PI, and a key that is to be interpolated, once the extras are
    looked at: both are known beforehand, with those who may send them.
    """
    output = "<output><trajectory filename='x' extra_type='{}'> extras </trajectory></output>"
    path = write(output.format("committee_pot, dipole") + FORCEFIELD + SYSTEM)
    assert read_simulation(path).extras == (Extra("committee_pot", ("a",)), Extra("dipole", ("a",)))
    assert read_simulation(write(output.format("raw") + FORCEFIELD + SYSTEM)).extras == ()
    force = "<force forcefield='a'><interpolate_extras>[mu]</interpolate_extras></force>"
    system = SYSTEM.replace("<force forcefield='a'/>", force)
    assert read_simulation(write(FORCEFIELD + system)).extras == ()  # i-PI looks at no extras
    assert read_simulation(write(output.format("raw") + FORCEFIELD + system)).extras == (Extra("mu", ("a",)),)


def test_isotopes_have_their_names_and_masses(write):
    """D counts as H for the models alone; of two masses under one name none is the name's."""
    structure = WATER.replace("H -0.8", "D -0.8")
    (system,) = read_simulation(write(structure=structure)).systems
    assert system.labels == {"O": 1, "H": 1, "D": 1}
    assert system.label_masses == pytest.approx({"O": 15.9994, "H": 1.00794, "D": 2.0141}, rel=1e-4)
    masses = "<masses mode='manual' units='dalton'>[18, 1, 3]</masses></initialize>"
    (system,) = read_simulation(write(FORCEFIELD + SYSTEM.replace("</initialize>", masses))).systems
    assert system.label_masses == {"O": pytest.approx(18), "H": None}


@pytest.mark.parametrize(
    ("smotion", "motion", "modes", "kelvin"),
    [
        ("", "", (), 300),
        ("<smotion mode='remd'/>", "", ("remd",), None),
        ("<smotion mode='multi'><smotion mode='metad'/><smotion mode='remd'/></smotion>", "", ("metad", "remd"), None),
        ("<smotion mode='metad'/>", "", ("metad",), 300),
        ("", "<motion mode='t_ramp'><t_ramp><t_start>300</t_start><t_end>400</t_end></t_ramp></motion>", (), None),
    ],
)
def test_a_temperature_that_changes_is_none(write, smotion, motion, modes, kelvin):
    """What is averaged at the input's temperature has to be held at it."""
    ensemble = f"<ensemble><temperature units='kelvin'>300</temperature></ensemble>{motion}"
    simulation = read_simulation(write(FORCEFIELD + SYSTEM.replace("</system>", f"{ensemble}</system>") + smotion))
    assert simulation.smotions == modes
    assert simulation.temperature == (kelvin and pytest.approx(kelvin))
    assert simulation.systems[0].temperature == pytest.approx(300)


FORCE = "<force forcefield='{}' weight='{}' nbeads='{}'><interpolate_extras>[{}]</interpolate_extras></force>"
B = "<ffsocket name='b' mode='unix'><address>two</address></ffsocket>"


@pytest.mark.parametrize(
    ("forces", "more", "of", "share"),
    [
        ([("a", 0.5, 4, "")], "", "a", 0.5),
        ([("b", 1.0, 4, ""), ("a", 0.5, 4, "")], "", "a", 0.5),
        ([("b", 1.0, 4, ""), ("a", 0.5, 4, "")], "", "ab", None),
        ([("b", 0.5, 4, ""), ("a", 0.5, 4, "")], "", "ab", 0.5),
        ([("a", 0.5, 4, ""), ("a", 0.75, 4, "")], "", "a", 1.25),
        ([("a", 1.0, 4, ""), ("a", -1.0, 2, "")], "", "a", None),
        ([("a", 0.5, 2, "committee_pot")], "", "a", 1.0),
        ([("a", 0.5, 4, "")], "<hamiltonian_weights>[0.25]</hamiltonian_weights>", "a", 0.125),
        ([("a", 0.5, 4, "committee_pot")], "<hamiltonian_weights>[0.25]</hamiltonian_weights>", "a", 0.25),
        ([("a", 0.0, 4, ""), ("b", 1.0, 4, "")], "", "a", 0.0),
        ([("b", 1.0, 4, "")], "", "a", None),
    ],
)
def test_what_extras_count_in_the_potential(write, forces, more, of, share):
    """i-PI multiplies energies with weights of its own, and hands on extras as they came unless it interpolates them;
    where two senders count differently, or the same one on other beads too, no number is right."""
    system = SYSTEM.replace("<force forcefield='a'/>", "".join(FORCE.format(*one) for one in forces))
    ensemble = f"<ensemble><temperature units='kelvin'>300</temperature>{more}</ensemble>"
    path = write(FORCEFIELD + B + system.replace("</system>", f"{ensemble}</system>"))
    (found,) = read_simulation(path).systems
    assert found.share("committee_pot", of) == share
    path.write_text(path.read_text().replace("</interpolate_extras>", "</interpolate_extras><mts_weights>[0.5,0.25]"
                                             "</mts_weights>"))  # fmt: skip
    interpolated = all("committee_pot" in one for one in forces)
    (found,) = read_simulation(path).systems
    assert found.share("committee_pot", of) == (share if interpolated or share is None else 0.75 * share)


@pytest.mark.parametrize(
    ("mode", "motion", "key"),
    [
        ("driven_dynamics", "<driven_dynamics mode='eda-nve'><bec mode='driver'/></driven_dynamics>", "BEC"),
        ("instanton", "<instanton><friction>True</friction><frictionSD>True</frictionSD></instanton>", "friction"),
        ("instanton", "<instanton/>", None),
    ],
)
def test_extras_that_a_motion_expects(write, mode, motion, key):
    """Born charges of a driven run and the friction of an instanton come in the extras: i-PI stops without them."""
    system = SYSTEM.replace("</forces>", f"</forces><motion mode='{mode}'>{motion}</motion>")
    assert read_simulation(write(FORCEFIELD + system)).extras == ((Extra(key, ("a",)),) if key else ())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("<batch_size>4</batch_size><latency>1e-3</latency>", None),
        ("<batch_size>4</batch_size>", "latency 0.0001 s"),
        ("<batch_size>3</batch_size><latency>1e-3</latency>", "batch_size 3 does not equal the 4 structures"),
        ("<batch_size>4</batch_size><latency>1e-3</latency><timeout>5</timeout>", "timeout 5 s"),
        ("<slots>3</slots>", "slots 3"),
        ("", "without batching, 4 structures"),
    ],
)
def test_each_setting_that_hangs_or_slows_has_its_line(write, settings, said):
    """Each setting that hangs or slows has its line, and a good input has none."""
    lines = list(
        map(str, advice(read_simulation(write(FORCEFIELD.replace("</ffsocket>", settings + "</ffsocket>") + SYSTEM))))
    )
    if said is None:
        assert lines == []
    else:
        assert sum(said in line for line in lines) == 1


@pytest.mark.parametrize(
    ("servers", "settings", "said"),
    [
        (2, "<batch_size>2</batch_size><latency>1e-3</latency>", None),
        (3, "<batch_size>2</batch_size><latency>1e-3</latency>", None),
        (4, "", None),
        (2, "<batch_size>4</batch_size><latency>1e-3</latency>", "set <batch_size> 2"),
        (2, "", "<batch_size> 2 sends them in one a server"),
        (5, "<batch_size>1</batch_size>", "5 servers share the 4 structures"),
    ],
)
def test_advice_for_several_servers(write, servers, settings, said):
    """Each server is to get one piece of every step, and no more servers than there are pieces."""
    found = advice(
        read_simulation(write(FORCEFIELD.replace("</ffsocket>", settings + "</ffsocket>") + SYSTEM)), servers
    )
    lines = [str(one) for one in found if one.key != "slots"]
    assert lines == [] if said is None else said in lines[0]


def test_advice_on_attributes(write):
    """Matching, wrapping and an unused socket are attributes' business, and have their lines too."""
    batched = FORCEFIELD.replace("</ffsocket>", "<batch_size>4</batch_size><latency>1</latency></ffsocket>")
    found = advice(read_simulation(write(batched.replace("mode=", "matching='lock' pbc='True' mode=") + SYSTEM)))
    assert [one.key for one in found] == ["matching", "exit_on_disconnect", "pbc"]
    found = advice(read_simulation(write(batched + batched.replace("'a'", "'b'") + SYSTEM)))
    assert list(map(str, found)) == ["b: no <force> uses it, so i-PI will never ask it"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<ffsocket name='a'", "is no XML .line 1: "),
        ("<nonsense/>", "does not understand .*Tag name 'nonsense' is not a recognized"),
        (FORCEFIELD, "has no <system>"),
        (SYSTEM, "names the forcefield 'a', which the input does not define"),
        (FORCEFIELD.replace("<address>", "<slots>many</slots><address>") + SYSTEM, "i-PI .*many"),
        (FORCEFIELD.replace("unix", "pigeon") + SYSTEM, "refuses .*pigeon"),
        (FORCEFIELD.replace("name='a'", "") + SYSTEM, "'name' is mandatory"),
        (FORCEFIELD.replace("<address>", "<batch_size>4</batch_size><consolidate_messages>False"
         "</consolidate_messages><address>") + SYSTEM, "batch_size 4 with consolidate_messages False"),
        (FORCEFIELD + SYSTEM.replace("init.xyz", "gone.xyz"), "starts from 'gone.xyz', which is no file in "),
        (FORCEFIELD + SYSTEM.replace("<system>", "<system copies='2'>"), "'copies' is not a recognized"),
        (FORCEFIELD + "<system><forces><force forcefield='a'/></forces></system>", "could not initialize the atomic"),
        (FORCEFIELD + SYSTEM.replace("mode='xyz'", "mode='pdb'"), "cannot start system 0 .*init.xyz"),
    ],
)  # fmt: skip
def test_a_bad_input_is_one_line_that_names_the_file(write, body, said, capfd):
    """What i-PI would not start from is one SimulationError of one line that names the file, and nothing is printed."""
    path = write(body)
    with pytest.raises(SimulationError, match=said) as caught:
        read_simulation(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ("", "there is no structure in it"),
        ("nothing of the kind\n", "there is no structure in it"),
        (WATER.replace("H -0.8", "Hw -0.8"), "atom 2 of system 0 of .* is called 'Hw', which is no element"),
        (WATER.replace("0.8 0.6", "0.8 zero"), "could not convert string to float"),
        (WATER.replace("CELL(abcABC): 10 11 12 90 90 60 cell{angstrom} ", ""), "could not initialize the cell"),
        (WATER.replace("cell{angstrom}", "cell{parsec}"), "parsec"),
    ],
)
def test_a_bad_structure_names_the_atom_or_the_file(write, structure, said):
    """A start structure that is no structure, or no chemistry, says which atom or file."""
    path = write(structure=structure)
    with pytest.raises(SimulationError, match=said) as caught:
        read_simulation(path)
    assert "\n" not in str(caught.value)


def test_atoms_that_are_no_elements(write):
    """Whatever i-PI has a mass for can be simulated; it is refused where it would travel, and the whole input where
    nothing else is in it.
    """
    path = write(structure=WATER.replace("H 0.8", "X 0.8"))
    simulation = read_simulation(path)
    assert simulation.systems[0].frame().numbers.tolist() == [8, 1]
    said = "is called {!r}, which is no element, so no model can evaluate it; name it by its element"
    with pytest.raises(SimulationError, match=f"atom 1 of system 0 of .* {said.format('X')}"):
        simulation.numbers(simulation.socket())
    active = FORCEFIELD.replace("</ffsocket>", "<activelist>[0, 2]</activelist></ffsocket>")
    simulation = read_simulation(write(active + SYSTEM, WATER.replace("H 0.8", "X 0.8")))
    assert simulation.numbers(simulation.socket()).tolist() == [8, 1]
    with pytest.raises(SimulationError, match=f"atom 0 of system 0 of .* {said.format('H2')}"):
        read_simulation(write(structure="1\n# CELL(abcABC): 9 9 9 90 90 90\nH2 0 0 0\n"))


def test_missing_foreign_and_empty_files(tmp_path):
    """Not there, a directory, XML of somebody else: one sentence each."""
    with pytest.raises(SimulationError, match=r"cannot read the i-PI input .*gone.xml: No such file"):
        read_simulation(tmp_path / "gone.xml")
    with pytest.raises(SimulationError, match=r"cannot read the i-PI input .*: Is a directory"):
        read_simulation(tmp_path)
    for content, said in ((b"<html/>", "but of <html>"), (b"\x00\xff" * 9, "is no XML")):
        (tmp_path / "f.xml").write_bytes(content)
        with pytest.raises(SimulationError, match=said):
            read_simulation(tmp_path / "f.xml")


def test_a_torn_restart(write):
    """Wherever i-PI was killed as it wrote, the file is named, with the one that i-PI had moved aside before."""
    path = write(FORCEFIELD + SYSTEM)
    whole = path.read_bytes()
    older = path.with_name(f"#{path.name}#0#")
    for size in (0, 1, 15, *range(20, len(whole.rstrip()) - 1, 37), len(whole.rstrip()) - 1):
        path.write_bytes(whole[:size])
        os.utime(path, (0, 0))  # nobody writes it any more, so nobody waits
        with pytest.raises(
            SimulationError, match=rf"{path} ends in the middle .*; take a checkpoint of that run"
        ) as caught:
            read_simulation(path)
        assert "\n" not in str(caught.value)
    older.write_bytes(whole)
    with pytest.raises(SimulationError, match=rf"ends in the middle .*; take the one before it, {older}"):
        read_simulation(path)
    assert read_simulation(older).step == 0


def test_a_restart_that_is_being_written(write):
    """i-PI writes in place: half a file is waited for, and a file that stays half is given up soon."""
    path = write(FORCEFIELD + SYSTEM)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    timer = threading.Timer(0.5, path.write_bytes, [whole])
    timer.start()
    assert read_simulation(path).sha256 == hashlib.sha256(whole).hexdigest()
    timer.join()
    path.write_bytes(whole[: len(whole) // 2])
    begin = time.monotonic()
    with pytest.raises(SimulationError, match="ends in the middle"):
        read_simulation(path)
    assert 1 < time.monotonic() - begin < 10


def test_active_atoms_that_do_not_exist(write):
    """An activelist beyond the last atom is refused before i-PI trips over it."""
    active = FORCEFIELD.replace("</ffsocket>", "<activelist>[0, 3]</activelist></ffsocket>")
    simulation = read_simulation(write(active + SYSTEM))
    with pytest.raises(SimulationError, match=r"<activelist> of ffsocket 'a' .* outside 0 to 2: \[0, 3\]"):
        simulation.numbers(simulation.socket())


def test_an_output_without_a_stride(write):
    """i-PI divides by it in its first step: the file is refused before that."""
    outputs = "<output><properties stride='0' filename='out'> [ step ] </properties></output>"
    with pytest.raises(SimulationError, match=r"the stride of out in .* is below 1"):
        read_simulation(write(outputs + FORCEFIELD + SYSTEM))
