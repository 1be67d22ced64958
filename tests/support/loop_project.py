"""What a user of `beadwork learn` brings, tiny, and how he types it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import tomli_w

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models" / "water-revpbe0-d3"


def project(ipi, folder: Path, *, steps: int = 12, seconds: float = 0.0, **loop: Any) -> Path:
    """What a user brings, tiny: an input, a committee that learned something else, a labeller. Returns LOOP.toml."""
    run = ipi.Input(folder / "water", [ipi.Forcefield(batch=2, latency=1e-3)], beads=2, steps=steps).write()
    committee = folder / "start"
    committee.mkdir()
    for name in ("delta-0", "delta-1"):
        shutil.copytree(MODELS / name, committee / name)
    (committee / "committee.toml").write_text('members = ["delta-0", "delta-1"]\n')
    (folder / "labeller.toml").write_text(
        tomli_w.dumps(
            {
                "kind": "ase",
                "charge": 0,
                "settings": {
                    "calculator": "loop_truth:Truth",
                    "theory": "baseline and a pair potential",
                    "arguments": {"baseline": str(MODELS / "baseline"), "where": str(folder), "seconds": seconds},
                    "ignores_charge": True,
                },
            }
        )
    )
    settings = {
        "baseline": str(MODELS / "baseline"),
        "delta": "start",
        "labeller": "labeller.toml",
        "labels": 6,
        "generations": 1,
        "simulations": {"water": str(run.path)},
        "run": {"keep-force": [1e-4], "cooldown": 2, "engine": "torchscript"},
        "train": {
            "members": 2,
            "epochs": 4,
            "batch_size": 2,
            "hidden_irreps": "8x0e",
            "r_max": 4.0,
            "held_out": 0.34,
            "apart": 0,  # a few dozen steps in all, which would be one block
            "jobs": {"workers": 1},
        },
    }
    path = folder / "loop.toml"
    path.write_text(tomli_w.dumps({**settings, **loop}))
    return path


def command(loop: Path, *before: str) -> list[str]:
    """`beadwork learn` as a user types it, in a process of its own."""
    return [sys.executable, *(before or ("-m", "beadwork.cli")), "learn", str(loop)]


def environment() -> dict[str, str]:
    """Where the truth can be imported from."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}


def diary(folder: Path, name: str) -> list[str]:
    """Who was labelled."""
    file = folder / name
    return file.read_text().split() if file.exists() else []
