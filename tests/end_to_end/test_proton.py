"""The tutorial of docs/proton.md, in its short form."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import ase.io
import numpy as np
import pytest
from ase.units import kJ, mol
from scipy.stats import norm

from beadwork.analyse.free_energy import free_energy
from beadwork.analyse.runs import Sampled
from beadwork.analyse.series import read_series
from beadwork.frame import Frame
from beadwork.ipi.simulation import read_simulation
from beadwork.potential.load import load

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "zundel-cc"
DC, OXYGENS = "dc:O1,O2", "distance:O1,O2"
#: of the published metadynamics: F(0.4) in kJ/mol from the mean over |dc| < 0.1, root mean square of dc, mean and
#: standard deviation of d_OO in Å
PUBLISHED = {"classical": (3.90, 0.2104, 2.4156, 0.0567), "quantum": (7.66, 0.1606, 2.4220, 0.0527)}
NEAR = (0.6, 0.008, 0.005, 0.003)
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "proton.md").read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_short_form_runs_from_an_empty_folder(tmp_path) -> None:
    """Labels, a baseline, Δ, its test, two simulations and their curves, by the commands that the tutorial gives."""
    environment = os.environ | {
        "HOME_OF": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(["bash", "-e"], input=BLOCKS[0], text=True, cwd=tmp_path, env=environment, timeout=2900)
    assert done.returncode == 0
    table = (tmp_path / "figures" / "table.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in table.splitlines()[2:]}
    assert list(rows) == ["classical", "32 beads"]
    for row in rows.values():
        # the oxygens of H5O2+ are this far apart on any potential that is one
        assert 2.3 < float(row[4].split()[0]) < 2.6
    assert (tmp_path / "figures" / "proton.png").stat().st_size > 10_000


def test_every_file_of_the_tutorial_is_there() -> None:
    """What its commands name of models/zundel-cc exists, and the scripts know the steps that they are asked for."""
    text = "".join(BLOCKS)
    named = set(re.findall(r"\$M/([\w-]+\.(?:py|toml|extxyz\.gz))", text)) | set(
        re.findall(r"models/zundel-cc/([\w.-]+\.py)", text)
    )
    assert {"make.py", "simulate.py", "figures.py"} < named
    for name in named:
        assert (ROOT / "models" / "zundel-cc" / name).exists(), name
    steps = set(re.findall(r"make\.py (\w+)", text))
    source = (ROOT / "models" / "zundel-cc" / "make.py").read_text()
    assert steps == set(re.findall(r'"(\w+)": \w+[,}]', source.split("STEPS")[1]))


def test_the_models_give_labels_of_simulations_that_they_have_not_seen() -> None:
    """Relative energies of every third frame held out: within 1 kJ/mol of the composite scheme's (of all 60: 0.61)."""
    held_out = [atoms for path in sorted((MODELS / "labels").glob("held-out-*")) for atoms in ase.io.read(path, ":")]
    assert len(held_out) == 60
    some = held_out[::3]
    found = load(MODELS / "baseline", [MODELS], engine="torchscript").evaluate(list(map(Frame.from_atoms, some)))
    wrong = np.array([atoms.info["REF_energy"] for atoms in some]) - found.energies
    assert np.std(wrong) * mol / kJ < 1.0


@pytest.mark.parametrize(("name", "beads"), [("input", 32), ("eco", 16), ("classical", 1)])
def test_the_inputs_ask_for_what_they_say(name: str, beads: int) -> None:
    """The beads of each, and what the analysis reads: the centroid and the members' energies, at the same steps."""
    file = ROOT / "inputs" / "zundel" / f"{name}.xml"
    assert read_simulation(file, directory=file.parent).nbeads == beads
    text = file.read_text()
    assert re.findall(r"<trajectory stride='(\d+)'", text) == ["10", "10"]
    assert {"x_centroid{angstrom}", "committee_pot"} <= set(re.findall(r"[\w{}]+", text))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_pieces_that_are_kept_give_the_published_numbers(kind: str) -> None:
    """Free energy, width and distance of all pieces in models/zundel-cc/runs, as near as docs/proton.md says."""
    pieces = [read_series(path, [DC, OXYGENS]) for path in sorted((MODELS / "runs").glob(f"{kind}-*.csv.gz"))]
    along = free_energy(pieces, DC, 51, (-1.02, 1.02), (-0.1, 0.1), [0.4], symmetric=True)
    apart = free_energy(pieces, OXYGENS, 50, (2.2, 2.8))
    found = (
        along.at[0.4].value,
        along.averages["root mean square"].value,
        apart.averages["mean"].value,
        apart.averages["standard deviation"].value,
    )
    assert np.all(np.abs(np.subtract(found, PUBLISHED[kind])) < NEAR), found


def _figures() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("figures", MODELS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_curves_are_compared_from_one_zero() -> None:
    """A published curve of closed form, and samples of it: in regions.md both have -kT ln of the mean p of a range
    against that of |dc| < 0.1, whatever bins lie lowest."""
    figures = _figures()
    kt, width = figures.unit_to_internal("temperature", "kelvin", figures.KELVIN) * figures.KJ_MOL, 0.25
    x = np.linspace(-1, 1, 401)
    curve = x, kt * x**2 / (2 * width**2) + 7.0
    rng = np.random.default_rng(3)
    draws = rng.normal(scale=width, size=(40_000, 1))
    run = Sampled(np.arange(len(draws)), {DC: draws}, None, "", figures.KELVIN, 1, "centroid", 0.5)
    at = free_energy([run], DC, 7, figures.REACH, figures.ZERO, figures.REGIONS, symmetric=True).at
    rows = figures.regional({"classical": at}, {"classical": (curve, curve)}).splitlines()[2:]
    published, measured = ([float(cell.split()[0]) for cell in row.split("|")[2:-1]] for row in rows)
    edges = np.array([-0.1, 0.1, 0.3, 0.5, 0.7])
    p = np.diff(norm.cdf(edges, scale=width))
    assert published == pytest.approx(-kt * np.log(p[1:] / p[0]), abs=0.006)
    off = np.subtract(measured, published) / [one.statistical for one in at.values()]
    assert np.abs(off).max() < 3
    assert figures._from_middle(*curve)[1][np.abs(x) <= 0.1].mean() == pytest.approx(0, abs=1e-9)


def test_differences_are_of_one_quantity_each() -> None:
    """A published curve of closed form less samples of it: zero within the bars, in the order of the table's head; of
    economised beads less ordinary ones, drawn alike, no difference and the root of 2 times the statistical error."""
    figures = _figures()
    kt, width = figures.unit_to_internal("temperature", "kelvin", figures.KELVIN) * figures.KJ_MOL, 0.25
    x = np.linspace(-1, 1, 401)
    curves = (x, kt * x**2 / (2 * width**2)), (x, kt * (x - 0.1) ** 2 / (2 * 0.2**2))
    rng = np.random.default_rng(5)
    draws = {DC: rng.normal(scale=width, size=(20_000, 1)), OXYGENS: rng.normal(0.1, 0.2, size=(20_000, 1))}
    run = Sampled(np.arange(20_000), draws, None, "", figures.KELVIN, 1, "centroid", 0.5)
    both = free_energy([run], DC, 51, (-1.02, 1.02), None, [0.4], symmetric=True), free_energy([run], OXYGENS)
    middle = free_energy([run], DC, 51, (-1.02, 1.02), figures.ZERO, [0.4], symmetric=True).at[0.4]
    kinds = ("classical", "quantum", "eco")
    told = figures.differences(dict.fromkeys(kinds, both), {"classical": curves}, dict.fromkeys(kinds, middle))
    head, _, aims, published, economised = [line.split("|")[2:-1] for line in told.splitlines()]
    names = ["F(0.4)", "F(0.4) from the middle", "rms dc", "mean d_OO", "sd d_OO"]
    assert [cell.split(",")[0].strip() for cell in head] == names
    assert tuple(map(float, aims)) == (NEAR[0], *NEAR)
    errors = [both[0].at[0.4], middle, both[0].averages["root mean square"]]
    errors += [both[1].averages[what] for what in ("mean", "standard deviation")]
    for cell, one in zip(published, errors, strict=True):
        value, bar = map(float, cell.split("±"))
        assert bar == pytest.approx(one.statistical, abs=0.006)
        assert abs(value) < 3 * bar
    for cell, one in zip(economised, errors, strict=True):
        assert tuple(map(float, cell.split("±"))) == pytest.approx((0, 2**0.5 * one.statistical), abs=0.006)


def test_the_tables_cautions_are_those_of_analyse() -> None:
    """Where the committee is not of all runs, where the expansion ends and where a run is too short, figures.py says
    so; of good curves it says nothing."""
    figures = _figures()
    draws = np.random.default_rng(4).normal(size=(400, 1))
    run = Sampled(np.arange(len(draws)), {DC: draws}, None, "", figures.KELVIN, 1, "centroid", 0.5)
    good = free_energy([run], DC)
    assert figures.cautions(good, good) == []
    said = figures.cautions(replace(good, gap="one run has none"), replace(good, wander=1.6, dependence=0.7))
    assert len(said) == 3
    assert "one run has none" in said[0]
    assert "1.6 kT" in said[1]
    assert "the mean of d_OO (0.70)" in said[2]
