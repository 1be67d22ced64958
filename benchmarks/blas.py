"""What the compiled engine gains, or loses, without BLAS: the shipped models, one process a setting, in turns.

    python benchmarks/blas.py [--quick] [--threads 1,2] [--out FOLDER]

Symmetrix-XL looks for a BLAS library in the running process about 190 times an evaluation, and the search of the
dynamic linker is most of the time of a small system. SYMMETRIX_HOST_WORKER_BLAS=off, which beadwork sets, removes the
search and leaves the products of matrices to Kokkos. The variable is read once a process, so each setting has its own,
and the two take turns, case by case. Energies and forces are compared first. What is compared is CPU time
(all threads), which another program on the machine disturbs least. Writes FOLDER/blas.json and blas.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from system import frames, water

ROOT = Path(__file__).resolve().parent.parent
#: structures, atoms of each, evaluations a turn
CASES = ((1, 7, 20), (32, 7, 5), (1, 96, 5), (16, 96, 1), (8, 192, 1), (1, 768, 1))
QUICK = ((1, 7, 2), (2, 24, 1))
SETTINGS = ("off", "automatic")
PACKAGES = ("symmetrix-xl", "torch", "numpy")


def structures(count: int, atoms: int) -> list[Any]:
    """Beads of H5O2+ (7 atoms) or of a box of water."""
    if atoms != 7:
        return frames(water(atoms // 3), count)
    from ase import Atoms

    # O O, the proton between them, and two hydrogens at each, turned against each other
    x = [(-1.2, 0, 0), (1.2, 0, 0), (0, 0, 0), (-1.55, 0.9, 0.1), (-1.55, -0.5, 0.75)]
    x += [(1.55, 0.1, -0.9), (1.55, 0.75, 0.5)]
    return frames(Atoms("OOHHHHH", x), count)


def child(dtype: str) -> None:
    """Measure each case that is asked for on stdin; one line of JSON an answer."""
    from beadwork.potential.load import load

    opened: dict[str, Any] = {}
    for line in sys.stdin:
        count, atoms, repeats = json.loads(line)
        name = "water-highlevel" if atoms == 7 else "water-revpbe0-d3"
        if name not in opened:
            folder = ROOT / "models" / name
            opened[name] = load(folder / "baseline", [folder], "native", dtype)
        potential, given = opened[name], structures(count, atoms)
        answer = potential.evaluate(given)  # the first allocates
        wall, begin = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            answer = potential.evaluate(given)
        found = {
            "cpu": (time.process_time() - begin) / repeats,
            "wall": (time.perf_counter() - wall) / repeats,
            "energies": answer.energies.tolist(),
            "forces": answer.forces.ravel().tolist(),
        }
        print(json.dumps(found), flush=True)


def start(setting: str, dtype: str, threads: int) -> subprocess.Popen[str]:
    """A process with this setting, so many threads, and waiting threads asleep as beadwork has them."""
    environment = os.environ | {
        "SYMMETRIX_HOST_WORKER_BLAS": setting,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "OMP_PROC_BIND": "false",
    }
    command = [sys.executable, __file__, "--child", dtype]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: subprocess.Popen[str], case: tuple[int, int, int]) -> dict[str, Any]:
    """One turn of a case in this process."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    process.stdin.write(json.dumps(case) + "\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def measure(dtype: str, threads: int, cases: tuple[tuple[int, int, int], ...], rounds: int) -> list[dict[str, Any]]:
    """All cases in one precision with so many threads."""
    running = {setting: start(setting, dtype, threads) for setting in SETTINGS}
    rows = []
    try:
        for case in cases:
            turns: dict[str, list[dict[str, Any]]] = {setting: [] for setting in SETTINGS}
            for _ in range(1 + rounds):
                for setting in SETTINGS:
                    turns[setting].append(ask(running[setting], case))
            one, two = (turns[setting][0] for setting in SETTINGS)
            row: dict[str, Any] = {"structures": case[0], "atoms": case[1], "dtype": dtype, "threads": threads}
            for key in ("energies", "forces"):
                row[f"{key}_apart"] = float(np.abs(np.subtract(one[key], two[key])).max())
            for clock in ("cpu", "wall"):
                times = {setting: [turn[clock] for turn in turns[setting][1:]] for setting in SETTINGS}
                ratios = np.divide(times["automatic"], times["off"])
                row |= {f"{clock}_ms_{s}": 1e3 * float(np.median(t)) for s, t in times.items()}
                row[f"{clock}_ratio"] = [float(f(ratios)) for f in (np.median, np.min, np.max)]
            rows.append(row)
            print(row, flush=True)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    return rows


def table(found: dict[str, Any]) -> str:
    """The Markdown page."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "# The compiled engine with and without BLAS",
        "",
        f"{found['when']}, {found['cores']} CPU cores, {found['machine']}, {versions}. Shipped models, baseline + 4 Δ: "
        f"water-highlevel for 7 atoms (H5O2+), water-revpbe0-d3 for boxes of water. {found['note']}",
        "",
        "`automatic` is what Symmetrix-XL does by itself, `off` is what beadwork sets. CPU time of all threads, ms an "
        "evaluation (graph, five models, sum), median of the turns; times less: automatic over off, median and range "
        f"of {found['rounds']} pairs of turns. Wall time in the same turns, which other programs disturb more. "
        "Apart: the largest difference of an energy (eV) and of a force's component (eV/Å).",
        "",
        "| precision | threads | structures | atoms | automatic, ms | off, ms | times less CPU | times less wall time "
        "| energies apart | forces apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        cpu, wall = r["cpu_ratio"], r["wall_ratio"]
        lines.append(
            f"| {r['dtype']} | {r['threads']} | {r['structures']} | {r['atoms']} | {r['cpu_ms_automatic']:.1f} "
            f"| {r['cpu_ms_off']:.1f} | {cpu[0]:.2f} ({cpu[1]:.2f} to {cpu[2]:.2f}) "
            f"| {wall[0]:.2f} ({wall[1]:.2f} to {wall[2]:.2f}) "
            f"| {r['energies_apart']:.0e} | {r['forces_apart']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="check the harness")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="a sentence about the machine for the page")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    rounds = 1 if args.quick else args.rounds
    rows = []
    for threads in map(int, args.threads.split(",")):
        for dtype in ("float64", "float32"):
            rows += measure(dtype, threads, QUICK if args.quick else CASES, rounds)
    found = {
        "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "rounds": rounds,
        "note": args.note,
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "blas.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.out / "blas.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
