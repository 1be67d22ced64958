"""A published model of strangers: the Δ from r²SCAN to coupled cluster of O'Neill et al., for liquid water.

J. Chem. Theory Comput. 2025, doi:10.1021/acs.jctc.5c01377; CC0. The file is not ours to bring: get
model/delta/model/delta_r2scancc_ase_gpu.model of github.com/fast-group-cam/data_CC_water, and name it in
BEADWORK_CC_WATER.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from beadwork.frame import Frame
from beadwork.potential.auto_engine import open_engine
from beadwork.potential.bundle import sha256
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model
from beadwork.potential.load import load

SHA256 = "86d35260314d648d68a20b70568a65a9895461dbf56fdff2164b6a2daa4c0267"
#: eV and eV/Å on `frames`, as MACE's own calculator has them (mace-torch 0.3.16, float64)
ENERGIES = (8.23441079068586, 33.0182591933805)
LARGEST = (0.15060010995607212, 0.11712065127311598)
#: (eV, eV/Å) that each engine may differ by: native interpolates radial functions
ALLOWED = {"torchscript": (1e-8, 1e-8), "eager": (1e-8, 1e-8), "native": (1e-6, 1e-6)}


@pytest.fixture
def file():
    """The model, the very file."""
    where = os.environ.get("BEADWORK_CC_WATER")
    if not where:
        pytest.skip(__doc__.split("\n\n")[1].replace("\n", " "))
    assert sha256(Path(where)) == SHA256, "another file than the one of these numbers"
    return Path(where)


def frames() -> list[Frame]:
    """A water dimer alone, and eight molecules in a periodic cell."""
    water = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.05]])
    rng = np.random.default_rng(8)
    turned = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(8)]
    sites = np.stack(np.meshgrid(*[(0.0, 3.1)] * 3), axis=-1).reshape(-1, 3)
    box = np.concatenate([site + water @ turn for site, turn in zip(sites, turned, strict=True)])
    dimer = np.concatenate([water, water @ turned[0] + [2.9, 0.1, -0.1]])
    return [
        Frame(np.array([8, 1, 1] * 2), dimer, np.zeros((3, 3)), (False,) * 3),
        Frame(np.array([8, 1, 1] * 8), box, 6.2 * np.eye(3)),
    ]


@pytest.mark.slow
def test_a_published_model_is_imported_admitted_natively_and_served(file, tmp_path):
    """Its numbers by every engine and by MACE itself; auto takes the compiled one for a ring polymer of four."""
    from mace.calculators import MACECalculator

    card = import_model(file, tmp_path / "bundle", trust_pickle=True)
    assert (card.elements, card.cutoff, card.dtype, card.native) == ((1, 8), 4.0, "float64", True)
    some = frames()
    calculator = MACECalculator(models=[torch.load(file, weights_only=False)], device="cpu", default_dtype="float64")
    for k, frame in enumerate(some):
        calculator.calculate(frame.to_atoms())
        known = copy.deepcopy(calculator.results)
        assert known["energy"] == pytest.approx(ENERGIES[k], abs=1e-8)
        assert np.abs(known["forces"]).max() == pytest.approx(LARGEST[k], abs=1e-8)
        for engine, (energy, force) in ALLOWED.items():
            answer = open_engine(card.path, engine).evaluate(build([frame], card.cutoff))
            assert answer.energies[0] == pytest.approx(known["energy"], abs=energy)
            assert np.abs(answer.forces - known["forces"]).max() < force
    served = load(None, [card.path])
    assert "native agrees" in served.select_backends(some[1])[0]
    assert served.evaluate([some[1]] * 4).energies == pytest.approx([ENERGIES[1]] * 4, abs=1e-6)
