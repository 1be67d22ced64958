"""A committee on one trunk against separate members: what an evaluation costs. Random weights, one process, in turns.

    python benchmarks/trunk.py [--quick] [--rounds N] [--models FOLDER] [--out FOLDER]

All models have the same sizes. First the heads on one trunk are held to the same heads evaluated one after the other.
CPU time of an evaluation (graph, models, sum), which other programs on the machine disturb least; ratios to the
baseline alone are taken in each round, and the median over rounds counts. Writes FOLDER/trunk.json and trunk.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from system import Size, frames, models, trunk, water

ROOT = Path(__file__).resolve().parent.parent
HEADS, MEMBERS = 8, 4
#: evaluations from one with the spread of forces to the next, as it is by default
EVERY = 10
QUICK = Size(beads=2, waters=8, channels=8, cutoff=4.0)
PACKAGES = ("symmetrix-xl", "torch", "numpy", "mace-torch")


def measure(size: Size, folder: Path, rounds: int) -> dict[str, Any]:
    """Parity, and seconds of each kind of evaluation, round by round."""
    from beadwork.potential.auto_engine import open_engine
    from beadwork.potential.potential import Potential

    base, *separate = models(folder, size.channels, size.cutoff, 1 + MEMBERS)
    heads = open_engine(trunk(folder, size.channels, size.cutoff, HEADS), "native", size.dtype, "cpu")
    baseline, *members = (open_engine(bundle, "native", size.dtype, "cpu") for bundle in (base, *separate))
    alone, shared, apart = (Potential(baseline, delta) for delta in ([], [heads], members))
    structures = frames(water(size.waters), size.beads)
    whole, quick = shared.evaluate(structures), shared.evaluate(structures, force_spread=False)
    one_by_one = Potential(baseline, shared.members).evaluate(structures)
    parity = {
        name: float(np.abs(getattr(quick, name) - getattr(one_by_one, name)).max()) for name in ("energies", "forces")
    }
    parity["energy_spread"] = float(np.abs(quick.spread.energy - one_by_one.spread.energy).max())
    kinds = {
        "baseline": lambda: alone.evaluate(structures),
        "shared, energies": lambda: shared.evaluate(structures, force_spread=False),
        "shared, forces": lambda: shared.evaluate(structures),
        "separate": lambda: apart.evaluate(structures),
    }
    found: list[dict[str, float]] = []
    for _ in range(1 + rounds):
        turn = {}
        for name, call in kinds.items():
            begin = time.process_time()
            call()
            turn[name] = time.process_time() - begin
        found.append(turn)
        print(turn, flush=True)
    return {"parity": parity, "spread": float(whole.spread.largest.max()), "rounds": found[1:]}


def ratios(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Median, least and most over the rounds of each kind's time over the baseline's."""
    rows = [
        {
            f"{HEADS} heads, energies alone": turn["shared, energies"],
            f"{HEADS} heads, forces every {EVERY}th evaluation (default)": (
                turn["shared, energies"] * (1 - 1 / EVERY) + turn["shared, forces"] / EVERY
            ),
            f"{HEADS} heads, forces at every evaluation": turn["shared, forces"],
            f"{MEMBERS} separate members": turn["separate"],
        }
        for turn in rounds
    ]
    found = {}
    for name in rows[0]:
        values = [row[name] / turn["baseline"] for row, turn in zip(rows, rounds, strict=True)]
        found[name] = [float(f(values)) for f in (np.median, np.min, np.max)]
    return found


def table(found: dict[str, Any]) -> str:
    """The Markdown page."""
    size, parity = found["size"], found["parity"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    base = np.median([turn["baseline"] for turn in found["rounds"]])
    lines = [
        "# A committee on one trunk: what an evaluation costs",
        "",
        f"{found['when']}, {found['cores']} CPU cores, {found['machine']}, {versions}. {size['beads']} x "
        f"{size['waters']} H2O, {size['channels']} channels (L = 1), {size['cutoff']:g} Å, {size['dtype']}, native, "
        f"one thread, random weights, all models of the same sizes. {found['note']}",
        "",
        f"Parity: one evaluation of {HEADS} heads and {HEADS} evaluations of one each differ by "
        f"{parity['energies']:.0e} eV, {parity['forces']:.0e} eV/Å and {parity['energy_spread']:.0e} eV of the energy "
        "spread, at most.",
        "",
        f"CPU time of an evaluation, times that of the baseline alone ({1e3 * base:.0f} ms): median and range of "
        f"{len(found['rounds'])} rounds in turns.",
        "",
        "| baseline and | times the baseline alone |",
        "|---|---|",
        *(f"| {name} | {r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f}) |" for name, r in ratios(found["rounds"]).items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="check the harness")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="a sentence about the machine for the page")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "benchmark-models")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    from beadwork.potential.threads import set_threads

    set_threads(1)
    size = QUICK if args.quick else Size()
    folder = args.models / f"{size.channels}-{size.cutoff:g}"
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "note": args.note,
        "size": {name: getattr(size, name) for name in ("beads", "waters", "channels", "cutoff", "dtype")},
        **measure(size, folder, 1 if args.quick else args.rounds),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trunk.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.out / "trunk.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
