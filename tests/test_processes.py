"""Children of ours run no file of the working folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from beadwork.processes import before_3_11, module

#: modules that beadwork and its libraries import early; each says that it was run
TRAPS = ("ase", "random", "numpy", "torch", "argparse", "runpy", "tempfile", "mace")


def trapped(folder: Path) -> Path:
    """A folder with files of these names, which write the name of whoever runs them."""
    for name in TRAPS:
        (folder / f"{name}.py").write_text(f"open('ran-{name}', 'w').close()\n")
    return folder


@pytest.mark.parametrize("way", [module, before_3_11], ids=lambda way: way.__name__)
def test_a_file_in_the_working_folder_is_not_run(way: Callable[[str], list[str]], tmp_path: Path) -> None:
    """The command line of beadwork, started among files of such names, says its versions and runs none of them; a
    plain `-m` does, which is what this is there for. Arguments and exit code are passed on."""
    if way is before_3_11 and sys.flags.safe_path:
        pytest.skip("this Python was started with PYTHONSAFEPATH")
    options = {"cwd": trapped(tmp_path), "capture_output": True, "text": True, "timeout": 60}
    said = subprocess.run([*way("beadwork.cli"), "--version"], **options)  # type: ignore[call-overload]
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("beadwork ")
    refused = subprocess.run([*way("beadwork.cli"), "report", "nothing"], **options)  # type: ignore[call-overload]
    assert refused.returncode == 2
    assert list(tmp_path.glob("ran-*")) == []
    subprocess.run([sys.executable, "-m", "beadwork.cli", "--version"], **options)  # type: ignore[call-overload]
    assert (tmp_path / "ran-argparse").exists()


def test_no_child_is_started_otherwise() -> None:
    """No `-m` stands in the package but in the one place that knows how."""
    package = Path(__file__).parents[1] / "driver" / "beadwork"
    found = [
        path.name for path in package.rglob("*.py") if '"-m"' in path.read_text() or " -m parsl" in path.read_text()
    ]
    assert found == ["processes.py"]


def test_shared_memory_starts_no_child() -> None:
    """Python's register of segments is a process that would look for modules in the working folder, and would remove
    i-PI's segment when we end: none is started, and the segment outlives us."""
    segment = shared_memory.SharedMemory(create=True, size=64)
    try:
        program = (
            "import sys; from multiprocessing import resource_tracker; from beadwork.ipi.shm import _attach; "
            "_attach(sys.argv[1]).close(); print(resource_tracker._resource_tracker._fd)"
        )
        command = [sys.executable, "-c", program, segment.name]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (said.returncode, said.stdout, said.stderr) == (0, "None\n", "")
        shared_memory.SharedMemory(name=segment.name).close()
    finally:
        segment.close()
        segment.unlink()
