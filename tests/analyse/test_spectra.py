"""models/water-dipole/spectra.py: i-PI's infrared and Raman spectra against harmonic analysis of the same models."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from beadwork.analyse.spectrum import LIGHT
from beadwork.units import BOHR
from support.exact_runs import KELVIN, write_about, write_extra

SCRIPT = Path(__file__).parents[2] / "models" / "water-dipole" / "spectra.py"


@pytest.fixture(scope="module")
def spectra() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("water_dipole_spectra", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def verlet(omega: float, steps: int, speed: float) -> np.ndarray:
    """(steps,) an oscillator of this angular frequency (1/fs) by velocity Verlet with 1 fs, from its minimum."""
    found, x, v = [], 0.0, speed
    for _ in range(steps):
        found.append(x)
        v -= 0.5 * omega**2 * x
        x += v
        v -= 0.5 * omega**2 * x
    return np.array(found)


def test_what_a_time_step_does_to_a_line(spectra: ModuleType, tmp_path: Path) -> None:
    """Two oscillators by velocity Verlet with 1 fs, each with the kinetic energy kT at its minimum: their lines lie
    where the script expects them, 2 % above the harmonic wavenumber at 3800 cm^-1, with its areas, 20 % too large."""
    harmonic, slopes = np.array([1600.0, 3800.0]), np.array([[0.2, 0.1, 0.0], [0.0, 0.3, -0.1]])
    speed = np.sqrt(2 * spectra.si.k * KELVIN / spectra.si.e * spectra.PER_DALTON)
    moved = np.array([verlet(2 * np.pi * LIGHT * wave, 3000, speed) for wave in harmonic])
    dipole = moved.T @ slopes
    write_about(tmp_path, time_step_fs=1.0)
    write_extra(tmp_path, "dipole", range(3000), dipole / BOHR)
    write_extra(tmp_path, "polarizability", range(3000), np.tile(dipole[:, :1, None] / BOHR**3, (1, 3, 3)))
    lines = []
    for wave, of in zip(harmonic, slopes, strict=True):
        faster, larger = spectra.of_verlet(2 * np.pi * LIGHT * wave)
        areas = {"infrared": spectra.KM_MOL * of @ of, "Raman": (3 * of[0]) ** 2}
        lines.append(spectra.Line(wave, faster * wave, areas, larger))
    assert lines[1].expected - 3800 > 80
    assert lines[1].amplitude > 1.18
    found = spectra.spectra(tmp_path, 700.0, {"Raman": spectra.ALL})
    for line, seen in zip(lines, spectra.compared(lines, found), strict=True):
        assert seen.peaks["infrared"] == pytest.approx(line.expected, abs=0.5)
        expected, area = seen.areas["infrared"]
        assert area == pytest.approx(expected, rel=0.02)
    expected, area = spectra.compared(lines, found)[0].areas["Raman"]
    assert area == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peaks_of_a_water_molecule_are_where_harmonic_analysis_has_them(
    spectra: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it with real i-PI, the shipped potential and the shipped model of dipoles and polarizabilities: the
    molecule's lines within 1 cm^-1 in the infrared and in crossed Raman, which shows the one that is weak in the other
    alone; areas within 5 %, of crossed Raman of its one line; and the table says so."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spectra.compute(tmp_path, "molecule")
    text = spectra.json.loads((tmp_path / "molecule.json").read_text())
    lines = [spectra.Line(**line) for line in text["lines"]]
    assert [line.wavenumber for line in lines] == pytest.approx([1683.1, 3801.2, 3937.0], abs=0.5)
    found = spectra.spectra(tmp_path / "molecule", text["window"], spectra.SYSTEMS["molecule"][3])
    for seen in (of_lines := spectra.compared(lines, found)):
        print(seen)
        assert seen.peaks["infrared"] == pytest.approx(seen.wavenumbers[0], abs=1.0)
        for kind in ("infrared", "Raman"):
            expected, area = seen.areas[kind]
            assert area == pytest.approx(expected, rel=0.05)
    assert len(found["crossed Raman"].peaks) == 1
    assert of_lines[-1].peaks["crossed Raman"] == pytest.approx(of_lines[-1].wavenumbers[0], abs=1.0)
    expected, area = of_lines[-1].areas["crossed Raman"]
    assert area == pytest.approx(expected, rel=0.05)
