"""Heads on one trunk against separate members, trained on the labels of models/water-highlevel: errors and coverage.

    python benchmarks/trunk_errors.py FOLDER [--epochs 32 64 ...] [--separate] [--out RESULTS]

Trains eight heads on one trunk in FOLDER/shared-EPOCHS for each number of epochs, and with --separate four members with
the same settings in FOLDER/separate, one after the other and resumable; then measures all that are there, and the
committee that ships (four members, two trainings of 16 and 24 epochs), on 56 frames of 28 simulations that none has
learned from. Errors of two committees on the same frames go up and down together, so their ratio has an error bar of
its own, by drawing simulations at random. Writes RESULTS/trunk_errors.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.label.jobs import Jobs
from beadwork.potential.bundle import COMMITTEE, load_card, members_of
from beadwork.train.calibration import Errors, calibrate, residuals
from beadwork.train.committee import train_committee
from beadwork.train.dataset import Dataset
from beadwork.train.label_file import from_file
from beadwork.train.plan import apart_of, references
from beadwork.train.settings import TrainSettings
from beadwork.train.split import unseen

ROOT = Path(__file__).resolve().parent.parent
LABELS = ROOT / "models" / "water-highlevel"
SEPARATE = TrainSettings(epochs=32, batch_size=5, energy_weight=100.0, held_out=0.15, seed=1, jobs=Jobs(workers=1))
#: what the others are compared with
COMPARED = "4 separate members, 32 epochs each"
SHARED = replace(SEPARATE, members=8, trunk="shared")


def train(folder: Path, settings: TrainSettings) -> None:
    """Train what is not there yet, and note the CPU time that it took."""
    if (folder / COMMITTEE).exists():
        return
    before = os.times()
    train_committee(list(Dataset.read(LABELS).examples), LABELS / "baseline", folder, settings, None, print)
    now = os.times()
    seconds = now.user + now.children_user - before.user - before.children_user
    (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def measure(committee: Path) -> dict[str, Any]:
    """Errors (meV/atom, meV/Å) with error bars, alphas, and the share of errors inside one and two sigma."""
    examples = unseen(from_file(LABELS / "labels" / "mp2-unseen.extxyz", LABELS / "baseline"), Dataset.read(committee))
    members = members_of([committee])
    found = residuals(examples, members, references(members[0]), apart_of(members[0]))
    if found.forces is None:
        raise ValueError("the labels have no forces")
    seconds = committee / "seconds.json"
    return {
        "members": load_card(members[0]).about.get("heads", len(members)),
        "bundles": len(members),
        "frames": len(examples),
        "seconds": json.loads(seconds.read_text(encoding="utf-8")) if seconds.exists() else None,
        "energy": [1e3 * x for x in found.energy.rmse],
        "forces": [1e3 * x for x in found.forces.rmse],
        "squares": {what: squares(errors) for what, errors in (("energy", found.energy), ("forces", found.forces))},
        "coverage": {
            name: {"alpha": c.alpha, "after": [x[0] for x in c.after], "expected": list(c.expected)}
            for name, c in calibrate(found).items()
        },
    }


def squares(errors: Errors) -> list[float]:
    """The sum of the squared errors of each simulation."""
    at = np.unique(errors.frame if errors.block is None else errors.block, return_inverse=True)[1]
    return np.bincount(at, weights=errors.error**2).tolist()  # type: ignore[no-any-return]


def times(mine: list[float], theirs: list[float]) -> tuple[float, float]:
    """How many times larger a root mean square error is, and the error bar of that. The sums are of the same frames."""
    sums = np.array([mine, theirs])
    draws = np.random.default_rng(0).integers(len(mine), size=(1000, len(mine)))
    drawn = sums[:, draws].sum(axis=2)
    return float(np.sqrt(np.divide(*sums.sum(axis=1)))), float(np.sqrt(drawn[0] / drawn[1]).std())


def table(found: dict[str, Any]) -> str:
    """The Markdown page."""
    frames = next(iter(found["rows"].values()))["frames"]
    lines = [
        "# Heads on one trunk against separate members: errors",
        "",
        f"{found['when']}. Trained on the 401 MP2 labels of models/water-highlevel (16x0e, float32, batches of "
        f"{SEPARATE.batch_size}); measured on {frames} frames of simulations that none has learned from. Error bars "
        "are over simulations. Inside: share of the errors within one and two sigma after alpha, fitted on the other "
        "half of the simulations; in brackets what so many members should have.",
        "",
        "| committee | CPU time of training, s | forces, meV/Å | times the separate members' | energies, meV/atom "
        "| times the separate members' | alpha (forces, energies) | forces inside, % | energies inside, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        inside = {
            what: ", ".join(f"{100 * a:.0f} ({100 * e:.0f})" for a, e in zip(c["after"], c["expected"], strict=True))
            for what, c in row["coverage"].items()
        }
        alphas = ", ".join(f"{row['coverage'][what]['alpha']:.2f}" for what in ("forces", "energy"))
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells = []
        for what in ("forces", "energy"):
            cells.append(f"{row[what][0]:.1f} ± {row[what][1]:.1f}")
            known = found["rows"].get(COMPARED) if name != COMPARED else None
            ratio = known and times(row["squares"][what], known["squares"][what])
            cells.append(f"{ratio[0]:.2f} ± {ratio[1]:.2f}" if ratio else "–")
        cells += [alphas, inside["forces"], inside["energy"]]
        lines.append(f"| {name} | {seconds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--epochs", type=int, nargs="*", default=[32, 64], help="of the trunk: those of a head times heads"
    )
    parser.add_argument("--separate", action="store_true", help="train four separate members too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for epochs in args.epochs:
        # a shared trunk has twice the epochs of a separate member (docs/training.md)
        train(args.folder / f"shared-{epochs}", replace(SHARED, epochs=epochs // 2))
    if args.separate:
        train(args.folder / "separate", SEPARATE)
    shared = sorted(args.folder.glob("shared-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    names = {
        **{f"8 heads on one trunk, {folder.name.rpartition('-')[2]} epochs in all": folder for folder in shared},
        COMPARED: args.folder / "separate",
        "4 separate members that ship, 40 epochs each": LABELS,
    }
    rows = {name: measure(folder) for name, folder in names.items() if (folder / COMMITTEE).exists()}
    found = {"when": datetime.now(timezone.utc).isoformat(timespec="minutes"), "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trunk_errors.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.out / "trunk_errors.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
