"""The rows that need no i-PI: graphs against MACE's, and how our own evaluation scales. Prints JSON.

`python benchmarks/parts.py graph|scaling|step [--quick] [--threads N] --models FOLDER`
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from system import QUICK, Plan, frames, models, water

from beadwork.frame import Frame


def timed(call: Callable[[list[Frame]], Any], structures: list[Frame]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    call(structures)
    return time.perf_counter() - begin


def graph(plan: Plan) -> dict[str, Any]:
    """Seconds to make the graph of all beads: MACE's way, ours from nothing, ours with the lists kept."""
    from beadwork.potential.architecture import mace_imported
    from beadwork.potential.graph import GraphBuilder

    with mace_imported():
        from mace import data
        from mace.tools import AtomicNumberTable, torch_geometric
    import torch

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    table = AtomicNumberTable([1, 8])
    keys = data.KeySpecification()
    cutoff = plan.loop.cutoff
    rng = np.random.default_rng(0)
    structures = frames(water(plan.loop.waters), plan.wire_beads)

    def move() -> list[Frame]:
        # 0.01 Å: what a hydrogen travels in half a femtosecond
        return [Frame(f.numbers, f.positions + rng.normal(0, 0.006, f.positions.shape), f.cell) for f in structures]

    def mace_graph(now: list[Frame]) -> Any:
        configs = data.config_from_atoms_list([f.to_atoms() for f in now], key_specification=keys)
        dataset = [data.AtomicData.from_config(c, z_table=table, cutoff=cutoff) for c in configs]
        return next(iter(torch_geometric.dataloader.DataLoader(dataset, batch_size=len(dataset), shuffle=False)))

    kept = GraphBuilder(cutoff)
    theirs, ours = mace_graph(structures), kept.build(structures)
    lengths = np.linalg.norm(_vectors(theirs), axis=1)
    parity = (
        float(np.abs(np.sort(lengths) - np.sort(ours.lengths)).max()) if len(lengths) == len(ours.lengths) else None
    )
    if parity is None or parity > 1e-5:  # mace's are float32
        raise ValueError(f"the two graphs are not of the same edges ({len(lengths)} and {len(ours.lengths)}, {parity})")
    rounds = []
    for _ in range(plan.rounds):
        seconds: dict[str, list[float]] = {"mace": [], "rebuilt": [], "kept": []}
        for step in range(1 + plan.steps):
            now = move()
            times = {
                "mace": timed(mace_graph, now),
                "rebuilt": timed(GraphBuilder(cutoff).build, now),
                "kept": timed(kept.build, now),
            }
            if step:
                for name, value in times.items():
                    seconds[name].append(value)
        rounds.append(seconds)
    return {"edges": len(ours.lengths), "largest_difference": parity, "rounds": rounds}


def _vectors(batch: Any) -> Any:
    sender, receiver = batch.edge_index.numpy()
    positions = batch.positions.numpy()
    return positions[receiver] - positions[sender] + batch.shifts.numpy()


def scaling(plan: Plan, folder: Path) -> dict[str, Any]:
    """Seconds of one evaluation against beads and atoms, the median of the rounds in which the sizes take turns."""
    from beadwork.potential.auto_engine import open_engine
    from beadwork.potential.potential import Potential

    size = plan.loop
    potential = Potential(open_engine(models(folder, size.channels, size.cutoff, 1)[0], "native", "float64", "cpu"))
    cases = [("beads", beads, size.waters) for beads in plan.scaling_beads]
    cases += [("atoms", 1, waters) for waters in plan.scaling_waters]
    structures = [frames(water(waters), beads) for _, beads, waters in cases]
    seconds = np.array([[timed(potential.evaluate, some) for some in structures] for _ in range(1 + plan.rounds)])
    series: dict[str, Any] = {"beads": [], "atoms": []}
    # not ru_maxrss, which begins with that of the process that started this one
    told = Path("/proc/self/status").read_text(encoding="utf-8")
    series["peak_GiB"] = int(told.split("VmHWM:")[1].split()[0]) / 2**20
    for (name, beads, waters), middle in zip(cases, np.median(seconds[1:], axis=0), strict=True):
        series[name].append({"beads": beads, "atoms": 3 * waters, "seconds": float(middle)})
    return series


def step(plan: Plan, folder: Path) -> dict[str, Any]:
    """Where an evaluation's time goes, with a committee: medians of each part, seconds."""
    from beadwork.potential.auto_engine import open_engine
    from beadwork.potential.potential import Potential

    size = plan.loop
    bundles = models(folder, size.channels, size.cutoff, 1 + size.members)
    baseline, *members = (open_engine(bundle, "native", "float64", "cpu") for bundle in bundles)
    potential = Potential(baseline, members)
    structures = frames(water(size.waters), size.beads)
    parts = [potential.evaluate(structures).seconds for _ in range(1 + plan.steps)][1:]
    return {"seconds": {name: float(np.median([part[name] for part in parts])) for name in parts[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("graph", "scaling", "step"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, required=True)
    args = parser.parse_args()
    from beadwork.potential.threads import set_threads

    set_threads(args.threads)
    plan = QUICK if args.quick else Plan()
    answer = {
        "graph": lambda: graph(plan),
        "scaling": lambda: scaling(plan, args.models),
        "step": lambda: step(plan, args.models),
    }[args.part]()
    print(json.dumps({**answer, "threads": os.environ["OMP_NUM_THREADS"]}))


if __name__ == "__main__":
    main()
