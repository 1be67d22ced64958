"""The same evaluation without a socket: a PES for i-PI's `<ffdirect>`, which calls it in its own process.

    <ffdirect name='beadwork'>
      <pes>custom</pes>
      <pes_path>…/beadwork/pes.py</pes_path>   <!-- python -c "import beadwork.pes as p; print(p.__file__)" -->
      <batch_size>16</batch_size>              <!-- the number of beads -->
      <parameters>{template: init.xyz, baseline: models/baseline, delta: models/delta-0 models/delta-1}</parameters>
    </ffdirect>

Leave `threaded` at its default: an error then ends i-PI with its sentence, where in a thread it would leave it hanging.
There is no harvest, no hot swap and no guard here; those are the server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.config import ModelSettings, ServeConfig
from beadwork.errors import ConfigError, GeometryError, SimulationError
from beadwork.frame import FloatArray, Frame
from beadwork.log import logger, set_up
from beadwork.potential.threads import set_threads
from beadwork.settings import declared, meant
from beadwork.toml import fit
from beadwork.units import BOHR, FORCE, HARTREE

__DRIVER_NAME__ = "beadwork"
__DRIVER_CLASS__ = "BeadworkPES"

#: what may be set in `<parameters>`, named as in a TOML file: what the models are served with
OPTIONS = (
    # one forcefield is evaluated here, whatever others the input has
    *(entry.name for entry in declared(ModelSettings) if entry.name != "at"),
    "threads",
    "periodic",
    "member_forces",
)
_ON, _OFF = ("true", "yes", "1"), ("false", "no", "0")
#: potential, forces, virial and extras of one structure, as i-PI wants them
Answer = tuple[float, FloatArray, FloatArray, str]


class BeadworkPES:
    """Baseline, Δ committee or both, called by i-PI with one structure or with a list of them.

    template: a file that ASE reads, with the species in the simulation's order. delta: bundles, separated by blanks or
    in a list. verbosity: i-PI adds it, and it is not used. The rest are options of `beadwork serve`, by their names
    (`OPTIONS`); what has several entries has blanks between them, as in `add: d3bj=revPBE zbl=1`.
    Raises SimulationError for a template that cannot be read, ConfigError for an option that is unknown or of another
    kind, ModelError for models that cannot be loaded or do not fit.
    """

    def __init__(self, template: str, verbosity: object = None, delta: str | list[str] = "", **options: Any) -> None:
        set_up()
        for name in options:
            if name.replace("-", "_") not in OPTIONS:
                raise ConfigError(f"<parameters> sets {name!r}, which is no option", meant(name, OPTIONS))
        if not isinstance(template, str):
            raise ConfigError(f"<parameters>: template is {template!r}", "it wants a text")
        # i-PI has read the braces of <parameters> itself: numbers are numbers there, and all else is text
        given = {name: _switch(name, value) for name, value in options.items()}
        given |= {name: str(value) for name, value in options.items() if isinstance(value, Path)}
        # blanks: commas separate the parameters for i-PI, so they cannot separate bundles
        given["delta"] = delta.split() if isinstance(delta, str) else delta
        for name, value in given.items():
            words = str(value).split()
            if name in ("add", "also") and isinstance(value, str) and all("=" in word for word in words):
                given[name] = dict(word.partition("=")[::2] for word in words)
            if name == "weights" and not isinstance(value, list):
                given[name] = [_number(word) for word in words]
        # a word in place of the input, which is i-PI's own matter here, but without which `check` would refuse the rest
        config = ServeConfig(simulation="ffdirect", **fit(ServeConfig, given, Path(), "<parameters>")).check()
        if config.threads:
            set_threads(config.threads)
        # torch is imported only now, so that it sees the threads
        from beadwork.potential.load import load_for

        self._potential = load_for(config)
        self._device = config.device
        self._member_forces = config.member_forces
        self._periodic = (config.periodic,) * 3
        self._numbers = _species(template)
        self._potential.check_species(self._numbers)
        # the start structure comes with the first call, and backends are verified on it
        self._settled = False

    def __call__(self, cell: Any, pos: Any) -> Answer | list[Answer]:
        """Evaluate i-PI's cells (3, 3), lattice vectors in columns, and positions (N, 3), Bohr; or lists of both.

        Returns potential (Hartree), forces (N, 3) (Hartree/Bohr), virial (3, 3) (Hartree) and the extras' JSON, or a
        list of these. Raises GeometryError and NonFiniteError for what can have no answer.
        """
        # i-PI passes lists where <batch_size> is above 1
        if isinstance(cell, list):
            return self._evaluate(cell, pos)
        return self._evaluate([cell], [pos])[0]

    def _evaluate(self, cells: Sequence[FloatArray], positions: Sequence[FloatArray]) -> list[Answer]:
        from beadwork.serve.reply import extras

        atoms = len(self._numbers)
        # a template of another system would give every atom a wrong element without a word
        if any(np.shape(where) != (atoms, 3) for where in positions):
            raise GeometryError(
                f"i-PI asks for {[len(where) for where in positions]} atoms where the template has {atoms}",
                "give a template of the same system",
            )
        frames = [
            Frame(
                self._numbers, np.asarray(where) * BOHR, np.ascontiguousarray(np.transpose(cell)) * BOHR, self._periodic
            )
            for cell, where in zip(cells, positions, strict=True)
        ]
        if not self._settled:
            self._settled = True
            notes = [*self._potential.notes, *self._potential.select_backends(frames[0])]
            notes += self._potential.fit(frames[0], self._device, len(frames))
            _tell(notes)
        evaluation = self._potential.evaluate(frames, member_forces=self._member_forces)
        _tell(evaluation.notes)
        return list(
            zip(
                (evaluation.energies / HARTREE).tolist(),
                evaluation.forces.reshape(-1, atoms, 3) / FORCE,
                evaluation.virials / HARTREE,
                # i-PI reads JSON of a text, where the socket sends bytes
                (extra.decode() for extra in extras(evaluation, self._potential)),
                strict=True,
            )
        )


def _switch(name: str, value: Any) -> Any:
    """The value; of an option that is on or off as a boolean: i-PI reads 1 as a number, and yes as a word."""
    # the default tells which options are on or off
    if not isinstance(getattr(ServeConfig(), name.replace("-", "_")), bool):
        return value
    word = str(value).strip().lower()
    if word not in (*_ON, *_OFF):
        raise ConfigError(f"<parameters>: {name} is {value!r}", "it wants true or false")
    return word in _ON


def _number(word: str) -> float | str:
    """The number of a word; the word where it is none, which is then refused by the option's name."""
    try:
        return float(word)
    except ValueError:
        return word


def _tell(notes: Sequence[str]) -> None:
    """Say which engine answers and whether the spread is calibrated where i-PI's own log goes."""
    for note in notes:
        logger.info("%s", note)


def _species(template: str) -> Any:
    import ase.io

    try:
        # ASE would read of `w@1` frame 1 of the file `w`
        atoms = ase.io.read(template, do_not_split_by_at_sign=True)
    except (OSError, ValueError, KeyError, IndexError, ase.io.formats.UnknownFileTypeError) as error:
        raise SimulationError(
            f"the template {template} cannot be read ({error})", "give the simulation's start structure"
        ) from error
    return atoms.numbers.astype(np.int_)
