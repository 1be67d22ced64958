"""Real i-PI with D3 from our server, against its own sum of two forcefields: ours, and D3 by its own ASE driver."""

from __future__ import annotations

import numpy as np
import pytest

DRIVER = """
from dftd3.ase import DFTD3
from ipi.pes._ase import ASEDriver
__DRIVER_NAME__ = "d3"
__DRIVER_CLASS__ = "D3"
class D3(ASEDriver):
    def check_parameters(self):
        super().check_parameters()
        self.template_ase.pbc = True
        self.ase_calculator = DFTD3(method="revPBE", damping="d3bj")
"""
#: relative: ASE has an older Hartree and Bohr
NEAR = 1e-6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_atoms_move_as_with_ipis_own_sum(ipi, models, start, serve, tmp_path) -> None:
    """Ten steps at constant pressure: energies, stress, volume and positions; without D3 they are others."""
    pytest.importorskip("dftd3")
    direct = (
        "{}<ffdirect name='d3'><pes>custom</pes><pes_path>d3.py</pes_path>"
        "<parameters>{{template: init.xyz}}</parameters></ffdirect>"
    )
    found = {}
    for name, options in (("ours", ("--add", "d3bj=revPBE")), ("theirs", ()), ("none", ())):
        more = {}
        if name == "theirs":
            more = {"around": direct, "forces": "<force forcefield='water'/><force forcefield='d3'/>"}
        run = ipi.Input(tmp_path / name, ensembles=("npt",), beads=2, steps=10, **more).write()
        (run.folder / "d3.py").write_text(DRIVER)
        process = start.ipi(run)
        assert serve(run, "--baseline", models.baseline, "--engine", "torchscript", *options) == 0
        assert process.wait(ipi.PATIENCE) == 0
        found[name] = {**run.properties(), "positions": run.positions()}
    for name in ("potential", "volume", "pressure_cv", "stress_md", "positions"):
        ours, theirs, none = (found[which][name] for which in ("ours", "theirs", "none"))
        size = np.abs(theirs).max()
        assert np.abs(ours - theirs).max() < NEAR * size, name
        # a barostat of ten steps sees little of it, and so do the atoms
        assert np.abs(ours - none).max() > 3 * np.abs(ours - theirs).max(), name
