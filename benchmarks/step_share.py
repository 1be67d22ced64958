"""What of a step of i-PI is neither models nor i-PI: graph, sum, spread, novelty, replies, wire, record, queue.

    python benchmarks/step_share.py [--quick] [--steps N] [--threads N] [--work FOLDER] [--out FOLDER]

32 beads of 64 H2O by `beadwork run` with its default settings and a queue, for baseline and four separate Δ models and
for the same four on one trunk; random weights, all models of one size, each with a training set for its novelty. The
server's own clocks give the parts of a step. The features that novelty needs are read inside a model's time, so what
they cost is measured apart: CPU time of evaluations with and without novelty, in turns. Writes FOLDER/step_share.json
and step_share.md.
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
import peers as p
from system import Size, committees, frames, models, water, write_start

ROOT = Path(__file__).resolve().parent.parent
QUICK = Size(beads=2, waters=8, channels=8, cutoff=4.0, members=2)
FULL = Size(beads=32)
#: structures on which novelty is fitted, and how many make a block
KNOWN, BLOCK = 32, 8
#: parts that are neither a model nor i-PI
REST = ("graph", "reduce", "pack", "send", "aside")
PACKAGES = ("beadwork", "ipi", "mace-torch", "torch", "symmetrix-xl", "numpy")


def with_novelty(bundles: list[Path], size: Size) -> None:
    """Fit the novelty of each bundle that has none, on structures like those of the run."""
    from beadwork.potential.bundle import load_card
    from beadwork.train.fit_novelty import fit_bundle

    known = frames(water(size.waters), KNOWN, seed=7)
    for bundle in bundles:
        if load_card(bundle).novelty is None:
            fit_bundle(bundle, known, [k // BLOCK for k in range(KNOWN)], print)


def run(folder: Path, size: Size, bundles: list[Path], steps: int, threads: int) -> dict[str, float]:
    """Seconds of each part of a step of a real run with default settings, the mean without the first."""
    folder.mkdir(parents=True)
    write_start(folder, size)
    place = p.Place(folder, size, [], bundles, f"beadwork-share-{os.getpid()}-{folder.name}")
    xml = p.input_xml(p.ours_native(place, p.Setting(threads)), size)
    (folder / "input.xml").write_text(xml.replace("1000000</total_steps>", f"{1 + steps}</total_steps>"))
    words = ["run", "input.xml", "--engine", "native", "--threads", str(threads), "--out", "ours", "--queue", "queue"]
    words += ["--baseline", str(bundles[0]), "--delta", *map(str, bundles[1:])]
    done = subprocess.run(
        [sys.executable, "-m", "beadwork.cli", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"beadwork run ended with {done.returncode}: {done.stderr[-2000:]}")
    summary = json.loads((folder / "ours" / "summary.json").read_text())
    print(f"{folder.name}: {summary['seconds_per_step']:.3f} s a step", flush=True)
    return dict(summary["seconds_per_step_by_part"])


def features_share(size: Size, bundles: list[Path], rounds: int) -> list[float]:
    """CPU time that novelty adds to an evaluation, as a fraction of one without it, round by round."""
    from beadwork.potential.load import load

    one, other = (load(bundles[0], bundles[1:], engine="native") for _ in range(2))
    for engine in (one.baseline, *one.models):
        engine.training_set = None
    structures = frames(water(size.waters), size.beads)
    found = []
    for _ in range(1 + rounds):
        seconds = []
        for potential in (one, other):
            begin = time.process_time()
            potential.evaluate(structures)
            seconds.append(time.process_time() - begin)
        found.append(seconds[1] / seconds[0] - 1)
    return found[1:]


def table(data: dict[str, Any]) -> str:
    """The report in Markdown."""
    size, versions = data["size"], ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [
        "# What of a step is neither models nor i-PI",
        "",
        f"{data['date']}, {data['cores']} CPU cores, {platform.machine()}; {versions}. {size['beads']} beads of "
        f"{size['waters']} H2O, {size['channels']} channels (L = 1), {size['cutoff']:g} Å, float64, random weights, "
        f"native engine on {data['threads']} threads; {data['steps']} steps of `beadwork run` with default settings, a "
        "queue and novelty. Other programs shared the machine.",
        "",
        "| | " + " | ".join(data["runs"]) + " |",
        "|---|" + "---|" * len(data["runs"]),
    ]
    names = list(dict.fromkeys(name for parts in data["runs"].values() for name in parts if name in ("idle", *REST)))
    for name in ("models", *names):
        cells = []
        for parts in data["runs"].values():
            value = parts.get(name, 0.0) if name != "models" else _models(parts)
            cells.append(f"{1e3 * value:.2f} ms, {100 * value / sum(parts.values()):.2f} %")
        said = {"idle": "i-PI, and waiting for it", "reduce": "sum, spread, novelty", "aside": "record, queue"}
        lines.append(f"| {said.get(name, name)} | " + " | ".join(cells) + " |")
    rest = [sum(parts.get(name, 0.0) for name in REST) / sum(parts.values()) for parts in data["runs"].values()]
    lines.append("| **neither models nor i-PI** | " + " | ".join(f"**{100 * share:.2f} %**" for share in rest) + " |")
    cost = 100 * np.array(data["novelty"])
    if not len(cost):
        return "\n".join([*lines, "", "What novelty adds was not measured in this run; results/novelty.md has it.", ""])
    lines += [
        "",
        f"All that novelty adds to an evaluation of baseline and separate models (CPU time, {len(cost)} rounds in "
        f"turns): {np.median(cost):.2f} % ({cost.min():.2f} to {cost.max():.2f}); the part of it that reads features "
        "is inside a model's time.",
        "",
    ]
    return "\n".join(lines)


def _models(parts: dict[str, float]) -> float:
    return sum(value for name, value in parts.items() if name not in ("idle", *REST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny case: a check that it works, no measurement")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "step_share")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    from beadwork.potential.threads import set_threads

    set_threads(args.threads)
    folder = args.work.resolve() / f"models-{size.channels}-{size.cutoff:g}"
    folder.mkdir(parents=True, exist_ok=True)
    baseline = models(folder, size.channels, size.cutoff, 1)
    *separate, trunk = committees(folder, size.channels, size.cutoff, size.members)
    with_novelty([*baseline, *separate, trunk], size)
    kinds = {
        f"baseline and {size.members} separate models": [*baseline, *separate],
        f"baseline and {size.members} heads on one trunk": [*baseline, trunk],
    }
    place = args.work.resolve() / f"run-{os.getpid()}"
    data = {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "cores": len(os.sched_getaffinity(0)),
        "threads": args.threads,
        "steps": args.steps,
        "size": vars(size),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "runs": {
            name: run(place / str(k), size, bundles, args.steps, args.threads)
            for k, (name, bundles) in enumerate(kinds.items())
        },
        "novelty": features_share(size, [*baseline, *separate], args.rounds),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "step_share.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / "step_share.md").write_text(table(data))
    print(table(data))


if __name__ == "__main__":
    main()
