"""float32 against float64, one thread against two, and one process against two: speed, forces, drift and averages.

    python benchmarks/precision.py FOLDER [--quick] [--note TEXT] [--out RESULTS]

32 H2O of inputs/water with models/water-revpbe0-d3 (baseline + 4 Δ), compiled engine. Speed is that of 8 beads, in one
process, or in two of 4 beads at the same time, as `--devices cpu,cpu` has them; all settings take turns. Drift is of
real i-PI at constant energy (one bead, 0.5 fs), in both precisions from one start; FOLDER has these runs. Writes
RESULTS/precision.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from system import beads

from beadwork.frame import Frame
from beadwork.ipi.outputs import read_properties
from beadwork.ipi.simulation import read_simulation

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models" / "water-revpbe0-d3"
INPUT = ROOT / "inputs" / "water" / "input.xml"
DTYPES = ("float64", "float32")
BEADS = 8
#: processes and threads of each
SETTINGS = ((1, 1), (1, 2), (2, 1))
#: fs
TIMESTEP = 0.5


def ring(count: int) -> list[Frame]:
    """Beads about the input's structure."""
    start = read_simulation(INPUT).systems[0].frame(periodic=True)
    return [Frame(start.numbers, x, start.cell, start.pbc, k) for k, x in enumerate(beads(start.to_atoms(), count))]


def child(dtype: str) -> None:
    """Evaluate as many beads as are asked for on stdin; one line of JSON an answer."""
    from beadwork.potential.load import load

    potential = load(MODELS / "baseline", [MODELS], "native", dtype)
    for line in sys.stdin:
        given = ring(int(line))
        begin = time.process_time()
        answer = potential.evaluate(given)
        found = {"cpu": time.process_time() - begin, "energies": answer.energies.tolist()}
        print(json.dumps(found | {"forces": answer.forces.tolist()}), flush=True)


def start(dtype: str, threads: int) -> subprocess.Popen[str]:
    """A process with so many threads, which sleep while they wait, as beadwork has them."""
    own = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "OMP_PROC_BIND": "false"}
    environment = os.environ | own | {"MKL_NUM_THREADS": str(threads), "SYMMETRIX_HOST_WORKER_BLAS": "off"}
    command = [sys.executable, __file__, "--child", dtype]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(processes: list[subprocess.Popen[str]]) -> tuple[float, list[dict[str, Any]]]:
    """Let all of them evaluate their parts of the beads at the same time: seconds of the wall, and the answers."""
    begin, found = time.perf_counter(), []
    for process in processes:
        if process.stdin is None:
            raise RuntimeError("the process was started without pipes")
        process.stdin.write(f"{BEADS // len(processes)}\n")
        process.stdin.flush()
    for process in processes:
        if process.stdout is None:
            raise RuntimeError("the process was started without pipes")
        found.append(json.loads(process.stdout.readline()))
    return time.perf_counter() - begin, found


def speed(rounds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Milliseconds of each setting, all in turns; and how far float32 is from float64."""
    alone = {(dtype, threads): start(dtype, threads) for dtype in DTYPES for threads in (1, 2)}
    second = {dtype: start(dtype, 1) for dtype in DTYPES}
    running = [*alone.values(), *second.values()]
    turns: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    answers = {}
    try:
        for _ in range(1 + rounds):  # the first allocates
            for dtype in DTYPES:
                for count, threads in SETTINGS:
                    those = [alone[dtype, threads], *([second[dtype]] if count == 2 else [])]
                    wall, found = ask(those)
                    turns.setdefault((dtype, count, threads), []).append((wall, sum(one["cpu"] for one in found)))
                    if (count, threads) == SETTINGS[0]:
                        answers[dtype] = found[0]
    finally:
        for process in running:
            process.terminate()
            process.wait()
    rows = []
    for (dtype, count, threads), all_turns in turns.items():
        wall, cpu = 1e3 * np.array(all_turns[1:]).T
        exact = np.array(turns[DTYPES[0], 1, 1][1:]).T * 1e3
        row: dict[str, Any] = {"dtype": dtype, "processes": count, "threads": threads}
        for clock, mine, theirs in (("wall", wall, exact[0]), ("cpu", cpu, exact[1])):
            ratio = theirs / mine
            row |= {
                clock: float(np.median(mine)),
                f"{clock}_ratio": [float(f(ratio)) for f in (np.median, np.min, np.max)],
            }
        rows.append(row)
    exact_forces, rough_forces = (np.array(answers[dtype]["forces"]) for dtype in DTYPES)
    energies = np.subtract(answers["float32"]["energies"], answers["float64"]["energies"])
    atoms = len(exact_forces) / BEADS
    return rows, {
        "forces_rms": float(np.sqrt(np.mean((rough_forces - exact_forces) ** 2))),
        "forces_most": float(np.abs(rough_forces - exact_forces).max()),
        "forces": float(np.sqrt(np.mean(exact_forces**2))),
        "energies": float(np.abs(energies).max() / atoms),
    }


def simulate(folder: Path, dtype: str, steps: int) -> dict[str, Any]:
    """One bead at constant energy: drift of the conserved quantity, its scatter about it, and averages."""
    if not (folder / "RESTART").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(INPUT.parent / "init.xyz", folder)
        text = INPUT.read_text(encoding="utf-8")
        text = re.sub(r"<trajectory.*?</trajectory>", "", text, flags=re.S)
        text = re.sub(r"<thermostat.*?</thermostat>", "", text, flags=re.S)
        text = re.sub(r"<total_steps>\d+<", f"<total_steps>{steps}<", text).replace("mode='nvt'", "mode='nve'")
        text = re.sub(r"<address>.*?<", f"<address>precision-{dtype}-{os.getpid()}<", text)
        text = text.replace("nbeads='16'", "nbeads='1'").replace("<batch_size>16<", "<batch_size>1<")
        text = re.sub(r"<timestep units='femtosecond'>.*?<", f"<timestep units='femtosecond'>{TIMESTEP}<", text)
        (folder / "input.xml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "beadwork", "run", "input.xml", "--dtype", dtype, "--threads", "1"]
        command += ["--baseline", str(MODELS / "baseline"), "--delta", str(MODELS)]
        with open(folder / "log", "w", encoding="utf-8") as log:
            subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=True)
    columns = read_properties(folder / "simulation.out")
    atoms = len(read_simulation(INPUT).systems[0].numbers)
    ps = columns["conserved"].steps * TIMESTEP / 1000
    conserved = 1e3 * columns["conserved"].values / atoms
    slope, start_value = np.polyfit(ps, conserved, 1)
    residual = conserved - start_value - slope * ps
    return {
        "ps": float(ps[-1]),
        "drift": float(slope),
        # of white noise; what the time step does to it is slower, and the same in both
        "drift_error": float(residual.std() / (ps.std() * np.sqrt(len(ps)))),
        "scatter": float(residual.std()),
        "temperature": float(columns["temperature"].values.mean()),
        "potential": float(1e3 * columns["potential"].values.mean() / atoms),
        "conserved": conserved.tolist(),
    }


def table(found: dict[str, Any]) -> str:
    """The Markdown page."""
    lines = [
        "# float32, threads and processes",
        "",
        f"{found['when']}, {found['cores']} CPU cores, `benchmarks/precision.py`. 32 H2O, models/water-revpbe0-d3 "
        f"(baseline + 4 Δ, native), {BEADS} beads. {found['note']}".rstrip(),
        "",
        f"ms an evaluation of all beads, median of {found['rounds']} turns; times faster than float64 in one process "
        "with one thread: median and range. CPU time is that of all threads and processes; other programs disturb it "
        "less.",
        "",
        "| precision | processes | threads each | wall, ms | times faster | CPU, ms | times less CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["speed"]:
        told = [
            f"{row[clock]:.0f} | {r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f})"
            for clock in ("wall", "cpu")
            for r in [row[f"{clock}_ratio"]]
        ]
        lines.append(f"| {row['dtype']} | {row['processes']} | {row['threads']} | {' | '.join(told)} |")
    apart, runs = found["apart"], found["runs"]
    lines += [
        "",
        f"Forces in float32 are {1e3 * apart['forces_rms']:.1g} meV/Å (root mean square; at most "
        f"{1e3 * apart['forces_most']:.1g}) from those in float64, which are {1e3 * apart['forces']:.0f}; energies "
        f"{1e3 * apart['energies']:.1g} meV/atom at most.",
        "",
        f"Real i-PI at constant energy, one bead, {TIMESTEP:g} fs, from one start. Drift: slope of the conserved "
        "quantity, with the error of a fit; scatter: about the line.",
        "",
        "| precision | ps | drift, meV/atom/ps | scatter, meV/atom | mean temperature, K "
        "| mean potential, meV/atom, from float64's |",
        "|---|---|---|---|---|---|",
    ]
    for dtype, run in runs.items():
        lines.append(
            f"| {dtype} | {run['ps']:.2f} | {run['drift']:+.4f} ± {run['drift_error']:.4f} | {run['scatter']:.4f} "
            f"| {run['temperature']:.3f} | {run['potential'] - runs['float64']['potential']:+.4f} |"
        )
    lines += [
        "",
        f"The conserved quantities of the two are {found['conserved_apart']:.1g} meV/atom apart at most.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build" / "precision")
    parser.add_argument("--quick", action="store_true", help="check the harness")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--note", default="", help="a sentence about the machine for the page")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    rounds, steps = (1, 20) if args.quick else (args.rounds, args.steps)
    rows, apart = speed(rounds)
    runs = {dtype: simulate(args.folder.absolute() / dtype, dtype, steps) for dtype in DTYPES}
    conserved = [np.array(runs[dtype].pop("conserved")) for dtype in DTYPES]
    found = {
        "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "cores": os.cpu_count(),
        "rounds": rounds,
        "note": args.note,
        "speed": rows,
        "apart": apart,
        "runs": runs,
        "conserved_apart": float(np.abs(conserved[0] - conserved[1]).max()),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "precision.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.out / "precision.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
