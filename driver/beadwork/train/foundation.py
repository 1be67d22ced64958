"""A MACE model of another origin, which a baseline is fine-tuned from: a file, or a foundation model of mace-torch's.

mace_run_train itself copies architecture, weights and scale, for the elements of the labels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from beadwork.errors import ModelError
from beadwork.potential.architecture import mace_imported
from beadwork.potential.bundle import Card, check
from beadwork.potential.eager import load_model
from beadwork.potential.importer import import_model, kind_of


@dataclass(frozen=True, slots=True)
class Foundation:
    """An eager MACE model. file: absolute. head: the selected one; None where it has only one. card: of its bundle."""

    file: Path
    head: str | None
    card: Card

    @property
    def hash(self) -> str:
        """Of the file."""
        return "sha256:" + hashlib.sha256(self.file.read_bytes()).hexdigest()

    def energies_of_atoms(self, elements: Sequence[int]) -> dict[int, float]:
        """Its reference energies (eV by atomic number). Raises ModelError for an element that it does not know."""
        if lacking := sorted(set(elements) - set(self.card.elements)):
            symbols = ", ".join(chemical_symbols[z] for z in lacking)
            raise ModelError(
                f"{self.file} does not know {symbols}", "fine-tune a model that does, or train from scratch"
            )
        model = load_model(check(self.card.path))
        table = np.atleast_2d(model.atomic_energies_fn.atomic_energies.numpy())
        # each head has reference energies of its own level of theory
        row = table[list(model.heads).index(self.head) if self.head else 0]
        known = dict(zip(self.card.elements, row.tolist(), strict=True))
        return {z: known[z] for z in elements}


def open_foundation(given: Path, bundle: Path, head: str | None = None, trust_pickle: bool = False) -> Foundation:
    """Open a file, or a foundation model by mace-torch's name; its bundle is made in `bundle`.

    Raises ModelError for what cannot be read, is not trusted, is TorchScript, or cannot be downloaded.
    """
    file = (given if given.exists() else _downloaded(given)).absolute()
    if kind_of(file) == "torchscript":
        raise ModelError(
            f"{file} is TorchScript, which mace_run_train cannot fine-tune", "give the eager model, MACE's .model file"
        )
    card = import_model(file, bundle, head=head, trust_pickle=trust_pickle)
    return Foundation(file, card.head, card)


def _downloaded(given: Path) -> Path:
    """The file of a foundation model in mace-torch's cache, downloaded where it is not there yet."""
    with mace_imported():
        from mace.calculators import foundations_models as known

        # mace-torch calls the sizes of MACE-OFF as those of MACE-MP, so ours have a suffix
        names = known.mace_mp_urls | {f"{size}_off": url for size, url in known.mace_off_urls.items()}
        if str(given) not in names:
            raise ModelError(
                f"{given} is neither a file, a bundle nor a foundation model of mace-torch's",
                f"it knows {', '.join(names)}",
            )
        try:
            # mace prints there, where the results of our commands are
            with contextlib.redirect_stdout(io.StringIO()):
                return Path(known.download_mace_mp_checkpoint(names[str(given)]))
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"mace-torch cannot download {given} ({error})", "fetch its file by other means, and give that"
            ) from error
