"""Children of ours: started, ended and killed in one way; they run no file of the working folder."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from beadwork import processes
from beadwork.processes import (
    as_shell,
    before_3_11,
    end,
    end_noted,
    kill,
    last_line,
    launch,
    module,
    noted,
    own_name,
    run,
)

#: modules that beadwork and its libraries import early; each says that it was run
TRAPS = ("ase", "random", "numpy", "torch", "argparse", "runpy", "tempfile", "mace")


#: a program that starts another one in its group, says so, and sleeps; both are deaf to SIGTERM where asked to be
FAMILY = """
import signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])  # what is ignored here, it ignores
print(child.pid, flush=True)
time.sleep(600)
"""


def family(folder: Path, *how: str, group: bool = True) -> tuple[subprocess.Popen[bytes], int]:
    """Such a program, and the number of the one that it has started."""
    command = [sys.executable, "-c", FAMILY, *how]
    process = launch(noted(command, "group") if group else command, folder / "log", folder, group=group)
    until = time.monotonic() + 20
    while not (folder / "log").read_text().endswith("\n"):
        assert time.monotonic() < until
        time.sleep(0.01)
    return process, int((folder / "log").read_text())


def alive(pid: int) -> bool:
    """Whether it runs; where nobody waits for it, it may be left as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether it ends soon."""
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(pid)


def test_an_end_is_asked_for_and_then_forced(tmp_path: Path) -> None:
    """SIGTERM, and after the grace SIGKILL with the whole group; the exit code says which it was, also of what had
    ended before."""
    asked, child = family(tmp_path)
    assert end(asked, 20) == -signal.SIGTERM
    os.kill(child, signal.SIGKILL)  # it had nobody to tell it
    deaf, child = family(tmp_path, "deaf")
    begin = time.monotonic()
    assert end(deaf, 0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - begin < 10
    assert gone(child)
    assert (end(deaf, 20), kill(deaf), as_shell(deaf.wait()), as_shell(3)) == (-9, -9, 137, 3)


def test_without_a_group_of_its_own_it_dies_alone(tmp_path: Path) -> None:
    """It is in our group, which is not killed with it."""
    process, child = family(tmp_path, group=False)
    assert os.getpgid(child) == os.getpgid(0)
    assert kill(process) == -signal.SIGKILL
    assert alive(child)
    os.kill(child, signal.SIGKILL)


def test_what_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """A program that computes a label, and hangs: nothing of it is left. What it said is in the log."""
    with pytest.raises(subprocess.TimeoutExpired):
        run([sys.executable, "-c", FAMILY, "deaf"], tmp_path / "log", tmp_path, 3.0)
    assert gone(int(last_line(tmp_path / "log")))
    assert run(["sh", "-c", "echo said; echo; exit 3"], tmp_path / "log", tmp_path, 20.0) == 3
    assert last_line(tmp_path / "log") == "said"


@pytest.mark.parametrize("how", [(), ("deaf",)])
def test_who_comes_later_ends_what_was_noted(tmp_path: Path, how: tuple[str, ...]) -> None:
    """By the number in the file, without having started it; the file goes. The group of that number that works in
    another folder is a stranger's, and lives on."""
    process, child = family(tmp_path, *how)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "group").write_text((tmp_path / "group").read_text())
    end_noted(elsewhere / "group", 0.2)
    assert alive(process.pid)
    assert alive(child)
    end_noted(tmp_path / "group", 0.2 if how else 20.0)
    assert process.wait() == (-signal.SIGKILL if how else -signal.SIGTERM)
    assert gone(child)
    assert not (tmp_path / "group").exists()
    end_noted(tmp_path / "group", 20.0)  # nothing is there


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


def test_one_module_starts_and_kills() -> None:
    """No other process is begun or killed in the package but in the one module that knows how, and in the program that
    holds connections, which runs without the package."""
    package = Path(__file__).parents[1] / "driver" / "beadwork"
    ways = ("Popen(", "subprocess.Popen,", "os.kill(", "killpg", "process.kill()", "start_new_session")
    found = {path.name for path in package.rglob("*.py") if any(way in path.read_text() for way in ways)}
    assert found == {"processes.py", "fd_keeper.py"}


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


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="only Linux says when a process began")
def test_a_name_tells_whether_its_process_is_there() -> None:
    """A number that was given out again, in a container that was started again (always 1) or after a reboot, is not
    the process that had it; of another host, or of another container under one host name, nothing is known."""
    mine = own_name()
    who, boot, space, tick = re.fullmatch(r"(.*:\d+)@([0-9a-f]{8})\.(\d+)\.(\d+)", mine).groups()
    assert who == f"{platform.node()}:{os.getpid()}"
    child = subprocess.Popen(
        [sys.executable, "-c", "from beadwork import processes as p; print(p.own_name())"], stdout=-1
    )
    ended = child.communicate()[0].decode().strip()
    for name, expected in (
        (mine, False),
        (ended, True),
        (f"{who}@{boot}.{space}.{int(tick) - 1}", True),
        (f"{who}@{boot[::-1]}x.{space}.{tick}", True),
        (f"{who}@{boot}.{int(space) + 1}.{int(tick) - 1}", False),
        (f"elsewhere{ended[len(platform.node()) :]}", False),
        # as claims were named before
        (who, False),
        (ended.partition("@")[0], True),
        ("", False),
    ):
        assert processes.gone(name) is expected, name
