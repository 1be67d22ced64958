"""The loop closed: simulate, choose, label, train, validate, swap; with real i-PI and real training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from beadwork.errors import ConfigError
from beadwork.harvest.queue import LABELLED, Queue
from beadwork.learn.dataset import Dataset
from beadwork.learn.loop import Generation, generations, read, why_stop
from beadwork.potential.bundle import load_card, members_of

HERE = Path(__file__).parent


def _shared() -> Any:
    """Real i-PI's fixtures: pytest's importlib mode adds no paths, and a conftest is seen in its folder only."""
    name = "end_to_end_conftest"
    if name not in sys.modules:
        spec = spec_from_file_location(name, HERE.parent / "end_to_end" / "conftest.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = module_from_spec(spec)  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
    return sys.modules[name]


shared = _shared()
_environment, ipi = shared._environment, shared.ipi
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
            "jobs": 1,
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
    return os.environ | {"PYTHONPATH": str(HERE)}


def diary(folder: Path, name: str) -> list[str]:
    """Who was labelled."""
    file = folder / name
    return file.read_text().split() if file.exists() else []


@pytest.mark.timeout(900)
def test_one_generation(ipi, tmp_path) -> None:
    """Everything once: frames are harvested, labelled once each, learned, validated and swapped; the next simulation
    is served by what was learned, and all of it is on record."""
    loop = project(ipi, tmp_path)
    ended = subprocess.run(command(loop), env=environment(), capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, last = generations(tmp_path / "loop")
    assert list(first.stages) == ["begin", "simulate", "choose", "label", "train", "validate", "swap"]
    assert list(last.stages) == ["begin", "simulate", "end"]
    assert "1 generations were allowed" in last.stages["end"]["reason"]
    # each frame was computed once, and its label is in the queue
    rows = Queue(tmp_path / "loop" / "queue.db").rows(status=LABELLED)
    assert {row.id for row in rows} == set(first.stages["choose"]["rows"]) == set(first.stages["label"]["labelled"])
    assert 3 <= len(rows) <= 6
    calls = diary(tmp_path, "calls")
    assert len(calls) == len(set(calls)) == len(rows)
    # it learned from exactly these, and the next simulation was served by what it learned
    committee = first.folder / "committee"
    dataset = Dataset.read(committee)
    assert sorted(e.row for e in dataset.examples) == [row.id for row in rows]
    assert {load_card(member).about["dataset"] for member in members_of([committee])} == {dataset.hash}
    assert last.stages["begin"]["dataset"] == dataset.hash
    summary = json.loads((last.folder / "water" / "out-0" / "summary.json").read_text())
    assert last.stages["begin"]["hash"].startswith(summary["committees"][0]["committee"])
    assert members_of([tmp_path / "loop" / "current"])[0].resolve() == (committee / "delta-0").resolve()
    assert first.flagged > 0
    page = (tmp_path / "loop" / "generations.html").read_text()
    assert "gen-001" in page
    assert "data:image/png" in page


def test_rule_to_stop(tmp_path) -> None:
    """It goes on while one of the two falls by a tenth, and stops when neither does."""
    loop = read(written(tmp_path))

    def two(flagged: float, then: float, error: float, new: float) -> str | None:
        before, now = Generation(tmp_path / "a"), Generation(tmp_path / "b")
        before.stages = {
            "simulate": {"runs": {"water": {"flagged": flagged, "steps": 100}}},
            "validate": {"old": {"force": [error, 1.0]}, "new": {"force": [new, 1.0]}},
        }
        now.stages = {"simulate": {"runs": {"water": {"flagged": then, "steps": 100}}}}
        return why_stop(loop, before, now)

    assert two(50, 40, 30, 30) is None
    assert two(50, 50, 30, 20) is None
    assert "nothing fell by 10 %" in (two(50, 46, 30, 28) or "")
    assert "from 0.5 to 0.6" in (two(50, 60, 30, 40) or "")


def written(folder: Path, **loop: Any) -> Path:
    """A LOOP.toml alone."""
    settings = {"baseline": "b", "delta": "d", "labeller": "l.toml", "simulations": {"w": "w.xml"}}
    path = folder / "loop.toml"
    path.write_text(tomli_w.dumps({**settings, **loop}))
    return path


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"simulations": {}}, r"\[simulations\]"),
        ({"simulations": {"a/b": "w.xml"}}, "names a folder"),
        ({"labels": 0}, "1 or more"),
        ({"start": "over"}, "choose from again, continue"),
        ({"run": {"queue": "q.db"}}, "sets itself"),
        ({"train": {"epoch": 3}}, "no setting of a training"),
        ({"lables": 3}, "no option"),
    ],
)
def test_what_cannot_be_run(tmp_path, wrong, sentence) -> None:
    """A LOOP.toml with a mistake is refused before anything is computed, with the mistake in the sentence."""
    with pytest.raises(ConfigError, match=sentence):
        read(written(tmp_path, **wrong))


def test_paths_count_from_the_file(tmp_path) -> None:
    """A loop can be started from any folder."""
    loop = read(written(tmp_path))
    assert loop.baseline == tmp_path / "b"
    assert loop.simulations == {"w": tmp_path / "w.xml"}
    assert loop.folder == tmp_path / "loop"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", ["continue", "live"])
def test_simulation_goes_on(ipi, tmp_path, start) -> None:
    """`continue`: the next generation begins at the step and in the place where the last one ended. `live`: one i-PI
    and one server all along, and the committee that was just trained answers from a step on."""
    loop = project(ipi, tmp_path, start=start)
    ended = subprocess.run(command(loop), env=environment(), capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, last = generations(tmp_path / "loop")
    assert "end" in last.stages
    served = [generation.stages["begin"]["hash"][:19] for generation in (first, last)]
    if start == "continue":
        begun = (last.folder / "water" / "part-0.xml").read_text()
        assert "<step>12</step>" in begin_of(begun)
        table = np.loadtxt(last.folder / "water" / "run.out")
        assert table[-1, 0] == 24
        return
    assert [folder.name for folder in (tmp_path / "loop" / "live" / "water").glob("out-*")] == ["out-0"]
    out = tmp_path / "loop" / "live" / "water" / "out-0"
    taken = json.loads((out / "summary.json").read_text())["committees"]
    assert [entry["committee"] for entry in taken] == served
    assert taken[1]["step"] >= 12
    assert last.stages["simulate"]["runs"]["water"]["steps"] >= 12
    assert not (tmp_path / "loop" / "live" / "water" / "group").exists()


def begin_of(xml: str) -> str:
    """Without blanks."""
    return "".join(xml.split())
