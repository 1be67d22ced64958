"""Python processes of ours: what lies in the working folder is data, and is never run by them."""

from __future__ import annotations

import sys

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
