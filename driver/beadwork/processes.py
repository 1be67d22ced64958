"""Other processes: how they are started, ended, and told apart.

`ipi.fd_keeper` alone starts its own, as it has to be there when this package is not.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

#: what `-P` does, for Pythons before 3.11, which have no such option
_WITHOUT = (
    "import sys; sys.path.remove(''); import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
)


def launch(
    command: Sequence[str],
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    group: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program that reads nothing and says everything into a log, which is begun anew.

    group: give it a process group of its own, so that the keyboard's signals do not reach it and that it is killed with
    all that it has started. Raises OSError.
    """
    with open(log, "wb") as said:
        return subprocess.Popen(
            list(command),
            cwd=folder,
            # a program that asks something would wait for ever for an answer that nobody sees
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=group,
        )


def run(
    command: Sequence[str], log: Path, folder: Path, timeout: float, environment: Mapping[str, str] | None = None
) -> int:
    """Run a program to its end, in a group of its own, and return its exit code.

    It is killed, with all that it has started, after `timeout` seconds and when this process is interrupted. Raises
    subprocess.TimeoutExpired, and OSError where it cannot be started.
    """
    # A signal raises in the main thread. In the midst of Popen it would leave a program that nobody knows of, so
    # another thread starts it.
    with ThreadPoolExecutor(1) as starter:
        begun = starter.submit(launch, command, log, folder, environment, group=True)
        try:
            # a signal that comes here leaves by `finally`, with the process known
            return begun.result().wait(timeout)
        finally:
            kill(begun.result())


def end(process: subprocess.Popen[bytes], grace: float) -> int:
    """Have a process end, and return its exit code: it is asked to, and killed if it is there `grace` seconds later."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    # also of one that has ended in order: then it only returns the code
    return kill(process)


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a process, unless it has ended, and its whole group where that is its own. Return its exit code."""
    if process.poll() is None:
        with suppress(ProcessLookupError):  # another thread waits for it too, and was told first
            # with a group of its own all that it has started dies with it; else the group is ours
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
    return process.wait()


def as_shell(code: int) -> int:
    """An exit code as a shell has it: 128 and the number of the signal that ended the process."""
    return code if code >= 0 else 128 - code


def last_line(log: Path, nothing: str = "it said nothing") -> str:
    """The last line in a log that is not blank; `nothing` where there is none."""
    # programs say last why they end
    lines = (line.strip() for line in reversed(log.read_text(errors="replace").splitlines()))
    return next(filter(None, lines), nothing)


def noted(command: Sequence[str], file: str) -> list[str]:
    """A command that is run as this one, after the number of its group is in a file of its folder.

    To be started with `group`. A shell notes the number before it becomes the program, so there is no instant at which
    nobody knows of it, whoever is killed.
    """
    return ["sh", "-c", f'echo $$ > {file} && exec "$@"', "sh", *command]


def end_noted(file: Path, grace: float) -> None:
    """End what was started as `noted` and is still there, whoever started it: in order if it can, killed if not."""
    try:
        group = int(file.read_text())
    except (OSError, ValueError):
        return
    # one process after the other, not killpg: strangers in another folder may have the same group number
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + grace
        for process in _of(group, file.parent):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        while _of(group, file.parent) and time.monotonic() < until:
            time.sleep(0.05)
    file.unlink(missing_ok=True)


def _of(group: int, folder: Path) -> list[int]:
    """Processes of this group that work in this folder: the number of a group may have been given anew."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            # Z: it has ended, and only its parent has not asked for its code yet
            alive = (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and os.getpgid(int(process.name)) == group and (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
    return found


def module(name: str, python: str = sys.executable) -> list[str]:
    """A command that runs this module, as `python -m` does, but for the working folder, which holds data only.

    `-m` looks for modules there first: a `random.py` or `ase.py` of the user's would be run in place of the one meant.
    """
    if sys.version_info >= (3, 11):
        return [python, "-P", "-m", name]
    return before_3_11(name, python)


def before_3_11(name: str, python: str = sys.executable) -> list[str]:
    """The same command for a Python that has no `-P`. Processes that the module spawns are not kept from it."""
    return [python, "-c", _WITHOUT.format(name=name)]


def birth(pid: int) -> str | None:
    """When a process was started, in a form that no other process of this machine ever has; None where it is gone.

    A pid alone is given out again; Linux says in which clock tick since which boot a process began. Elsewhere it is
    only known that there is such a process.
    """
    try:
        # after the name, which may hold anything: state is the third field, the start the 22nd
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it is gone, or there is no /proc, or one that hides the processes of others
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # somebody else's, so there is one
        return "unknown"
    # a zombie has ended, though its number is still there
    return None if fields[0] in "ZX" else f"{boot()} {fields[19]}"


def own_name() -> str:
    """This process, in a form by which any other can tell that it has ended (`gone`): host:pid@boot.namespace.tick."""
    pid = os.getpid()
    return f"{platform.node()}:{pid}@{_mark(birth(pid))}"


def gone(name: str) -> bool:
    """Whether the process of this name (`own_name`, or host:pid) has ended, as far as this host can know.

    Of another host, or of another container that has the same host name, nothing is known. Without a mark, or where
    there is no /proc, a pid that was given out again passes for the process.
    """
    who, _, mark = name.partition("@")
    node, _, pid = who.rpartition(":")
    if node != platform.node() or not pid.isdecimal():
        return False
    now = birth(int(pid))
    if mark.count(".") != 2:
        return now is None
    then, here = mark.split("."), _mark(birth(os.getpid())).split(".")
    if then[0] != here[0]:  # the machine was started anew since
        return True
    # the same pid in another namespace is another process
    return then[1] == here[1] and now != "unknown" and (now is None or _mark(now) != mark)


def _mark(birth: str | None) -> str:
    """Boot, namespace of pids and tick of birth of a process of this namespace."""
    began, _, tick = (birth or "").partition(" ")
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = ""
    return f"{began[:8]}.{space}.{tick}" if tick else "unknown"


def boot() -> str:
    """Which start of the machine this is: process ids and their times of birth are told apart within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
