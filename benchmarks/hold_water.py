"""Do the shipped models hold water? Path-integral MD of liquid water at 300 K, checked for structure.

    python benchmarks/hold_water.py --ps 2 --work scratch/

Runs `inputs/water` (16 beads of 32 H2O, 0.5 fs) with baseline + Δ through real i-PI, and then checks: the centroid of
every hydrogen is nearest to its own oxygen's in every frame, and the first peak of g_OO over all beads lies within
0.1 Å of 2.80(1) Å, measured by X-ray diffraction at 295 K (Skinner et al., J. Chem. Phys. 138, 074506, 2013). Single
beads whose hydrogen is for a moment nearer to the oxygen at the other end of its hydrogen bond are counted too: such
excursions belong to quantum water (Ceriotti et al., Proc. Natl. Acad. Sci. 110, 15591, 2013).
Writes results/hold_water.json and .png.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import matplotlib
import numpy as np
from scipy.ndimage import gaussian_filter1d

from beadwork.ipi.outputs import read_properties
from beadwork.units import BOHR

HERE = Path(__file__).parent
ROOT = HERE.parent
MODELS = ROOT / "models" / "water-revpbe0-d3"
PUBLISHED_PEAK = 2.80
STRIDE = 20
BEADS = 16
TIME_STEP = 0.5  # fs


def simulate(work: Path, steps: int, dtype: str) -> None:
    """Run i-PI and beadwork in `work`."""
    source = (ROOT / "inputs" / "water" / "input.xml").read_text()
    source = re.sub(r"<total_steps>\d+", f"<total_steps>{steps}", source)
    source = re.sub(r"<trajectory[^>]*extra_type.*?</trajectory>", "", source, flags=re.DOTALL)
    beads = f"<trajectory stride='{STRIDE}' filename='pos' format='xyz'> positions{{angstrom}} </trajectory>"
    (work / "input.xml").write_text(source.replace("<checkpoint", beads + "\n    <checkpoint"))
    shutil.copy(ROOT / "inputs" / "water" / "init.xyz", work)
    members = [str(MODELS / f"delta-{m}") for m in range(4)]
    command = [sys.executable, "-m", "beadwork.cli", "run", "input.xml", "--baseline", str(MODELS / "baseline")]
    command += ["--delta", *members, "--dtype", dtype, "--queue", "queue.db", "--keep-force", "0.02", "0.5"]
    subprocess.run(command, cwd=work, check=True)


def distances(positions: np.ndarray, others: np.ndarray, length: float) -> np.ndarray:
    """Minimum-image distances (n, m) in a cubic box."""
    difference = positions[:, None] - others[None]
    return np.linalg.norm(difference - length * np.round(difference / length), axis=2)


def analyse(work: Path, skip_ps: float) -> tuple[dict[str, object], np.ndarray, np.ndarray]:
    """Structure of every bead of every frame after `skip_ps`; molecules as they were at the start."""
    first = int(skip_ps * 1000 / TIME_STEP / STRIDE)
    edges = np.linspace(2.0, 4.9, 146)
    counts = np.zeros(len(edges) - 1)
    beads = [ase.io.read(path, ":", format="xyz") for path in sorted(work.glob("simulation.pos_*.xyz"))]
    length = cell_length(work / "simulation.pos_00.xyz")
    oxygens, hydrogens = beads[0][0].numbers == 8, beads[0][0].numbers == 1

    def bonds(positions: np.ndarray) -> np.ndarray:
        return distances(positions[hydrogens], positions[oxygens], length)

    own = bonds(beads[0][0].positions).argmin(axis=1)
    if not (np.bincount(own) == 2).all():
        raise SystemExit(f"{work} does not start with whole molecules")
    longest, strays, lost, samples, pairs = 0.0, 0, 0, 0, 0
    for ring in zip(*(bead[first:] for bead in beads), strict=True):
        # coordinates are unwrapped, so the centroid is their mean
        lost += int((bonds(np.mean([bead.positions for bead in ring], axis=0)).argmin(axis=1) != own).sum())
        for frame in ring:
            lengths = bonds(frame.positions)
            strays += int((lengths.argmin(axis=1) != own).sum())
            samples += len(own)
            longest = max(longest, float(lengths[np.arange(len(own)), own].max()))
            oxygen = frame.positions[oxygens]
            between = distances(oxygen, oxygen, length)[np.triu_indices(len(oxygen), 1)]
            counts += np.histogram(between, edges)[0]
            pairs += len(between)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    g = counts / (pairs * shells / length**3)
    centres = (edges[1:] + edges[:-1]) / 2
    smooth = gaussian_filter1d(g, 2.0)
    fine = np.linspace(2.4, 3.4, 2001)
    temperature = read_properties(work / "simulation.out")["temperature"]
    late = temperature.steps * TIME_STEP / 1000 >= skip_ps
    return (
        {
            "g_OO_first_peak_angstrom": round(float(fine[np.argmax(np.interp(fine, centres, smooth))]), 3),
            "g_OO_first_peak_height": round(float(smooth.max()), 3),
            "g_OO_first_peak_published": PUBLISHED_PEAK,
            "hydrogen_centroids_nearer_to_another_oxygen": lost,
            "hydrogens_of_single_beads_nearer_to_another_oxygen": strays,
            "hydrogens_of_single_beads_looked_at": samples,
            "longest_OH_angstrom": round(longest, 3),
            "temperature_mean_K": round(float(temperature.values[late].mean()), 1),
            "ps": float(temperature.steps[-1] * TIME_STEP / 1000),
            "ps_skipped": skip_ps,
        },
        centres,
        g,
    )


def cell_length(path: Path) -> float:
    """Edge of the cubic cell, Å, from the comment of an i-PI xyz file, which is in Bohr unless it says otherwise."""
    with open(path) as lines:
        next(lines)
        text = next(lines)
    edge = float(re.search(r"CELL\(abcABC\):\s+([\d.]+)", text).group(1))
    return edge * (BOHR if "cell{atomic_unit}" in text else 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ps", type=float, default=2.0)
    parser.add_argument("--skip-ps", type=float, default=0.5, help="left out of the averages")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--analyse-only", action="store_true", help="look at a run that is there, finished or not")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.analyse_only:
        simulate(args.work, round(1000 * args.ps / TIME_STEP), args.dtype)
    result, r, g = analyse(args.work, args.skip_ps)
    summary = args.work / "summary.json"
    if summary.exists():
        kept = json.loads(summary.read_text())
        result |= {key: kept[key] for key in ("structures_per_bead_step", "seconds_per_step", "force_spread_max")}
    result |= {"beads": BEADS, "molecules": 32, "dtype": args.dtype}
    result["passed"] = bool(
        result["hydrogen_centroids_nearer_to_another_oxygen"] == 0
        and abs(result["g_OO_first_peak_angstrom"] - PUBLISHED_PEAK) <= 0.1
    )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "hold_water.json").write_text(json.dumps(result, indent=2) + "\n")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), constrained_layout=True)
    axes.plot(r, g, drawstyle="steps-mid", lw=1)
    axes.axvline(PUBLISHED_PEAK, color="0.5", ls="--", lw=1, label="first peak, X-ray, 295 K")
    axes.set(xlabel="r (Å)", ylabel="g$_{OO}$(r)", xlim=(2, 4.9), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(HERE / "results" / "hold_water.png", dpi=130)
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
