"""Random-weight MACE models, made into bundles once a session, and a toy pair potential."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import contract, structures
from support.pair_potential import Pair
from support.random_models import once, random_mace, write_bundle


def make_mace(
    channels: int, order: int, zbl: bool, seed: int, dtype: str, cutoff: float = 4.5, scale: float = 8.0, **options: Any
) -> Any:
    """An eager MACE with random weights for H and O, with forces of some eV/Å. options: heads, and MACE's own."""
    return random_mace(
        seed=seed,
        cutoff=cutoff,
        scale=scale,
        shift=0.1,
        neighbors=12.0,
        energies=(-13.6, -442.0),
        channels=channels,
        order=order,
        zbl=zbl,
        dtype=dtype,
        **options,
    )


@dataclass(frozen=True)
class Made:
    """A bundle and the eager model file that it was made from."""

    bundle: Path
    file: Path


@pytest.fixture(scope="session", autouse=True)
def _quiet_threads():
    """One thread: the machines that run the tests have few cores, and pools get in each other's way."""
    import torch

    from beadwork.potential.threads import set_threads

    set_threads(1)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Made]:
    """Three architectures: invariant with repulsion trained in float32 (the shipped one's kind), and L = 1."""

    def make(folder: Path) -> None:
        invariant = make_mace(channels=8, order=0, zbl=True, seed=1, dtype="float32")
        write_bundle(invariant, folder, "invariant")
        vector = make_mace(channels=4, order=1, zbl=False, seed=2, dtype="float64", cutoff=4.0, scale=30.0)
        write_bundle(vector, folder, "vector")

    folder = once(tmp_path_factory, "architectures", make)
    return {name: Made(folder / name, folder / f"{name}.model") for name in ("invariant", "vector")}


@pytest.fixture(scope="session")
def reference(made):
    """MACE's own calculators on the same files, in float64."""
    guard = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(guard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mace.calculators import MACECalculator

        os.environ[guard] = "1"
        made_by_mace = {
            name: MACECalculator(model_paths=str(m.file), device="cpu", default_dtype="float64")
            for name, m in made.items()
        }
    os.environ.pop(guard)
    if before is not None:
        os.environ[guard] = before
    return made_by_mace


@pytest.fixture(scope="session")
def pair():
    """The toy pair potential's class."""
    return Pair


@pytest.fixture(scope="session")
def shapes():
    """The random structures' module."""
    return structures


@pytest.fixture(scope="session")
def check_contract():
    """The contract check that every engine passes."""
    return contract.check_contract


@pytest.fixture(scope="session")
def mace_model():
    """Makes an eager MACE with random weights."""
    return make_mace
