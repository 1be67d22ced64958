"""Python processes of ours: what lies in the working folder is data, and is never run by them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: what `-P` does, for Pythons before 3.11, which have no such option
_WITHOUT = (
    "import sys; sys.path.remove(''); import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
)


def module(name: str, python: str = sys.executable) -> list[str]:
    """A command that runs this module, as `python -m` does, but for the working folder.

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
    return None if fields[0] in "ZX" else f"{boot()} {fields[19]}"


def boot() -> str:
    """Which start of the machine this is: process ids and their times of birth are told apart within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
