"""Every kind of step that i-PI 3.3.1 has: what is said of it, against i-PI's own output, written while it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.events import Moment
from beadwork.harvest.select import SelectionWindow, Selector
from beadwork.ipi.output_steps import Written
from beadwork.ipi.simulation import read_simulation
from beadwork.ipi.steps import Steps, pattern
from beadwork.ipi.transport import Line, address_of
from beadwork.potential.analytic import Harmonic
from beadwork.potential.potential import Potential
from beadwork.serve.server import Server
from beadwork.serve.service import Service

PAGE = Path(__file__).parents[2] / "docs" / "steps.md"
COOLDOWN = 3
SITES = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
TIMESTEP = "<timestep units='femtosecond'>0.5</timestep>"
THERMOSTAT = "<thermostat mode='pile_l'><tau units='femtosecond'>50</tau></thermostat>"
CELL = "<thermostat mode='langevin'><tau units='femtosecond'>100</tau></thermostat><tau units='femtosecond'>100</tau>"
BAROSTATS = {
    "npt": f"<barostat mode='isotropic'>{CELL}</barostat>",
    "scnpt": f"<barostat mode='sc-isotropic'>{CELL}</barostat>",
    "nst": f"<barostat mode='anisotropic'>{CELL}<h0>[37.8, 0, 0, 0, 37.8, 0, 0, 0, 37.8]</h0></barostat>",
}
SHIFTS = "<pos_shift>0.01</pos_shift><energy_shift>0.001</energy_shift><output_shift>0.001</output_shift>"
HESSIAN = "<dynmat shape='(9, 9)'>[ " + ", ".join(str(4e-5 * (k % 10 == 0)) for k in range(81)) + " ]</dynmat>"
BEC = "[ " + ", ".join(str(float(k % 9 % 4 == 0)) for k in range(108)) + " ]"
RAMP = "<t_start units='kelvin'>300</t_start><t_end units='kelvin'>310</t_end><total_steps>10</total_steps>"
SPLIT = (
    "<force forcefield='ff'><mts_weights>[1,0]</mts_weights></force>"
    "<force forcefield='gg' nbeads='2'><mts_weights>[0,1]</mts_weights></force>"
)


def motion(mode: str, inside: str, more: str = "") -> str:
    """One `<motion>`."""
    return f"<motion mode='{mode}'>{more}{inside}</motion>"


def dynamics(mode: str = "nvt", more: str = "", splitting: str = "obabo") -> str:
    """Molecular dynamics of an ensemble."""
    inside = TIMESTEP + more + BAROSTATS.get(mode, "") + (THERMOSTAT if mode != "nve" else "")
    return motion("dynamics", f"<dynamics mode='{mode}' splitting='{splitting}'>{inside}</dynamics>")


def driven(mode: str) -> str:
    """Dynamics in an electric field, with Born charges that are given."""
    field = "<efield><amp>[0, 0, 0.01]</amp><freq>0.01</freq></efield>"
    inside = TIMESTEP + (THERMOSTAT if mode == "eda-nvt" else "") + field
    inside += f"<bec mode='manual' shape='(36, 3)'>{BEC}</bec>"
    return motion("driven_dynamics", f"<driven_dynamics mode='{mode}'>{inside}</driven_dynamics>")


def multi(*motions: str) -> str:
    """Several, one after the other."""
    return motion("multi", "".join(motions))


def search(mode: str) -> str:
    """A geometry optimisation."""
    return motion("minimize", f"<optimizer mode='{mode}'/>")


@dataclass(frozen=True)
class Kind:
    """What moves the system. told: by whom a step is told. spread: the beads start apart."""

    motion: str
    told: str
    beads: int = 4
    spread: bool = False
    steps: int = 7
    forces: str = "<force forcefield='ff'/>"
    asked: tuple[str, ...] = ()
    beside: str = ""
    systems: int = 1
    around: str = ""
    atoms: tuple[str, ...] = ("O", "H", "H")


KINDS = {
    "nve": Kind(dynamics("nve"), "input"),
    "nvt": Kind(dynamics(), "input"),
    "nvt, baoab": Kind(dynamics(splitting="baoab"), "input"),
    "nvt, beads apart": Kind(dynamics(), "input", spread=True),
    "constrained centroid (nvt-cc)": Kind(dynamics("nvt-cc"), "input", spread=True),
    "npt": Kind(dynamics("npt"), "input"),
    "nst": Kind(dynamics("nst"), "input"),
    "multiple time steps, one forcefield": Kind(
        dynamics(more="<nmts>[2]</nmts>"),
        "input",
        forces="<force forcefield='ff'><mts_weights>[1]</mts_weights></force>",
    ),
    "multiple time steps with contraction": Kind(dynamics(more="<nmts>[1,3]</nmts>"), "input", forces=SPLIT),
    "the same, baoab, npt": Kind(dynamics("npt", "<nmts>[1,3]</nmts>", "baoab"), "input", forces=SPLIT),
    "one forcefield at two levels": Kind(
        dynamics(more="<nmts>[1,3]</nmts>"), "input", forces=SPLIT.replace("gg", "ff").replace("'2'", "'1'")
    ),
    "contraction": Kind(dynamics(), "input", forces="<force forcefield='ff'/><force forcefield='gg' nbeads='2'/>"),
    "a forcefield used twice": Kind(
        dynamics(), "input", forces="<force forcefield='ff'/><force forcefield='ff' weight='0.5'/>"
    ),
    "a forcefield used twice, contracted": Kind(
        dynamics(), "input", forces="<force forcefield='ff'/><force forcefield='ff' nbeads='2' weight='0.5'/>"
    ),
    "Suzuki-Chin (sc)": Kind(dynamics("sc"), "output", spread=True),
    "Suzuki-Chin (sc), nmts 2": Kind(
        dynamics("sc", "<nmts>[2]</nmts>"),
        "output",
        forces="<force forcefield='ff'><mts_weights>[1]</mts_weights></force>",
    ),
    "Suzuki-Chin (scnpt), nmts 2": Kind(
        dynamics("scnpt", "<nmts>[2]</nmts>"),
        "output",
        spread=True,
        forces="<force forcefield='ff'><mts_weights>[1]</mts_weights></force>",
    ),
    "nvt with scaledcoords": Kind(dynamics(), "output", asked=("scaledcoords",)),
    "nvt with scaledcoords in a file of stride 2": Kind(
        dynamics(), "output", beside="<properties stride='2' filename='two'> [ step, scaledcoords ] </properties>"
    ),
    "nvt with isotope_scfep": Kind(dynamics(), "output", asked=("isotope_scfep(alpha=2;atom=H)",)),
    "nvt with displacedpath": Kind(dynamics(), "output", asked=("displacedpath(1;1;1)",)),
    "nvt with pressure_tdsc": Kind(dynamics(), "output", asked=("pressure_tdsc",)),
    "nvt with forces_sc": Kind(
        dynamics(), "output", beside="<trajectory stride='2' filename='sc' format='xyz'> forces_sc </trajectory>"
    ),
    "replica exchange": Kind(
        dynamics(), "input", systems=2, around="<smotion mode='remd'><remd><stride>2</stride></remd></smotion>"
    ),
    "multi of two dynamics": Kind(multi(dynamics("nve"), dynamics()), "input"),
    "temperature ramp": Kind(multi(dynamics(), motion("t_ramp", f"<t_ramp>{RAMP}</t_ramp>")), "input"),
    "alchemy": Kind(
        multi(dynamics(), motion("alchemy", "<alchemy><names>[H,D]</names><nxc>3</nxc></alchemy>")),
        "input",
        atoms=("O", "H", "D"),
    ),
    "atom swaps": Kind(
        multi(dynamics(), motion("atomswap", "<atomswap><names>[O,H]</names><nxc>2</nxc></atomswap>")), "output"
    ),
    "driven dynamics (eda-nve)": Kind(driven("eda-nve"), "input"),
    "driven dynamics (eda-nvt)": Kind(driven("eda-nvt"), "input"),
    "minimisation (bfgs)": Kind(search("bfgs"), "output", beads=1, spread=True),
    "minimisation (bfgstrm)": Kind(search("bfgstrm"), "output", beads=1, spread=True),
    "minimisation (lbfgs)": Kind(search("lbfgs"), "output", beads=1, spread=True),
    "minimisation (sd)": Kind(search("sd"), "output", beads=1, spread=True),
    "minimisation (cg)": Kind(search("cg"), "output", beads=1, spread=True),
    "vibrations (fd)": Kind(
        motion("vibrations", f"<vibrations mode='fd'>{SHIFTS}</vibrations>"), "output", beads=1, steps=12
    ),
    "vibrations (nmfd)": Kind(
        motion("vibrations", f"<vibrations mode='nmfd'>{SHIFTS}{HESSIAN}</vibrations>"), "output", beads=1, steps=12
    ),
    "vibrations (enmfd)": Kind(
        motion("vibrations", f"<vibrations mode='enmfd'>{SHIFTS}{HESSIAN}</vibrations>"), "output", beads=1, steps=12
    ),
    "self-consistent phonons": Kind(
        motion("scp", f"<scp mode='qn'>{HESSIAN}<max_steps>4</max_steps><max_iter>2</max_iter></scp>"),
        "output",
        beads=1,
    ),
    "anharmonic normal modes": Kind(
        motion("normalmodes", f"<normalmodes mode='imf'>{HESSIAN}</normalmodes>"),
        "output",
        beads=1,
        steps=12,
    ),
    "nudged elastic band, ends fixed": Kind(
        motion("neb", "<neb_optimizer mode='fire'><tolerances><force>1e-12</force></tolerances></neb_optimizer>"),
        "output",
        beads=5,
        spread=True,
    ),
    "instanton": Kind(
        motion(
            "instanton",
            "<instanton mode='rate'><delta>0.3</delta><opt>nichols</opt><hessian_init>true</hessian_init></instanton>",
        ),
        "output",
        spread=True,
    ),
    "replay": Kind(motion("replay", "<file mode='xyz'>again.xyz</file>"), "output", beads=1),
    "dummy": Kind(motion("dummy", ""), "output"),
}


def xyz(atoms: tuple[str, ...], frames: np.ndarray) -> str:
    """Structures in Å as i-PI reads them."""
    text = ""
    for frame in frames:
        text += f"{len(atoms)}\n# CELL(abcABC): 20 20 20 90 90 90 cell{{angstrom}} positions{{angstrom}}\n"
        text += "".join(f"{name} {x:.8f} {y:.8f} {z:.8f}\n" for name, (x, y, z) in zip(atoms, frame, strict=True))
    return text


def written(folder: Path, kind: Kind) -> Path:
    """The input with its structures, in a folder."""
    chance = np.random.default_rng(3)
    apart = SITES + 0.05 * chance.normal(size=(kind.beads, 3, 3))
    (folder / "init.xyz").write_text(xyz(kind.atoms, apart if kind.spread else SITES[None] + 0.01))
    (folder / "again.xyz").write_text(xyz(kind.atoms, SITES + 0.05 * chance.normal(size=(kind.steps + 2, 3, 3))))
    names = re.findall(r"forcefield='(\w+)'", kind.forces)
    sockets = "".join(
        f"<ffsocket name='{name}' mode='unix' pbc='False'><address>{name}</address><latency>1e-4</latency></ffsocket>"
        for name in dict.fromkeys(names)
    )
    outside = "<pressure units='bar'>1</pressure>" if "npt'" in kind.motion else ""
    outside += "<stress units='bar'>[1, 0, 0, 0, 1, 0, 0, 0, 1]</stress>" if "'nst'" in kind.motion else ""
    systems = "".join(
        f"<system prefix='{f's{k}' if k else ''}'><initialize nbeads='{kind.beads}'><file mode='xyz'>init.xyz</file>"
        f"<velocities mode='thermal' units='kelvin'>300</velocities></initialize><forces>{kind.forces}</forces>"
        f"<ensemble><temperature units='kelvin'>{300 + 30 * k}</temperature>{outside}</ensemble>{kind.motion}</system>"
        for k in range(kind.systems)
    )
    asked = ", ".join(["step", "potential", "conserved", *kind.asked])
    path = folder / "input.xml"
    path.write_text(
        f"<simulation verbosity='low' sockets_prefix='{folder}/s-'><output prefix='run'>"
        f"<properties stride='1' filename='out'> [ {asked} ] </properties>{kind.beside}</output>"
        f"<total_steps>{kind.steps}</total_steps><prng><seed>42</seed></prng>{sockets}{systems}{kind.around}</simulation>"
    )
    return path


def under_way(folder: Path, kind: Kind) -> int:
    """The step that i-PI is at, by the number of lines in its files: read here in the plainest way there is."""

    def lines(name: str) -> int:
        return len([line for line in (folder / name).read_text().splitlines() if line[:1] not in "#"])

    step = min(lines("s1_run.out" if k else "run.out") for k in range(kind.systems))
    if "two" in kind.beside and step and lines("run.two") < (step + 1) // 2:
        step -= 1  # that of stride 2 is not through with it
    if "forces_sc" in kind.beside and step:
        files = [path.read_text().count("Step:") for path in folder.glob("run.sc_*")]
        step -= min(files) < (step + 1) // 2
    return step


@dataclass
class Watched:
    """A forcefield's count, and beside it that of a server elsewhere, which cannot read what i-PI writes."""

    steps: Steps
    elsewhere: Steps
    folder: Path
    kind: Kind
    found: list[tuple[int, int, Moment, bool | None, Moment, bool | None]]
    joined = False
    pattern: Any = None

    def count(self, names: Any, positions: Any, peers: Any, written: Any, *, ours: bool) -> tuple[Moment, bool | None]:
        """Count in both ways, and note the truth beside them."""
        truth = under_way(self.folder, self.kind)
        here, begins = self.steps.count(names, positions, peers, written, ours=ours)
        there, sure = self.elsewhere.count(names, positions, peers, None, ours=ours)
        self.found.append((truth, len(names), here, begins, there, sure))
        return here, begins


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_step(name: str, ipi: Any, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is i-PI's; a committee that waits is taken up at the first evaluation of a step and at no other, at
    every step where the step is told; frames are kept as far apart as the cool-down says. Elsewhere, where only the
    input can tell, nothing is said that is not so."""
    kind = KINDS[name]
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, kind)
    simulation = read_simulation(path, directory=tmp_path)
    services = []
    for socket in simulation.sockets:
        each = pattern(simulation, socket)
        assert (each is not None) == (kind.told == "input")
        line = Line(address_of(simulation, socket), 1, False, 3)
        service = Service(line, Potential(Harmonic(8.0, SITES)), simulation.numbers(socket), None, pattern=each)
        counts = [Steps(each, np.unique(simulation.systems[0].positions, axis=0)) for _ in range(2)]
        if "nbeads" in kind.forces and kind.spread:
            counts = [Steps(each), Steps(each)]
        service.steps = Watched(*counts, tmp_path, kind, [])  # type: ignore[assignment]
        services.append(service)
    process = start("i-pi", ipi.BIN / "i-pi", path.name, cwd=tmp_path)
    Server(services, patience=60, written=Written(simulation.outputs), stopped=lambda: process.poll() is not None).run()
    assert process.wait(60) == 0
    done = int(re.search(r"<step>\s*(\d+)", (tmp_path / "RESTART").read_text())[1])  # type: ignore[index]
    for service in services:
        found = service.steps.found  # type: ignore[attr-defined]
        assert found
        selector = Selector(SelectionWindow(force_low=0.0), cooldown=COOLDOWN, min_distance=0.0)
        last = None
        begun, kept = set(), []
        for truth, _, here, begins, there, sure in found:
            assert here == Moment(truth), f"{here} at step {truth}"
            assert (begins is True) == (truth != last), f"step {truth} after {last}"
            if kind.told == "input":
                assert (there, sure) == (here, begins)
            else:
                assert there == Moment(None)
                assert sure is (None if last is not None else True)
            last = truth
            begun |= {truth} if begins else set()
            frame = simulation.systems[0].frame()
            if not selector._cools(here):
                selector.consider(here, [frame], np.array([0.1]), np.array([0.1]))
                kept.append(truth)
        assert last is not None
        assert last <= done
        assert np.diff(kept).min(initial=COOLDOWN) >= COOLDOWN
        assert begun == {truth for truth, *_ in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (
            motion(
                "constrained_dynamics",
                f"<constrained_dynamics mode='nve'>{TIMESTEP}<csolver/><constraint mode='distance'>"
                "<atoms>[0, 1]</atoms></constraint></constrained_dynamics>",
            ),
            "unexpected keyword argument 'fixatoms_dof'",
        ),
        (
            multi(dynamics(), motion("planetary", f"<planetary mode='md'>{TIMESTEP}{THERMOSTAT}</planetary>")),
            "'Forces' object has no attribute 'copy'",
        ),
        (motion("string", "<string_optimizer/>"), "String method is experimental"),
    ],
    ids=["constrained dynamics", "planetary", "string"],
)
def test_kinds_that_ipi_does_not_start(inside: str, said: str, ipi: Any, start: Any, tmp_path: Path) -> None:
    """i-PI 3.3.1 stops before its first step by itself; the day that it starts them they belong into the table."""
    written(tmp_path, Kind(inside, "nobody", beads=1 if "constrained" in inside else 4))
    process = start("i-pi", ipi.BIN / "i-pi", "input.xml", cwd=tmp_path)
    process.wait(60)
    assert said in start.log(process)
    assert "Average timings at MD step" not in start.log(process)


def test_the_page_has_every_kind() -> None:
    """docs/steps.md says of each kind who tells its steps, as the table above does and real i-PI confirms."""
    rows = [line.strip("| \n").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    words = {"input": "the input", "output": "i-PI's outputs"}
    assert {row[0]: row[1] for row in rows if len(row) == 3 and row[0] in KINDS} == {
        name: words[kind.told] for name, kind in KINDS.items()
    }
