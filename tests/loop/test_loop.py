"""The loop closed: simulate, choose, label, train, validate, swap; with real i-PI and real training."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w

from beadwork.errors import ConfigError, ModelError, SimulationError
from beadwork.harvest.queue import CLAIMED, FAILED, LABELLED, Queue
from beadwork.label.worker import Outcome
from beadwork.loop import loop as loops
from beadwork.loop import simulate
from beadwork.loop.generations import write_page
from beadwork.loop.loop import Generation, generations, learn, plan, read_loop, served, why_stop
from beadwork.potential.bundle import committee_hash, load_card, load_committee, members_of, sha256
from beadwork.potential.load import load
from beadwork.toml import tomllib
from beadwork.train.committee import open_folder
from beadwork.train.dataset import Dataset
from beadwork.train.divide import divide
from support import truth
from support.loop_project import MODELS, command, diary, environment, project
from support.queues import kept, water


@pytest.mark.timeout(900)
def test_one_generation_goes_from_frames_to_a_served_committee(ipi, tmp_path) -> None:
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
    assert page.count('<svg role="img" aria-label="flagged rate and errors"') == 3


def test_rule_to_stop(tmp_path) -> None:
    """It goes on while one of the two falls by a tenth, and stops when neither does."""
    loop = read_loop(written(tmp_path))

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
        ({"labels": 0}, "labels is 0; it must be at least 1"),
        ({"start": "over"}, "choose from again, continue"),
        ({"run": {"queue": "q.db"}}, "sets itself"),
        ({"run": {"keep-novelty-of": "both"}}, "sets itself"),
        ({"run": {"devices": ["cuda:0", "cuda:1"]}}, "a server each"),
        ({"run": {"keep-most": 3, "keep_most": 4}}, "both spellings"),
        ({"train": {"epoch": 3}}, "train sets 'epoch', which is no option; did you mean epochs[?]"),
        ({"lables": 3}, "sets 'lables', which is no option; did you mean labels[?]"),
        ({"run": {"keep_mots": 3}}, r"\[run\] sets 'keep-mots', which is no option; did you mean keep-most[?]"),
        ({"run": {"cooldown": "10"}}, r"\[run\]: cooldown is '10'; it wants a whole number"),
        ({"run": {"cooldown": -1}}, "cooldown is -1; it cannot be negative"),
        ({"run": {"not-periodic": True}}, "in a file it is periodic = false"),
        ({"delta": ["d", "e"]}, "delta is .*; it wants a path"),
        ({"simulations": {"w": 1}}, "simulations is .*; it wants a table of paths"),
    ],
)
def test_what_cannot_be_run(tmp_path, wrong, sentence) -> None:
    """A LOOP.toml with a mistake is refused before anything is computed, with the mistake in the sentence."""
    with pytest.raises(ConfigError, match=sentence):
        read_loop(written(tmp_path, **wrong))


def test_paths_count_from_the_file(tmp_path) -> None:
    """A loop can be started from any folder."""
    loop = read_loop(written(tmp_path))
    assert loop.baseline == tmp_path / "b"
    assert loop.simulations == {"w": tmp_path / "w.xml"}
    assert loop.folder == tmp_path / "loop"
    assert read_loop(written(tmp_path, delta=["d"])).delta == tmp_path / "d"


def test_options_of_the_run_in_either_spelling(tmp_path) -> None:
    """What `beadwork run` takes with _ and with - the loop takes so too, its own uses of the option included."""
    loop = read_loop(written(tmp_path, run={"keep_most": 7, "keep_force": [0.2], "on-mark": "count"}))
    assert loop.run == {"keep-most": 7, "keep-force": [0.2], "on-mark": "count"}
    assert loop.low == 0.2


def test_all_generations_are_counted_by_one_band(tmp_path) -> None:
    """Without keep-force the band is that of the committee that the loop begins with: later ones have a smaller spread,
    and a mark that fell with it would hide what was learned."""
    loop = read_loop(written(tmp_path, run={}))
    first = loop.delta
    first.mkdir(exist_ok=True)
    spread = {"shares": [0.5, 0.99], "force_eV_per_angstrom": [0.01, 0.02]}
    about = {"members": ["delta-0", "delta-1"], "spread_held_out": spread}
    (first / "committee.toml").write_text(tomli_w.dumps(about))
    assert loop.window == [0.02, 5.0]
    assert loop.low == 0.02
    assert read_loop(written(tmp_path, run={"mark-spread": 2.0})).window == [0.02, 2.0]
    assert read_loop(written(tmp_path, run={"keep-force": []})).low == np.inf


class Stopped:
    """A run of `simulate.start` that stops at once, as if the loop were interrupted."""

    def finish(self) -> None:
        raise SimulationError("stopped")

    def until(self, committee: str, steps: int, *before: Any) -> None:
        raise SimulationError(f"stopped before {steps} steps")

    def end(self) -> None:
        pass


class Done(Stopped):
    """The same of one that has come to its end."""

    def finish(self) -> None:
        pass


@pytest.fixture
def stopping(monkeypatch) -> None:
    """No simulation comes further than its begin."""
    monkeypatch.setattr(simulate, "start", lambda *asked: Stopped())


@pytest.mark.parametrize("start", ["again", "live"])
def test_a_file_in_the_shells_folder_is_not_taken(ipi, tmp_path, monkeypatch, stopping, start) -> None:
    """The command given in a folder that has an init.xyz of its own simulates what lies beside the input; a live one
    for the steps that are left of it."""
    loop = project(ipi, tmp_path, start=start)
    xml = tmp_path / "water" / "input.xml"
    xml.write_text(xml.read_text().replace("<total_steps>", "<step>5</step><total_steps>"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "init.xyz").write_text("no structure")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(SimulationError, match="stopped before 7 steps" if start == "live" else "stopped"):
        learn(loop, print)
    copied = tmp_path / "loop" / ("live" if start == "live" else "gen-000") / "water" / "start" / "init.xyz"
    assert copied.read_text() == (tmp_path / "water" / "init.xyz").read_text()


@pytest.mark.parametrize("name", ["baseline", "start/delta-0"])
def test_other_models_than_it_began_with(ipi, tmp_path, stopping, name) -> None:
    """A model made again between two calls: the generation that was begun is not gone on with, for none of its steps
    would count, and the sentence names both states and the model; with the old one put back it goes on."""
    shutil.copytree(MODELS / "baseline", tmp_path / "baseline")
    loop = project(ipi, tmp_path, baseline="baseline")
    with pytest.raises(SimulationError, match="stopped"):
        learn(loop, print)
    was = generations(tmp_path / "loop")[0].stages["begin"]["hash"]
    (tmp_path / name).rename(tmp_path / "kept")
    shutil.copytree(MODELS / "delta-3", tmp_path / name)
    with pytest.raises(ConfigError, match=rf"begun with the models {was}, .*sha256.*{name}.*put back") as refused:
        learn(loop, print)
    assert str(refused.value).count("sha256:") == 2
    shutil.rmtree(tmp_path / name)
    (tmp_path / "kept").rename(tmp_path / name)
    with pytest.raises(SimulationError, match="stopped"):
        learn(loop, print)


def test_what_generations_are_compared_by_stays(ipi, tmp_path, stopping) -> None:
    """Other thresholds, simulations or starts than a generation was begun with are refused before anything is
    simulated, by a dry run too: the rates of two generations would be of different things. What says how much is
    labelled or learned may change. Of an earlier release the names of the simulations stand with their results."""
    path = project(ipi, tmp_path)
    with pytest.raises(SimulationError, match="stopped"):
        learn(path, print)
    xml = str(tmp_path / "water" / "input.xml")
    settings = tomllib.loads(path.read_text())
    (generation,) = generations(tmp_path / "loop")
    begun = dict(generation.stages["begin"])
    old = {name: value for name, value in begun.items() if name not in loops._compared(read_loop(path))}
    assert len(old) == len(begun) - 5
    for changed, sentence, known in (
        ({"labels": 9, "falling": 0.2}, "", False),
        ({"run": {"keep-force": [0.5]}}, r"keep-force = \[0.0001\], and the loop's file says \[0.5\]", False),
        ({"run": {**settings["run"], "keep-novelty": 2.0}}, "keep-novelty = 1.0, .* says 2.0", None),
        ({"start": "continue"}, "start = again, .* says continue", None),
        ({"simulations": {"liquid": xml}}, r"simulations = \['water'\], .* says \['liquid'\]", True),
        ({"simulations": {"water": xml, "liquid": xml}}, r"says \['liquid', 'water'\]", True),
    ):
        path.write_text(tomli_w.dumps({**settings, **changed}))
        for begin, refused in ((begun, bool(sentence)), *([] if known is None else [(old, known)])):
            stages = {"begin": begin} if begin is begun else {"begin": old, "simulate": {"runs": {"water": {}}}}
            (generation.folder / "generation.json").write_text(json.dumps(stages))
            if refused:
                with pytest.raises(ConfigError, match=f"gen-000 was begun with .*{sentence}.*put it back"):
                    plan(path)
            else:
                assert "gen-000: begin" in plan(path)
    (generation.folder / "generation.json").write_text(json.dumps({"begin": begun}))
    with pytest.raises(ConfigError, match=r"says \['liquid', 'water'\]"):
        learn(path, print)


def test_inputs_stay_what_generations_began_with(ipi, tmp_path, monkeypatch, stopping) -> None:
    """An input, or the structure that it names, that is edited under the same name is refused: between two calls, and
    while a generation is trained; with the old one put back the loop goes on."""
    path = project(ipi, tmp_path)
    with pytest.raises(SimulationError, match="stopped"):
        learn(path, print)
    for file in ("input.xml", "init.xyz"):
        edited = tmp_path / "water" / file
        before = edited.read_bytes()
        edited.write_bytes(before.replace(b"300", b"310") if file == "input.xml" else before.replace(b"O ", b"O  ", 1))
        assert edited.read_bytes() != before
        with pytest.raises(ConfigError, match=r"water/input.xml, or a file that it names, is not what .*gen-000 was"):
            plan(path)
        edited.write_bytes(before)
    assert "gen-000: begin" in plan(path)
    shutil.copytree(tmp_path / "start", tmp_path / "loop" / "gen-000" / "committee")
    (generation,) = generations(tmp_path / "loop")
    stages = {"simulate": {"runs": {"water": {"flagged": 1, "steps": 2}}}, "choose": {"rows": [1]}}
    stages |= {"label": {}, "train": {}, "validate": {"old": {}, "new": {}}}
    (generation.folder / "generation.json").write_text(json.dumps(generation.stages | stages))

    def swap(*asked: Any) -> dict[str, Any]:
        (tmp_path / "water" / "input.xml").write_bytes((tmp_path / "water" / "input.xml").read_bytes() + b"\n")
        return {}

    monkeypatch.setattr(loops._Learning, "_swap", swap)
    with pytest.raises(ConfigError, match=r"is not what .*gen-000 was begun with.*put it back"):
        learn(path, print)
    assert [g.folder.name for g in generations(tmp_path / "loop")] == ["gen-000"]


def test_error_bars_are_of_the_blocks_that_were_held_out(tmp_path, monkeypatch) -> None:
    """The errors of generations count blocks as the training did, by the `apart` of the card, and not by the default:
    frames 10 steps apart are one block of 100 steps, of which no error bar is known, and a dozen of 10."""
    frames = truth.clusters(12, 1, most=1)
    examples = [replace(truth.example(f, n), simulation="sim", step=10 * n) for n, f in enumerate(frames)]
    forces = np.concatenate([e.forces for e in examples])
    error = np.random.default_rng(3).normal(size=(12, 1, 1)).repeat(3, 1).repeat(3, 2).reshape(-1, 3)
    found = SimpleNamespace(energies=np.array([e.energy for e in examples]), forces=forces + error, spread=None)
    delta = SimpleNamespace(evaluate=lambda _: found, members=[0])
    monkeypatch.setattr("beadwork.train.calibration.load", lambda *_, **__: delta)
    bars = []
    for apart in (100, 10):
        committee = tmp_path / str(apart)
        (committee / "delta-0").mkdir(parents=True)
        about = tomllib.loads((MODELS.parent / "water-highlevel" / "delta-0" / "card.toml").read_text())
        about["plan"]["settings"]["apart"] = apart
        (committee / "delta-0" / "card.toml").write_text(tomli_w.dumps(about))
        (committee / "committee.toml").write_text('members = ["delta-0"]\n')
        bars.append(loops.errors_of(committee, examples, committee)["force"])
    one = error[::3, 0] * 1e3
    assert bars[0] == [pytest.approx(np.sqrt((one**2).mean())), pytest.approx(np.nan, nan_ok=True)]
    assert bars[1][0] == pytest.approx(bars[0][0])
    # of a root mean square it is that of the mean square over twice the root, but for the chance of the bootstrap
    assert bars[1][1] == pytest.approx((one**2).std() / np.sqrt(12) / (2 * bars[1][0]), rel=0.05)


def test_no_step_of_these_models(ipi, tmp_path, monkeypatch) -> None:
    """A simulation whose steps all came from other models is an error, not a flagged rate of nothing that ends the
    loop."""
    loop = project(ipi, tmp_path)

    def start(folder: Path, *asked: Any) -> None:
        (folder / "out-0").mkdir()
        (folder / "out-0" / "beadwork.out").write_text(f"# from step 0 on a: sha256:{12 * 'f'} in m\n0 2 -1 1 1 0.1\n")

    monkeypatch.setattr(simulate, "start", start)
    with pytest.raises(SimulationError, match=r"no step in .*gen-000/water was evaluated by sha256:"):
        learn(loop, print)
    assert "simulate" not in generations(tmp_path / "loop")[0].stages


def test_a_loop_begins_with_members_on_one_trunk(ipi, tmp_path, monkeypatch) -> None:
    """One bundle of several heads is a committee, by the hash that its server has, weights of heads and all; one model
    alone is none."""
    loop = project(ipi, tmp_path)
    start = tmp_path / "start"
    shutil.rmtree(start / "delta-1")
    (start / "committee.toml").write_text('members = ["delta-0"]\n')
    with pytest.raises(ConfigError, match="no folder of a committee of two members or more"):
        learn(loop, print)
    card = tomllib.loads((start / "delta-0" / "card.toml").read_text())
    (start / "delta-0" / "heads.npz").write_bytes(b"heads")
    card["sha256"]["heads.npz"] = sha256(start / "delta-0" / "heads.npz")
    (start / "delta-0" / "card.toml").write_text(tomli_w.dumps(card))

    def stop(*asked: Any) -> None:
        raise SimulationError("stopped")

    monkeypatch.setattr(simulate, "start", stop)
    with pytest.raises(SimulationError, match="stopped"):
        learn(loop, print)
    (generation,) = generations(tmp_path / "loop")
    models = [load_card(model).hash for model in (read_loop(loop).baseline, start / "delta-0")]
    assert generation.stages["begin"]["hash"] == committee_hash(models, [1 / 3] * 3)


@pytest.mark.parametrize(("flagged", "steps"), [(-1, 10), (11, 10), (np.nan, 10)])
def test_counts_that_cannot_be_are_refused(tmp_path, flagged, steps) -> None:
    """A damaged record would say that flagged steps are fewer than before, and the loop would go on, or end."""
    record = {"simulate": {"runs": {"water": {"flagged": flagged, "steps": steps}}}}
    (tmp_path / loops.RECORD).write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=f"{loops.RECORD} cannot be read .*more steps flagged than it has"):
        assert Generation(tmp_path).flagged


@pytest.mark.parametrize(("mark", "flagged"), [(None, 3), (2.5, 2), (np.inf, 1)])
def test_what_is_new_to_the_baseline_is_named_and_not_asked_for(ipi, tmp_path, monkeypatch, mark, flagged) -> None:
    """Steps are flagged by the spread and by Δ's novelty. What is new to the baseline alone is no reason for a label of
    the high level, so it is not counted and the server is told not to keep it; log and page say so, and what it wants.
    The rate is that of the steps whose spread is known; novelty is told of all.
    """
    loop = project(ipi, tmp_path, run={"keep-force": [0.1], **({} if mark is None else {"keep-novelty": mark})})
    asked = []

    def start(folder: Path, options: Any, kept: int) -> Stopped:
        asked.append(options)
        (folder / "out-0").mkdir()
        hash = served(read_loop(loop).baseline, read_loop(loop).delta)[:19]
        lines = ["# step structures energy energy_spread force_spread evaluation/s novelty_baseline novelty_delta"]
        lines += [f"# from step 0 on a: {hash} in m"]
        between = "nan 0.1 0.5 9.0"  # of members on one trunk, whose spread of forces was not asked for
        looks_of = ("0.01 0.1 7.25 0.99", "0.01 0.1 7.0 1.0", between, "0.2 0.1 6.0 3.0", "0.01 0.1 0.9 2.5")
        for step, looks in enumerate(looks_of):
            lines += [f"{step} 2 -1 1 {looks}"]
        (folder / "out-0" / "beadwork.out").write_text("\n".join(lines) + "\n")
        return Done()

    monkeypatch.setattr(simulate, "start", start)
    told: list[str] = []
    (generation,) = learn(loop, told.append)
    assert asked[0]["keep-novelty-of"] == "delta"
    assert generation.stages["end"]["reason"] == "no frame is asked for any more"
    assert generation.flagged == flagged / 4
    run = generation.stages["simulate"]["runs"]["water"]
    assert run["novelty"] == {"baseline": {"largest": 7.25, "new": 3}, "delta": {"largest": 9.0, "new": 3}}
    said = next(line for line in told if "steps flagged" in line)
    assert (
        "new to Δ at 3 of 5 steps (novelty up to 9.00); new to the baseline at 3 of 5 steps (novelty up to 7.25)"
        in said
    )
    assert "labels of the baseline's own level and a new baseline" in said
    page = write_page(read_loop(loop)).read_text()
    assert "7.25, 3 steps above 1" in page
    assert "labels of the baseline's own level and a new baseline" in page
    generation.stages["simulate"]["runs"]["water"].pop("novelty")  # of an earlier release
    (generation.folder / "generation.json").write_text(json.dumps(generation.stages))
    assert "unknown" in write_page(read_loop(loop)).read_text()


def test_a_row_that_fails_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """`beadwork learn -q` names the rows that have no label and why, as `beadwork label -q` does."""
    told: list[str] = []
    learning = SimpleNamespace(tell=told.append)
    for outcome in (Outcome(7, FAILED, reason="no spin 2 with 10 electrons"), Outcome(8, LABELLED)):
        loops._Learning._report_outcome(learning, outcome, 2)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "row 7: failed: no spin 2 with 10 electrons")
    assert told == ["row 8: labelled"]


@pytest.fixture
def labelling(ipi, tmp_path, springs, monkeypatch) -> tuple[Any, list[str]]:
    """A loop that has come to its stage `label`, with five frames, and what it tells."""
    loop = read_loop(project(ipi, tmp_path))
    loop.folder.mkdir()
    told: list[str] = []
    learning = loops._Learning(loop, "loop.toml", told.append)
    learning.spec = springs()
    learning.queue.add_all([kept(water(seed), seed) for seed in range(5)])
    monkeypatch.setattr(loops, "LOOK_SECONDS", 0.05)
    return learning, told


def test_rows_that_somebody_else_has_are_waited_for(labelling) -> None:
    """The loop goes on in another place while claims of the old one still run, and somebody else labels too: the stage
    ends when all chosen rows are done, names who has them, takes over what nobody renews, and knows all labels."""
    learning, told = labelling
    queue = learning.queue
    queue.claim("0ldlo0p0/elsewhere:9", 300, 1)
    queue.claim("5ec0nd00/elsewhere:10", 300, 2)
    tell = learning.tell

    def finish(said: str) -> None:
        tell(said)
        if said.startswith("somebody") and queue.get(2).status == CLAIMED:
            queue.finish(2, "5ec0nd00/elsewhere:10", queue.get(3).label)
            queue.renew(1, "0ldlo0p0/elsewhere:9", 0.1)  # for the last time

    learning.tell = finish
    assert learning._label([2, 1, 3]) == {"labelled": [2, 1, 3], "set_aside": [], "known": [1, 2, 3]}
    (first, *_) = (said for said in told if said.startswith("somebody else labels"))
    assert "row 2 (5ec0nd00/elsewhere:10), row 1 (0ldlo0p0/elsewhere:9): waits" in first
    assert queue.get(1).attempts == 2
    assert {row.status for row in queue.rows()} == {LABELLED, "waiting"}


def test_labels_of_somebody_else_are_reason_to_go_on(labelling) -> None:
    """A second labeller has all frames, or has labelled them: there is something to learn, and the loop does not end
    for want of frames; it does where all labels are known."""
    learning, _ = labelling
    queue = learning.queue
    for id in range(1, 6):
        queue.claim("5ec0nd00/elsewhere:10", 300, id)
    assert learning._choose([])["rows"] == [1, 2, 3, 4, 5]
    for id in range(1, 5):
        queue.finish(id, "5ec0nd00/elsewhere:10", {"method": "springs"})
    before = SimpleNamespace(stages={"label": {"known": [1, 2, 3]}})
    assert learning._choose([before]) == {"rows": [4, 5], "waiting": 0}
    queue.fail(5, "5ec0nd00/elsewhere:10", "does not converge", again=False)
    before.stages["label"]["known"] = [1, 2, 3, 4]
    assert learning._choose([before]) == {"rows": [], "waiting": 0}


def test_a_killed_training_goes_on_with_what_it_began_with(ipi, tmp_path, monkeypatch) -> None:
    """Training is killed, and a frame is labelled by hand: the training goes on with the labels that it was begun with,
    divided as before though some were left out at the borders, and the new one is learned in the generation after."""
    loop = read_loop(project(ipi, tmp_path))
    steps = sorted(np.random.default_rng(4).choice(2000, 50, replace=False).tolist())
    frames = zip(truth.clusters(51, 6, most=1), [*steps, 5000], strict=True)
    labels = [replace(truth.example(f, n), simulation="sim", step=step) for n, (f, step) in enumerate(frames)]
    there, learned, left = labels[:50], [], []

    def killed(examples: Any, baseline: Path, out: Path, settings: Any, previous: Any, *others: Any) -> None:
        settings = replace(settings, apart=100)
        dataset = divide(out, [], examples, settings, previous)
        open_folder(out, dataset)
        learned.append(Dataset.read(out).hash)
        left.append(len(examples) - len(dataset.examples))
        raise ModelError("killed")

    monkeypatch.setattr(loops, "from_queue", lambda *asked: [e for e in there if e.row in asked[3]])
    monkeypatch.setattr(loops, "train_committee", killed)
    loop.folder.mkdir()
    learning = loops._Learning(loop, "loop.toml", print)
    for number, known in ((0, 50), (0, 50), (1, 51)):
        generation = Generation(loop.folder / f"gen-{number:03d}")
        generation.stages["label"] = {"known": list(range(known))}
        with pytest.raises(ModelError, match=r"^killed$"):
            learning._train(generation, loops.committee_of(loop, number))
        # the first one again, by another version of its code
        there = [*labels, replace(labels[0], row=49, label=replace(labels[0].label, version="2"))]
    assert left[0] > 0, "or there is nothing to protect"
    assert learned[0] == learned[1] != learned[2]
    second = Dataset.read(loop.folder / "gen-001" / "committee").examples
    assert {labels[0].hash, labels[50].hash} <= {e.hash for e in second}
    assert not any(e.label.version == "2" for e in second), "it would count twice"


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_heads_on_one_trunk_go_round_to_the_end(ipi, tmp_path) -> None:
    """One i-PI and one server: separate members hand over to heads on one trunk, and these to the heads that went on
    from them. Each committee is what the next step's extras name, and has `keep-most` frames of its own, with the
    spread of the heads; the last is one bundle that opens as so many members, with the alpha that was fitted to it."""
    train = {"members": 2, "trunk": "shared", "epochs": 4, "batch_size": 2, "hidden_irreps": "8x0e", "r_max": 4.0}
    train |= {"held_out": 0.34, "apart": 0, "jobs": {"workers": 1}}
    run = {"keep-force": [1e-4], "cooldown": 2, "keep-most": 20}
    loop = project(ipi, tmp_path, start="live", generations=2, train=train, run=run)
    ended = subprocess.run(command(loop), env=environment(), capture_output=True, text=True, timeout=1700, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, second, last = generations(tmp_path / "loop")
    assert "end" in last.stages
    taken = json.loads((tmp_path / "loop" / "live" / "water" / "out-0" / "summary.json").read_text())["committees"]
    served_by = [generation.stages["begin"]["hash"] for generation in (first, second, last)]
    assert [entry["committee"] for entry in taken] == [name[:19] for name in served_by]
    assert taken[0]["step"] < taken[1]["step"] < taken[2]["step"]
    rows = Queue(tmp_path / "loop" / "queue.db").rows()
    by = [[row.kept for row in rows if row.kept.committee == name] for name in served_by]
    # while labels were computed the first two had thousands of steps that were worth it
    assert [len(of) for of in by[:2]] == [20, 20]
    assert sum(map(len, by)) == len(rows)
    assert all(kept.force_spread.max() > 0 and len(kept.member_energies) == 2 for of in by for kept in of)
    baseline = load_card(read_loop(loop).baseline)
    for generation, name in ((first, served_by[1]), (second, served_by[2])):
        (bundle,) = members_of([generation.folder / "committee"])
        card = load_card(bundle)
        assert card.about["heads"] == 2
        assert committee_hash([baseline.hash, card.hash]) == name
    assert card.about["plan"]["start"] == [load_card(first.folder / "committee" / "delta-0").hash]
    current = load(baseline.path, members_of([tmp_path / "loop" / "current"]))
    said = load_committee(members_of([second.folder / "committee"]))
    assert (current.alpha, current.energy_alpha) == (said.alpha, said.energy_alpha)
    answer = current.evaluate([rows[0].kept.frame])
    assert len(answer.spread.members) == 2
    assert answer.spread.largest[0] > 0


def test_a_live_simulation_keeps_its_number_of_members(ipi, tmp_path) -> None:
    """What its server would refuse after a whole generation of labels and training is refused before the first."""
    loop = project(ipi, tmp_path, start="live", train={"members": 3})
    with pytest.raises(ConfigError, match=r"start has 2 members and \[train\] makes 3, .*set members = 2 in"):
        learn(loop, print)
    assert not (tmp_path / "loop" / "gen-000").exists()


def begin_of(xml: str) -> str:
    """Without blanks."""
    return "".join(xml.split())


def test_the_loop_knows_a_committee_as_the_server_does(tmp_path: Path) -> None:
    """It waits until that committee has answered, by its hash: weights of the card, and those that were typed, too, and
    what is added to the baseline."""
    shipped = Path(__file__).parents[2] / "models" / "water-revpbe0-d3"
    baseline, folder = shipped / "baseline", tmp_path / "committee"
    for name in ("delta-0", "delta-1"):
        shutil.copytree(shipped / name, folder / name)
    found = set()
    for weights in ([1.0, 1.0], [1.0, 3.0]):
        (folder / "committee.toml").write_text(f'members = ["delta-0", "delta-1"]\nalpha = 1.0\nweights = {weights}\n')
        for typed in (None, [3.0, 1.0]):
            potential = load(baseline, [folder], "torchscript", weights=typed)
            assert served(baseline, folder, typed) == potential.identity
            found.add(potential.identity)
    add = {"zbl": "1"}
    potential = load(baseline, [folder], "torchscript", add=add)
    assert served(baseline, folder, add=add) == potential.identity
    found.add(potential.identity)
    assert len(found) == 4
