"""Do the shipped models hold water? Path-integral MD of liquid water at 300 K, checked for structure.

    python benchmarks/hold_water.py --ps 2 --work scratch/

Runs `inputs/water` (16 beads of 32 H2O, 0.5 fs) with baseline + Δ through real i-PI, and then checks on every bead:
every oxygen has two hydrogens within 1.3 Å of it (allowing for quantum excursions of a proton along its hydrogen
bond), temperature, and the first peak of g_OO against 2.80(1) Å, measured by X-ray diffraction at 295 K (Skinner et
al., J. Chem. Phys. 138, 074506, 2013). Writes results/hold_water.json and .png.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import matplotlib
import numpy as np
from scipy.ndimage import gaussian_filter1d

from beadwork.observe.picture import read_properties

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
    """Structure of every bead of every frame after `skip_ps`."""
    first = int(skip_ps * 1000 / TIME_STEP / STRIDE)
    edges = np.linspace(2.0, 4.9, 146)
    counts = np.zeros(len(edges) - 1)
    second_hydrogen, pairs, volume = 0.0, 0, 0.0
    whole = True
    for path in sorted(work.glob("simulation.pos_*.xyz")):
        for atoms in ase.io.iread(path, index=f"{first}:", format="xyz"):
            length = float(re.search(r"CELL\(abcABC\):\s+([\d.]+)", comment(path)).group(1))
            oxygen, hydrogen = atoms.positions[atoms.numbers == 8], atoms.positions[atoms.numbers == 1]
            bonds = np.sort(distances(oxygen, hydrogen, length), axis=1)
            second_hydrogen = max(second_hydrogen, float(bonds[:, 1].max()))
            whole &= bool((bonds[:, 1] < 1.3).all() and (bonds[:, 2] > bonds[:, 1]).all())
            oo = distances(oxygen, oxygen, length)[np.triu_indices(len(oxygen), 1)]
            counts += np.histogram(oo, edges)[0]
            pairs += len(oo)
            volume = length**3
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    g = counts / (pairs * shells / volume)
    centres = (edges[1:] + edges[:-1]) / 2
    fine = np.linspace(2.4, 3.4, 2001)
    peak = float(fine[np.argmax(np.interp(fine, centres, gaussian_filter1d(g, 2.0)))])
    run = read_properties(work / "simulation.out")
    late = run["step"] * TIME_STEP / 1000 >= skip_ps
    return (
        {
            "g_OO_first_peak_angstrom": round(peak, 3),
            "g_OO_first_peak_height": round(float(gaussian_filter1d(g, 2.0).max()), 3),
            "g_OO_first_peak_published": PUBLISHED_PEAK,
            "every_oxygen_keeps_two_hydrogens": whole,
            "largest_distance_to_second_hydrogen_angstrom": round(second_hydrogen, 3),
            "temperature_mean_K": round(float(run["temperature"][late].mean()), 1),
            "ps": float(run["step"][-1] * TIME_STEP / 1000),
            "ps_skipped": skip_ps,
        },
        centres,
        g,
    )


def comment(path: Path) -> str:
    """Return the second line of an xyz file."""
    with open(path) as lines:
        next(lines)
        return next(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ps", type=float, default=2.0)
    parser.add_argument("--skip-ps", type=float, default=0.5, help="left out of the averages")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--analyse-only", action="store_true", help="look at a run that is there, finished or not")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    if not args.analyse_only:
        simulate(args.work, round(1000 * args.ps / TIME_STEP), args.dtype)
    result, r, g = analyse(args.work, args.skip_ps)
    summary = args.work / "summary.json"
    if summary.exists():
        kept = json.loads(summary.read_text())
        result |= {key: kept[key] for key in ("structures_per_bead_step", "seconds_per_step", "force_spread_max")}
    result |= {"beads": BEADS, "molecules": 32, "dtype": args.dtype, "minutes": round((time.time() - begin) / 60, 1)}
    result["passed"] = bool(
        result["every_oxygen_keeps_two_hydrogens"] and abs(result["g_OO_first_peak_angstrom"] - PUBLISHED_PEAK) <= 0.1
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
