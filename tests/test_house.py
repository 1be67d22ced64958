"""The house stands: who may import whom is read from the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "driver" / "beadwork"
#: the floor of every wing and of every module beside the wings
FLOORS = {
    "errors": 0,
    "settings": 0,
    "log": 0,
    "json_form": 0,
    "digits": 0,
    "toml": 0,
    "units": 0,
    "config": 0,
    "frame": 0,
    "events": 0,
    "disk": 0,
    "signals": 0,
    "processes": 0,
    "packages": 0,
    "examples": 1,
    "ipi": 1,
    "potential": 1,
    "harvest": 2,
    "observe": 2,
    "report": 3,
    "analyse": 4,
    "serve": 4,
    "pes": 5,
    "label": 4,
    "train": 5,
    "doctor": 5,
    "loop": 6,
    "cli": 7,
    "__main__": 8,
}
WINGS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def name(path: Path) -> str:
    """`ipi.wire` for ipi/wire.py, `ipi` for ipi/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, by its whole name; `from a import b` counts as a, and as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """The modules of the house that a file imports."""
    known = {name(module) for module in MODULES}
    return {full.removeprefix("beadwork.") for full in imports(path) if full.startswith("beadwork.")} & known


def test_every_module_has_a_floor() -> None:
    """A new wing or hall is given its floor here, on purpose."""
    assert {name(path).partition(".")[0] for path in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_down(path: Path) -> None:
    """From lower floors or the same wing, and never from the package's root; wings of one floor are strangers."""
    assert "beadwork" not in {full for full in imports(path) if full == "beadwork"}
    here = name(path).partition(".")[0]
    for other in ours(path):
        wing = other.partition(".")[0]
        halls = FLOORS[wing] == FLOORS[here] and not {wing, here} & WINGS
        assert wing == here or FLOORS[wing] < FLOORS[here] or halls, f"{name(path)} imports {other}"


def test_no_module_imports_in_a_cycle() -> None:
    """The modules can be put in an order."""
    left = {name(path): ours(path) - {name(path)} for path in MODULES}
    while left:
        free = {module for module, needs in left.items() if not needs & set(left)}
        assert free, f"these import each other: {sorted(left)}"
        left = {module: needs for module, needs in left.items() if module not in free}


def test_wings_keep_to_themselves() -> None:
    """No torch in the wing that speaks to i-PI, no socket in the one that evaluates, sockets at one door only."""
    # two open none: the guard closes those of a server that was killed, the owner asks the kernel whose they are
    door = {"ipi.transport", "ipi.fd_keeper", "ipi.peer_identity"}
    for path in MODULES:
        roots = {full.partition(".")[0] for full in imports(path)}
        wing = name(path).partition(".")[0]
        if wing == "ipi":
            assert "torch" not in roots, path
        if wing in ("ipi", "potential", "serve", "cli"):
            assert "socket" not in roots or name(path) in door, path


def test_who_only_reads_waits_for_no_torch() -> None:
    """Status, report, queue and the like are asked for often, on login nodes too: torch takes longer than they do."""
    reading = (
        "cli serve.supervisor report.write analyse.command analyse.free_energy analyse.properties analyse.spectrum"
    )
    reading += " harvest.listing label.command label.user_frames potential.bundle examples.init"
    imported = ", ".join(f"beadwork.{module}" for module in reading.split())
    program = f"import sys, {imported}; print(sorted({{'torch', 'mace', 'numba', 'sklearn'}} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.strip() == "[]"
