from __future__ import annotations

import ast
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

from beadwork.cli import main
from beadwork.errors import ConfigError, LabelError, ModelError
from beadwork.frame import Frame
from beadwork.label.jobs import Jobs
from beadwork.log import Alarm
from beadwork.potential.bundle import HEADS, check, format_no_better, load_card, load_committee, worse_than_baseline
from beadwork.potential.heads import load_heads
from beadwork.potential.load import load
from beadwork.potential.novelty import load_training_set
from beadwork.toml import tomllib
from beadwork.train.baseline import train_model
from beadwork.train.calibration import held_out
from beadwork.train.committee import open_folder, train_committee
from beadwork.train.dataset import Dataset
from beadwork.train.divide import _dataset
from beadwork.train.member import _draw, _remember, _write, train_member, weights
from beadwork.train.plan import make_plan, references
from beadwork.train.settings import TrainSettings
from beadwork.train.split import split
from beadwork.train.validate import validate
from support import truth

SMALL = TrainSettings(members=2, epochs=3, hidden_irreps="8x0e", batch_size=5, r_max=4.0, energy_weight=10.0, seed=5)


def mixed(count: int = 30, seed: int = 1):
    """Clusters with exact forces, with noisy forces, and with noisy energies alone."""
    kinds = ({}, {"energy_noise": 0.005, "forces_noise": 0.05}, {"energy_noise": 0.02, "forces": False})
    return [
        truth.example(f, n, **kinds[n % 3]) for n, f in enumerate(truth.clusters(count, seed, most=2, charged=True))
    ]


@pytest.fixture(scope="module")
def committee(tmp_path_factory):
    """A small committee that was really trained, and what it said meanwhile."""
    out = tmp_path_factory.mktemp("train") / "first"
    said: list[str] = []
    paths = train_committee(mixed(), truth.BASELINE, out, SMALL, None, said.append, "make it so")
    return out, paths, said


def test_members_are_bundles_that_serve(committee):
    """The members load beside the baseline with alpha and weights, compiled ones too, and both engines agree."""
    out, paths, said = committee
    assert [p.name for p in paths] == ["delta-0", "delta-1"]
    assert all(load_card(p).native for p in paths), [load_card(p).about.get("native") for p in paths]
    card = load_committee(paths)
    assert card is not None
    assert set(card.weights) == {"delta-0", "delta-1"}
    frame = mixed()[4].frame
    potential = load(truth.BASELINE, paths)
    for sentence in potential.select_backends(frame):
        assert "native agrees with torchscript" in sentence
    answer = potential.evaluate([frame])
    assert np.isfinite(answer.forces).all()
    assert answer.spread.largest[0] > 0, "members are not the same"
    assert potential.alpha == card.alpha
    assert f"{out}: 30 labels, 20 with forces and 10 with energies alone; 6 are held out in 6 blocks" in said[0]
    assert len(said) == 4 + bool(worse_than_baseline(out)), "labels, two members, the errors"
    assert all("novelty fitted on 24 frames in" in sentence for sentence in said[1:3])
    assert not (out / "training").exists()


def test_cards_name_the_dataset(committee):
    """From a member to its dataset by hash, with the command, the settings and mace's own command line."""
    out, paths, _ = committee
    dataset = Dataset.read(out)
    for member, path in enumerate(paths):
        about = check(path).about
        assert about["dataset"] == dataset.hash
        assert about["baseline"] == dataset.baseline == load_card(truth.BASELINE).hash
        assert about["method"] == "pair potential"
        assert about["command"] == "make it so"
        assert about["member"] == member
        assert about["novelty"]["frames"] == len(dataset.training), "what is held out is not known to a model"
        assert load_training_set(path / "novelty.npz").model == check(path).hash
        assert about["plan"]["settings"]["hidden_irreps"] == "8x0e"
        assert "--energy_key=DELTA_energy" in about["mace_run_train"]
        assert str(out) not in (path / "card.toml").read_text(), "a card that ships names nobody's folders"
        # the water molecule's references are those of the truth but for what the pairs add on average
        assert set(references(path)) == {1, 8}
        assert about["frames"] + about["frames_choosing_the_epoch"] == len(dataset.training)
    assert len(dataset.testing) == 6
    assert (out / "frames.extxyz").exists()


def test_a_member_without_novelty_is_said_and_kept(committee):
    """Frames of one block have no edge of novelty: the training is not lost by it, and its message says why."""
    out, paths, _ = committee
    before = (paths[0] / "card.toml").read_bytes()
    examples = [replace(e, simulation="one", step=k) for k, e in enumerate(Dataset.read(out).training[:3])]
    said = _remember(Dataset(tuple(examples), (False, False, False)), paths[0], SMALL)
    assert said.startswith("there will be no novelty for it: 3 frames of one block are not enough")
    assert (paths[0] / "card.toml").read_bytes() == before


def test_models_show_prints_the_chain(committee, capsys):
    """From a member's card to every label, by the command that a user types; a dataset that was swapped is noticed."""
    out, paths, _ = committee
    assert main(["models", "show", str(paths[1]), "--frames"]) == 0
    printed = capsys.readouterr().out
    dataset = Dataset.read(out)
    assert f"dataset {dataset.hash}: 30 frames, 6 of them held out" in printed
    assert f"input range {truth.RANGE} (30 frames)" in printed
    assert "computed by test 1 (30 frames)" in printed
    for e in dataset.examples:
        assert f"test {e.row}: {e.composition}" in printed
        assert e.label.hash in printed
    assert printed.count("; held out") == 6
    file = out / "dataset.json"
    text = file.read_text()
    try:
        other = Dataset(dataset.examples, tuple(not o for o in dataset.held_out))
        other.write(out)
        assert main(["models", "show", str(paths[1])]) == LabelError.exit_code
        assert other.hash in capsys.readouterr().err
    finally:
        file.write_text(text)
    assert main(["models", "show", str(truth.BASELINE)]) == 0


def test_called_again_keeps_what_is_there(committee):
    """A finished committee is not trained again; other labels or settings do not overwrite it."""
    out, paths, _ = committee
    before = [(p / "model.pt").stat().st_mtime_ns for p in paths]
    said: list[str] = []
    assert train_committee(mixed(), truth.BASELINE, out, SMALL, None, said.append) == paths
    assert [(p / "model.pt").stat().st_mtime_ns for p in paths] == before
    assert "2 of 2 members" in said[1]
    with pytest.raises(ModelError, match="other labels"):
        train_committee(mixed(31), truth.BASELINE, out, SMALL)
    with pytest.raises(ModelError, match="other labels or settings"):
        train_committee(mixed(), truth.BASELINE, out, replace(SMALL, epochs=4))
    with pytest.raises(LabelError, match="differences to the model"):
        train_committee(mixed(), truth.BASELINE.parent / "delta-0", out, SMALL)


def test_a_delta_worse_than_its_baseline_is_said_by_train_and_by_point(committee, tmp_path, capsys, monkeypatch):
    """351 meV/atom with Δ and 91 without: the last line of a training, and the second of `models point`, an alarm that
    is told however quiet the command is, and red on a terminal. The line before it has the errors in words."""
    out = tmp_path / "c"
    shutil.copytree(committee[0], out)
    table = {"frames": 2, "energy_rmse_meV_per_atom": [351.2, 8.0], "baseline_energy_rmse_meV_per_atom": [91.4, 12.0]}
    sentence = (
        "in energies this Δ is worse than its baseline alone: on 2 frames that no member saw energies are wrong by "
        "351.2 ± 8.0 meV/atom with Δ, 91 ± 12 without; label more frames or train longer before you serve it"
    )
    said: list[str] = []
    for measured, last in ((table, sentence), (table | {"energy_rmse_meV_per_atom": [80.0, 8.0]}, "")):
        monkeypatch.setattr("beadwork.train.committee.held_out", lambda *rest, found=measured: ({"alpha": 1.0}, found))
        train_committee(mixed(), truth.BASELINE, out, SMALL, None, said.append)
        own = {351.2: "351.2 ± 8.0", 80.0: "80.0 ± 8.0"}[measured["energy_rmse_meV_per_atom"][0]]
        errors = f"on 2 frames that no member saw: energies {own} meV/atom (91 ± 12 with the baseline alone)"
        assert said[-1 - bool(last)].endswith(errors)
        assert said[-1].endswith(last or errors)
        assert isinstance(said[-1], Alarm) == bool(last)
        assert main(["models", "point", str(tmp_path / "current"), str(out)]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == [last] * bool(last)
    assert format_no_better(table | {"energy_rmse_meV_per_atom": [95.0, 8.0]}).startswith(
        "in energies this Δ is no better than"
    )


def test_folder_of_a_call_killed_at_its_start_is_taken_again(tmp_path: Path):
    """Frames without dataset.json and parts of files are a killed call's; anything else is somebody's, and refused."""
    examples = mixed(10)
    dataset = Dataset(tuple(examples), split(examples, 0.2, 0))
    open_folder(tmp_path, dataset)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / ".dataset.json.17.part").write_text("{")
    open_folder(tmp_path, dataset)
    assert Dataset.read(tmp_path).hash == dataset.hash
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ModelError, match="no committee's folder"):
        open_folder(tmp_path, dataset)


def test_a_folder_of_before_apart_is_gone_on_with(tmp_path: Path, monkeypatch):
    """The shipped committee's cards have no `apart`, and today's split of its simulations is another one: the same call
    keeps its marks and its members all the same; other labels or settings are still refused."""
    ours = truth.ROOT / "models" / "water-highlevel"
    out, said = tmp_path / "c", []
    shutil.copytree(ours, out)
    dataset, about = Dataset.read(ours), load_card(ours / "delta-0").about
    assert "apart" not in about["plan"]["settings"]
    settings = TrainSettings(**about["plan"]["settings"])
    assert _dataset(dataset.examples, settings, None).hash != dataset.hash, "or there is nothing to protect"
    monkeypatch.setattr("beadwork.train.committee.make_plan", lambda d, s, *_: about["plan"] | {"settings": whole(s)})
    monkeypatch.setattr("beadwork.train.committee.held_out", lambda found, *_: ({}, {"frames": len(found.testing)}))

    def whole(s: TrainSettings) -> dict[str, object]:
        return {k: v for k, v in asdict(s).items() if k not in ("threads", "jobs")}

    examples = dataset.examples[::-1]
    paths = train_committee(examples, ours / "baseline", out, settings, None, said.append)
    assert f"{settings.members} of {settings.members} members" in said[1]
    assert f"errors on {len(dataset.testing)} frames" in said[-1]
    assert [load_card(p).about["dataset"] for p in paths] == [dataset.hash] * settings.members
    with pytest.raises(ModelError, match="other labels"):
        train_committee(examples[1:], ours / "baseline", out, settings)
    with pytest.raises(ModelError, match="other labels or settings"):
        train_committee(examples, ours / "baseline", out, replace(settings, epochs=settings.epochs + 1))


def test_settings_on_the_page_are_the_defaults():
    """docs/training.md shows every setting with its default."""
    page = (truth.ROOT / "docs" / "training.md").read_text()
    block = page.partition("Whatever is left out has its default:")[2].partition("A label with")[0]
    table = tomllib.loads("\n".join(line[4:] for line in block.splitlines()))
    assert set(table) == {f.name for f in fields(TrainSettings)} - {"jobs"}
    assert "    # [jobs] " in block
    assert TrainSettings.from_table(table, "page") == TrainSettings()


def test_failed_training_says_why(tmp_path: Path):
    """mace's last words and its log are named, and nothing half done is left that a later call could take."""
    with pytest.raises(ModelError, match=r"ended with 1 and wrote no model; .*log: "):
        train_committee(mixed(8), truth.BASELINE, tmp_path / "c", replace(SMALL, members=1, hidden_irreps="8y"))
    assert not (tmp_path / "c" / "delta-0").exists()
    assert not (tmp_path / "c" / "committee.toml").exists()


def test_weights_are_one_over_variance_and_capped():
    """Twice the noise counts a quarter where noise rules; below the floor all count the same."""
    s = SMALL
    frame = truth.clusters(1, 1)[0]
    n = len(frame.numbers)

    def both(energy, forces):
        return weights(truth.example(frame, 0, energy_noise=n * energy, forces_noise=forces), s)

    assert both(0, 0) == (1, 1)
    one, two = both(100 * s.energy_floor, 100 * s.forces_floor), both(200 * s.energy_floor, 200 * s.forces_floor)
    assert np.allclose(np.divide(one, two), 4, rtol=1e-3)
    assert np.allclose(one, 1e-4, rtol=1e-3)
    assert min(both(0.1 * s.energy_floor, 0.1 * s.forces_floor)) > 0.99


def test_mace_reads_the_weights(tmp_path: Path):
    """mace 0.3.16's own reader finds energies, forces and weights, and no force weight where there are no forces."""
    from beadwork.potential.architecture import mace_imported

    examples = mixed(6)
    _write(tmp_path / "x.extxyz", examples, SMALL)
    with mace_imported():
        from mace import data

        keys = data.KeySpecification({"energy": "DELTA_energy", "stress": "s", "head": "h"}, {"forces": "DELTA_forces"})
        _, configs = data.load_from_xyz(str(tmp_path / "x.extxyz"), keys)
    for config, example in zip(configs, examples, strict=True):
        energy, forces = weights(example, SMALL)
        assert config.properties["energy"] == pytest.approx(example.energy, abs=1e-9)
        assert config.property_weights["energy"] == pytest.approx(energy)
        assert config.property_weights["forces"] == pytest.approx(0.0 if example.forces is None else forces)
        if example.forces is not None:
            assert np.allclose(config.properties["forces"], example.forces, atol=1e-7)


def test_settings_are_checked(tmp_path: Path):
    """An unknown key, a wrong kind and a value that cannot work are named with the file."""
    file = tmp_path / "train.toml"
    for text, said in (
        ("epoch = 3", "sets 'epoch', which is no option; did you mean epochs?"),
        ("epochs = 2.5", "epochs"),
        ("epochs = 1", "at least 2"),
        ("share = 1.0", "share"),
        ("lr = -1", "lr"),
        ("epochs = ", "cannot read"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            TrainSettings.read(file)
    file.write_text("epochs = 7\nlr = 1\nhidden-irreps = '32x0e'")
    assert TrainSettings.read(file) == TrainSettings(epochs=7, lr=1.0, hidden_irreps="32x0e")


def test_too_few_labels(tmp_path: Path):
    """One frame trains nothing."""
    with pytest.raises(LabelError, match="label more"):
        train_committee(mixed(1), truth.BASELINE, tmp_path / "c", SMALL)


def test_previous_must_fit(committee, tmp_path: Path):
    """Going on from weights of another size, or from something that is no committee, is refused by name."""
    out, _, _ = committee
    with pytest.raises(ModelError, match="hidden_irreps"):
        train_committee(mixed(), truth.BASELINE, tmp_path / "c", replace(SMALL, hidden_irreps="16x0e"), out)
    with pytest.raises(LabelError, match="not made by beadwork train"):
        train_committee(mixed(), truth.BASELINE, tmp_path / "c", SMALL, tmp_path)


@pytest.mark.slow
def test_next_generation_starts_from_the_last(committee, tmp_path: Path):
    """With a learning rate of nothing each member's forces are those of its start; reference energies may move."""
    out, paths, _ = committee
    more = mixed(40)
    still = replace(SMALL, lr=1e-12, epochs=2)
    again = train_committee(more, truth.BASELINE, tmp_path / "second", still, out)
    frames = [e.frame for e in more[30:]]
    for old, new in zip(paths, again, strict=True):
        one, two = load(None, [old]).evaluate(frames), load(None, [new]).evaluate(frames)
        assert np.abs(one.forces - two.forces).max() < 1e-5
        assert np.abs(one.forces).max() > 0.01
    first, second = Dataset.read(out), Dataset.read(tmp_path / "second")
    assert {e.hash for e in first.testing} <= {e.hash for e in second.testing}
    assert not {e.hash for e in first.training} & {e.hash for e in second.testing}
    assert check(again[0]).about["plan"]["start"] == [load_card(p).hash for p in paths]
    # the references took up what the old committee left: in the weights of their fit no mean error is left
    training = second.training
    atoms = np.array([len(e.frame.numbers) for e in training])
    fitted = 1 / ((np.array([e.energy_error for e in training]) / atoms) ** 2 + still.energy_floor**2)

    def mean_error(members: list[Path]) -> float:
        answer = load(None, members).evaluate([e.frame for e in training])
        return float(np.average((answer.energies - [e.energy for e in training]) / atoms, weights=fitted))

    assert abs(mean_error(again)) < 1e-3 * abs(mean_error(paths))


@pytest.mark.slow
def test_killed_training_goes_on(tmp_path: Path):
    """SIGKILL while the second member trains: no process is left, the first member stays, and the next call ends it."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from support import truth\n"
        "from pathlib import Path\n"
        "from beadwork.train.committee import Jobs, TrainSettings, train_committee\n"
        "train_committee([truth.example(f, n) for n, f in enumerate(truth.clusters(30, 1, most=2))], truth.BASELINE,\n"
        "    Path(sys.argv[2]), TrainSettings(members=2, epochs=3, hidden_irreps='8x0e', batch_size=5, jobs=Jobs()))\n"
    )
    out = tmp_path / "c"
    command = [sys.executable, "-c", script, str(Path(truth.__file__).parents[1]), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 280
    while not any("Epoch 0" in log.read_text() for log in out.glob("training/delta-1.*/log.txt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stamp = (out / "delta-0" / "model.pt").stat().st_mtime_ns
    assert not (out / "delta-1").exists()
    while _running(out):
        assert time.monotonic() < deadline, "a training outlived its parent"
        time.sleep(0.1)
    subprocess.run(command, check=True, timeout=280)
    assert (out / "delta-0" / "model.pt").stat().st_mtime_ns == stamp
    assert check(out / "delta-1").about["dataset"] == Dataset.read(out).hash
    assert not (out / "training").exists()


@pytest.mark.slow
def test_an_interrupted_training_ends(tmp_path: Path):
    """SIGTERM while two of four members train at the same time: it ends in seconds, none begins and none is left."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from support import truth\n"
        "from pathlib import Path\n"
        "import signal\n"
        "from beadwork.signals import handled, interrupt\n"
        "from beadwork.train.committee import Jobs, TrainSettings, train_committee\n"
        "settings = TrainSettings(epochs=500, hidden_irreps='8x0e', batch_size=5, jobs=Jobs(workers=2))\n"
        "examples = [truth.example(f, n) for n, f in enumerate(truth.clusters(30, 1, most=2))]\n"
        "with handled({signal.SIGTERM: interrupt}):\n"
        "    train_committee(examples, truth.BASELINE, Path(sys.argv[2]), settings)\n"
    )
    out = tmp_path / "c"
    command = [sys.executable, "-c", script, str(Path(truth.__file__).parents[1]), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 280
    while sum("Epoch 0" in log.read_text() for log in out.glob("training/delta-?.*/log.txt")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert b"Interrupted" in said
    assert time.monotonic() - begun < 30
    assert len(list(out.glob("training/delta-?.*"))) == 2
    assert _running(out) == []


@pytest.mark.slow
def test_members_train_in_processes(tmp_path: Path):
    """Through Parsl's executor, as on a cluster; a worker that is killed in the midst of it gives its member back."""
    pytest.importorskip("parsl", reason="pip install 'beadwork[learn]'")
    psutil = pytest.importorskip("psutil", reason="comes with parsl")
    examples = [truth.example(f, n) for n, f in enumerate(truth.clusters(30, 1, most=2))]
    out, killed = tmp_path / "c", []

    def kill() -> None:
        end = time.monotonic() + 200
        while time.monotonic() < end and not killed:
            if any("Epoch 0" in log.read_text() for log in out.glob("training/delta-1.*/log.txt")):
                for process in psutil.process_iter():
                    with contextlib.suppress(psutil.Error):  # some end meanwhile
                        line = process.cmdline()
                        if "beadwork.train.mace_run" in line and f"{out}/training/delta-1" in " ".join(line):
                            killed.append(process.parent().pid)
                            process.parent().kill()
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    members = train_committee(examples, truth.BASELINE, out, replace(SMALL, epochs=6, jobs=Jobs("processes", 2)))
    killer.join()
    assert len(killed) == 1
    assert [check(member).about["member"] for member in members] == [0, 1]
    assert not (out / "training").exists()


def test_jobs_of_a_training():
    """The table of train.toml is that of a labeller; a number, and what is no setting, are refused with a sentence."""
    read = TrainSettings.from_table({"jobs": {"executor": "processes", "workers": 3}}, "page")
    assert read.jobs == Jobs("processes", 3)
    for wrong in (4, {"worker": 3}, {"executor": "cloud"}):
        with pytest.raises(ConfigError, match="jobs"):
            TrainSettings.from_table({"jobs": wrong}, "page")


def _running(out: Path) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if "beadwork.train.mace_run" in line and str(out) in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_baseline_with_energies_of_atoms(tmp_path: Path):
    """One model of the labels themselves, whose isolated atoms are those given, and which learns something."""
    examples = [replace(e, baseline=None) for e in mixed(40)]
    atoms = {1: -0.5, 8: 1.5}
    out = train_model(examples, tmp_path / "base", replace(SMALL, epochs=12, pair_repulsion=True), atoms)
    assert references(out) == pytest.approx(atoms)
    dataset = Dataset.read(out)
    answer = load(out).evaluate([e.frame for e in dataset.testing])
    error = [a - e.energy for a, e in zip(answer.energies, dataset.testing, strict=True)]
    assert np.std(error) < 0.5 * np.std([e.energy for e in dataset.testing])
    measured = check(out).about["held_out"]
    assert measured["frames"] == len(dataset.testing)
    atom = [e / len(x.frame.numbers) for e, x in zip(error, dataset.testing, strict=True)]
    assert measured["energy_rmse_meV_per_atom"][0] == pytest.approx(1e3 * np.sqrt(np.mean(np.square(atom))), rel=1e-3)
    assert not (tmp_path / "base.parts").exists()
    assert train_model(examples, out, replace(SMALL, epochs=12, pair_repulsion=True), atoms) == out
    with pytest.raises(ModelError, match="other labels or settings"):
        train_model(examples, out, replace(SMALL, epochs=12, pair_repulsion=True), {1: -13.6, 8: -432.0})
    more = [replace(e, baseline=None) for e in mixed(50)]
    again = train_model(
        more, tmp_path / "next", replace(SMALL, epochs=2, seed=6, pair_repulsion=True), atoms, previous=out
    )
    learned = {e.hash for e in Dataset.read(again).training}
    assert len(learned) > len(dataset.training)
    assert not learned & {e.hash for e in dataset.testing}, "what was once held out stays held out"
    with pytest.raises(LabelError, match="isolated atoms"):
        train_model(examples, tmp_path / "other", SMALL, {1: -0.5})
    with pytest.raises(LabelError, match="not on differences"):
        train_model(mixed(), tmp_path / "other", SMALL)


def test_errors_of_a_baseline_are_those_against_the_labels():
    """The card of a model of the labels has its own errors, evaluated here by itself, and no alpha."""
    model = truth.ROOT / "models" / "water-highlevel" / "baseline"
    examples = [replace(e, baseline=None) for e in mixed(20)]
    dataset = Dataset(tuple(examples), split(examples, 0.5, 0))
    spread, measured = held_out(dataset, [model])
    answer = load(model).evaluate([e.frame for e in dataset.testing])
    energy = [(a - e.energy) / len(e.frame.numbers) for a, e in zip(answer.energies, dataset.testing, strict=True)]
    have = np.repeat([e.forces is not None for e in dataset.testing], [len(e.frame.numbers) for e in dataset.testing])
    forces = answer.forces[have] - np.concatenate([e.forces for e in dataset.testing if e.forces is not None])
    assert (spread, measured.pop("frames"), measured.pop("blocks")) == ({}, 10, 10)
    found = {name: value for name, (value, bar) in measured.items() if bar > 0}
    assert found == pytest.approx(
        {
            "energy_rmse_meV_per_atom": 1e3 * np.sqrt(np.mean(np.square(energy))),
            "force_rmse_meV_per_angstrom": 1e3 * np.sqrt(np.mean(forces**2)),
        },
        rel=1e-6,
    )
    assert len(measured) == 2
    assert held_out(Dataset(tuple(examples), (False,) * 20), [model]) == ({}, {"frames": 0})


def test_draws_leave_the_held_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Members draw different frames; what mace is given to read are those not held out, each of them once."""
    examples = mixed(60)
    dataset = Dataset(tuple(examples), split(examples, 0.2, 0))
    dataset.write(tmp_path)
    given: list[list[list[float]]] = []

    def run(work: Path, *_: object) -> Path:
        files = (ase.io.read(work / name, ":") for name in ("train-0.extxyz", "valid-0.extxyz"))
        given.append([[round(atoms.info["DELTA_energy"], 9) for atoms in file] for file in files])
        raise ModelError("seen enough")

    monkeypatch.setattr("beadwork.train.member._run", run)
    plan = make_plan(dataset, SMALL, [])
    for m in range(3):
        with pytest.raises(ModelError, match="seen enough"):
            train_member(m, tmp_path, SMALL, plan, [], {})
    for one, other in given:
        assert sorted([*one, *other]) == sorted(round(e.energy, 9) for e in dataset.training)
        # some of the six frames at the ends of O-O, O-H and H-H would have been among them
        assert 0.2 * len(dataset.training) - 6 <= len(other) <= 0.2 * len(dataset.training) + 1
    assert set(given[0][1]) != set(given[1][1])


def test_all_members_draw_the_ends_of_a_dissociation_curve():
    """The shortest and the longest bond are learned from by every member, at any seed; something always remains."""
    distances = np.linspace(0.5, 1.45, 20)
    pairs = [
        Frame(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, d]]), np.zeros((3, 3)), (False,) * 3) for d in distances
    ]
    examples = [truth.example(frame, n) for n, frame in enumerate(pairs)]
    missed = set()
    for seed in range(5):
        for member in range(4):
            learned, other = _draw(examples, replace(SMALL, seed=seed), member)
            assert {examples[0].hash, examples[-1].hash} <= {e.hash for e in learned}
            missed |= {e.hash for e in other}
    assert len(missed) > 15, "all others are left out now and then"
    for count in (2, 3):
        learned, other = _draw(examples[:count], SMALL, 0)
        assert learned
        assert other


HEADS_OF_ONE = replace(SMALL, members=3, epochs=6, trunk="shared")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A small committee of three heads on one trunk, really trained, and its bundle."""
    out = tmp_path_factory.mktemp("train") / "trunk"
    (path,) = train_committee(mixed(), truth.BASELINE, out, HEADS_OF_ONE, None, command="make it so")
    return out, path


@pytest.mark.slow
def test_heads_on_one_trunk(trunk):
    """A committee of one bundle: each head has a draw of its own, and serving and validate take them as members."""
    out, path = trunk
    about = check(path).about
    assert path.name == "delta-0"
    assert about["heads"] == 3
    assert load_card(path).native, about.get("native")
    dataset = Dataset.read(out)
    draws = [_draw(dataset.training, HEADS_OF_ONE, m) for m in range(3)]
    assert about["frames"] == len({e.hash for drawn, _ in draws for e in drawn})
    options = shlex.split(about["mace_run_train"])
    (heads,) = (option.removeprefix("--heads=") for option in options if option.startswith("--heads="))
    assert list(ast.literal_eval(heads)) == ["head0", "head1", "head2"]
    assert "--max_num_epochs=4" in options
    potential = load(truth.BASELINE, [out])
    answer = potential.evaluate([mixed()[4].frame])
    assert len(answer.spread.members) == 3
    assert answer.spread.largest[0] > 0, "the heads are not the same"
    assert load_committee([path]).weights == {"delta-0": 1.0}
    found = validate(out)
    assert found.found.energy.freedom == 2
    said: list[str] = []
    assert train_committee(mixed(), truth.BASELINE, out, HEADS_OF_ONE, None, said.append) == [path]
    assert any("1 of 1 members" in sentence for sentence in said), said


@pytest.mark.slow
def test_training_goes_on_with_the_same_trunk(trunk, tmp_path):
    """--from takes the weights of all heads; another number of heads, separate members and a baseline are refused."""
    out, path = trunk
    for other, why in ((replace(HEADS_OF_ONE, members=4), "members"), (replace(SMALL, members=3), "trunk")):
        with pytest.raises(ModelError, match=f"{why} .*train without --from"):
            train_committee(mixed(33), truth.BASELINE, tmp_path / "no", other, out)
    with pytest.raises(ConfigError, match="one model"):
        train_model(mixed(), tmp_path / "no", HEADS_OF_ONE)
    (on,) = train_committee(mixed(33), truth.BASELINE, tmp_path / "two", HEADS_OF_ONE, out)
    assert check(on).about["plan"]["start"] == [load_card(path).hash]
    # four epochs with a small learning rate: the same neurons, moved
    old, new = (load_heads(p / HEADS, (1, 8)).hidden for p in (path, on))
    assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.5


def test_a_trunk_that_is_none_is_refused():
    """A word that is no kind of trunk, and a shared one of a single member."""
    with pytest.raises(ConfigError, match="separate, shared"):
        TrainSettings(trunk="common")
    with pytest.raises(ConfigError, match="members = 2 or more"):
        TrainSettings(trunk="shared", members=1)
