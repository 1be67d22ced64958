"""An i-PI input of a few atoms, for what is looked at before a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

#: one water in a periodic cell of 7 Å
WATER = "3\n# CELL(abcABC): 7 7 7 90 90 90 cell{angstrom} positions{angstrom}\nO 1 1 1\nH 1.96 1 1\nH 0.76 1.93 1\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write an input and its start structure; return the path of the XML.

    names: of the forcefields, each a socket of its own; around: what stands around them all.
    """

    def call(
        names: Sequence[str] = ("beadwork",),
        beads: int = 2,
        batch: int = 2,
        prefix: str = f"{tmp_path}/s-",
        around: str = "{}",
        used: Sequence[str] = (),
        folder: Path = tmp_path,
    ) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "init.xyz").write_text(WATER)
        sockets = "".join(
            f"<ffsocket name='{name}' mode='unix'><address>{name}</address><batch_size>{batch}</batch_size>"
            "<latency>1e-3</latency></ffsocket>"
            for name in names
        )
        forces = "".join(f"<force forcefield='{name}'/>" for name in used or names)
        path = folder / "input.xml"
        path.write_text(
            f"<simulation sockets_prefix='{prefix}'><output prefix='run'></output><total_steps>100</total_steps>"
            f"{around.format(sockets)}"
            f"<system><initialize nbeads='{beads}'><file mode='xyz'>init.xyz</file></initialize>"
            f"<forces>{forces}</forces><motion mode='dynamics'><dynamics mode='nve'>"
            "<timestep units='femtosecond'>0.5</timestep></dynamics></motion></system></simulation>"
        )
        return path

    return call
