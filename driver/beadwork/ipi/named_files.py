"""The files that i-PI's forcefields read: i-PI and PLUMED look for them in i-PI's working directory, so they go along
where a simulation is run in another folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from beadwork.errors import SimulationError
from beadwork.ipi.simulation import Simulation, as_xml

#: forcefields that read files of their own, besides <ffplumed>
_READING = ("ffdirect", "ffyaff", "ffsgdml")
#: in what an input says of these, what may be the name of a file
_WORD = re.compile(r"[^\s=,:;{}()\[\]'\"]+")


def plumed_files(simulation: Simulation) -> list[Path]:
    """The inputs and structures that its <ffplumed>s name. Raises SimulationError for one that is not there."""
    found = []
    for forcefield in ElementTree.fromstring(as_xml(simulation.path)).iter("ffplumed"):
        for name, default in (("file", ""), ("plumed_dat", "plumed.dat")):
            file = Path((forcefield.findtext(name) or default).strip())
            if not (simulation.directory / file).is_file():
                raise SimulationError(
                    f"an <ffplumed> of {simulation.path} has the <{name}> {str(file)!r}, which is no file in "
                    f"{simulation.directory}",
                    "put it there",
                )
            found.append(file)
    return found


def forcefield_files(simulation: Simulation) -> list[Path]:
    """The same, what these name of the files that are there, and what other forcefields name of them; as named.

    Raises SimulationError as `plumed_files` does.
    """

    def there(words: Iterable[str]) -> list[Path]:
        files = map(Path, dict.fromkeys(words))
        return [file for file in files if not file.is_absolute() and (simulation.directory / file).is_file()]

    found = plumed_files(simulation)
    for file in found:  # which grows: PLUMED's inputs include others
        text = (simulation.directory / file).read_text(encoding="utf-8", errors="replace")
        words = (word for line in text.splitlines() for word in line.partition("#")[0].split())
        # values alone: PLUMED has a keyword RESTART
        named = there(name for word in words for name in word.partition("=")[2].split(","))
        found += [one for one in named if one not in found]
    root = ElementTree.fromstring(as_xml(simulation.path))
    for text in (text for tag in _READING for forcefield in root.iter(tag) for text in forcefield.itertext()):
        found += there(_WORD.findall(text))
    return found
