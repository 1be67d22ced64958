"""The environment in which jQMC runs: its own, because it needs a certain JAX and takes 1.2 GB.

    python = find(None)        # of the environment that BEADWORK_QMC_ENV names, or of the one in the default place

`beadwork qmc-env` makes it with pip alone, which reads the user's own pip configuration.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from beadwork.errors import ConfigError
from beadwork.processes import module

#: names an environment made elsewhere
VARIABLE = "BEADWORK_QMC_ENV"
REQUIREMENTS = Path(__file__).with_name("qmc_requirements.txt")
#: what must be importable, jQMC's MPI and PySCF's TREXIO writer included
_CHECK = "import jqmc.jqmc_tool, jqmc.jqmc_gfmc, pyscf.tools.trexio; from importlib.metadata import version as v"
_CHECK += "; print('jQMC', v('jqmc') + ', JAX', v('jax') + ', PySCF', v('pyscf'))"


def default() -> Path:
    """The default folder of `beadwork qmc-env`."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get(VARIABLE) or Path(data) / "beadwork" / "qmc")


def cache() -> Path:
    """The folder of JAX's compiled functions, which halve the start of the next label."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beadwork" / "jax"


def find(folder: Path | None) -> Path:
    """Return the environment's Python. Raises ConfigError where there is none."""
    folder = folder or default()
    python = folder / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise ConfigError(
            f"there is no jQMC environment in {folder}: make one with `beadwork qmc-env {folder}`, "
            f"or name yours in {VARIABLE}"
        )
    return python.absolute()  # not resolved: Python finds the environment by the path of this link


def install(folder: Path) -> str:
    """Make the environment, with the packages that are pinned, and return what is in it.

    Raises ConfigError where pip or the first import fails; what pip said is on the screen by then.
    """
    python = folder / "bin" / "python"
    steps = (
        ([*module("venv"), str(folder)], "a virtual environment could not be made"),
        ([*module("pip", str(python)), "install", "-r", str(REQUIREMENTS)], "pip could not install jQMC"),
    )
    for command, failure in steps:
        # its words go to the screen: an installation of 1.2 GB takes minutes
        if subprocess.run(command).returncode:
            raise ConfigError(f"{failure} in {folder}: see above", "the same command takes up where it stopped")
    # isolated (-I), as labels run: what a user has on PYTHONPATH must not make it work here
    check = subprocess.run([str(python), "-I", "-c", _CHECK], capture_output=True, text=True)
    if check.returncode:
        raise ConfigError(f"jQMC is installed in {folder}, but does not start: {check.stderr.strip()[-300:]}")
    return check.stdout.strip()
