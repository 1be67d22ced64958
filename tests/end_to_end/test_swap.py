"""A running server takes up a new committee between two steps, or refuses it and goes on."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import ase
import numpy as np
import pytest
import tomli_w

from beadwork.errors import ModelError
from beadwork.harvest.queue import Queue
from beadwork.observe.record import Committees, read_committees
from beadwork.potential.bundle import committee_hash, load_card, members_of, write_card, write_pointer
from beadwork.units import BOHR, HARTREE

BEADS = 4


@pytest.fixture(scope="module")
def committees(ipi, models, tmp_path_factory):
    """Folders with a committee of two each: old and new, and some that must be refused."""
    import torch

    root = tmp_path_factory.mktemp("committees")

    def committee(name: str, members: list[Path], **card: object) -> Path:
        folder = root / name
        folder.mkdir()
        for k, member in enumerate(members):
            shutil.copytree(member, folder / f"delta-{k}")
        listed = [f"delta-{k}" for k in range(len(members))]
        (folder / "committee.toml").write_bytes(tomli_w.dumps({"members": listed, **card}).encode())
        return folder

    made = {"old": committee("old", list(models.delta[:2]))}
    new = [models.delta[2], models.delta[1]]
    made["new"] = committee("new", new, alpha=1.5)
    made["files"] = [models.file(bundle) for bundle in new]
    made["three"] = committee("three", list(models.delta))
    made["damaged"] = committee("damaged", new)
    model = made["damaged"] / "delta-1" / "model.pt"
    model.write_bytes(model.read_bytes()[:-100])
    made["nan"] = committee("nan", new)
    script = torch.jit.load(str(made["nan"] / "delta-0" / "model.pt"))
    for parameter in script.parameters():
        parameter.data.fill_(float("nan"))
    torch.jit.save(script, str(made["nan"] / "delta-0" / "model.pt"))
    carbon = ipi.make_model(root, "6", 6, 0.5, False, (0.0, 0.0), elements=(1, 6))
    made["carbon"] = committee("carbon", [carbon, carbon])
    made["mixed"] = committee("mixed", new)  # native of another model
    shutil.copy(new[1] / "native.json", made["mixed"] / "delta-0" / "native.json")
    for broken in (made["nan"] / "delta-0", made["mixed"] / "delta-0"):
        card = load_card(broken)
        about = {"name": card.name, "elements": list(card.elements), "cutoff": card.cutoff, "dtype": card.dtype}
        write_card(broken, about)  # the hashes are right, the model is not
    made["exchanged"] = committee("exchanged", new)
    exchanged = made["exchanged"] / "delta-0"
    kept = load_card(exchanged)
    shutil.copy(new[1] / "model.pt", exchanged / "model.pt")
    write_card(exchanged, about | dict(kept.about))
    return made


def until(condition, ipi, what: str) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + ipi.PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def answered(run) -> int:
    """Lines of beadwork.out."""
    record = run.folder / "beadwork.out"
    return len([line for line in record.read_text().splitlines() if line[0] != "#"]) if record.exists() else 0


def committees_of(run) -> Committees:
    """Who has answered by beadwork.out, and why others were refused since the last of them."""
    return read_committees(run.folder / "beadwork.out")


def reference(models, files, atoms: ase.Atoms, positions: np.ndarray) -> np.ndarray:
    """Baseline plus the mean of the committee by MACE's own calculator, Hartree, of positions (S, 3 N) in Bohr."""
    from beadwork.potential.architecture import mace_imported

    with mace_imported(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        from mace.calculators import MACECalculator

        def energies(file: Path) -> np.ndarray:
            calculator = MACECalculator(model_paths=str(file), device="cpu", default_dtype="float64")
            values = []
            for where in positions:
                atoms.positions = where.reshape(-1, 3) * BOHR
                atoms.calc = calculator
                values.append(atoms.get_potential_energy() / HARTREE)
            return np.array(values)

        return energies(models.file(models.baseline)) + np.mean([energies(file) for file in files], axis=0)


def beads(run) -> np.ndarray:
    """Positions that i-PI wrote, (steps + 1, beads, 3 N) Bohr."""
    files = sorted(run.folder.glob("run.pos_*.xyz"))
    assert len(files) == BEADS
    every = []
    for file in files:
        lines = file.read_text().splitlines()
        atoms = int(lines[0])
        frames = [lines[k + 2 : k + 2 + atoms] for k in range(0, len(lines), atoms + 2)]
        every.append([[float(x) for line in frame for x in line.split()[1:4]] for frame in frames])
    return np.array(every).transpose(1, 0, 2)


def tags(run) -> list[str]:
    """The committee that each step's extras name; all beads of a step name the same."""
    found = []
    for file in sorted(run.folder.glob("run.committee_*")):
        found.append([line for line in file.read_text().splitlines() if line.startswith("sha256:")])
    assert len(found) == BEADS
    steps = [set(step) for step in zip(*found, strict=True)]
    assert all(len(step) == 1 for step in steps), "two committees in one ring polymer's step"
    return [step.pop() for step in steps]


def prepared(ipi, folder: Path, batch: int, steps: int):
    """A run that writes every bead's position and which committee answered."""
    run = ipi.Input(
        folder, [ipi.Forcefield(batch=batch, latency=1e-3)], beads=BEADS, steps=steps, extras=["committee"]
    ).write()
    trajectory = "<trajectory stride='1' filename='pos' format='xyz'> positions </trajectory></output>"
    run.path.write_text(run.path.read_text().replace("</output>", trajectory))
    return run


@pytest.mark.parametrize(("way", "batch"), [("pointer", BEADS), pytest.param("signal", 1, marks=pytest.mark.slow)])
def test_swap_in_mid_run(ipi, models, committees, start, serve, tmp_path, way, batch) -> None:
    """By a watched pointer and by SIGHUP: the steps before are those of an undisturbed run, the steps after are the
    new committee's by an independent sum, no step is a mixture, and everything says which committee answered."""
    options = ["--baseline", models.baseline, "--queue", "q.db", "--keep-force", "0", "--cooldown", "3"]
    options += ["--keep-most", "1000", "--distance", "1e-9"]
    run = prepared(ipi, tmp_path / "run", batch, 100_000)
    if way == "pointer":
        delta = run.folder / "current"
        write_pointer(delta, committees["old"])
    else:
        delta = tmp_path / "committee"
        shutil.copytree(committees["old"], delta)
    server = start.beadwork("run", run, *options, "--delta", delta)
    until(lambda: answered(run) > 12 or server.poll() is not None, ipi, "no step was answered")
    if way == "pointer":
        write_pointer(delta, committees["new"])
    else:
        shutil.rmtree(delta)
        shutil.copytree(committees["new"], delta)
        server.send_signal(signal.SIGHUP)
    until(lambda: len(committees_of(run).taken_up) == 2, ipi, "the new committee was not taken up")
    lines = answered(run)
    until(lambda: answered(run) > lines + 8 * BEADS // batch, ipi, "the run stands still after the swap")
    (run.folder / "EXIT").touch()
    assert server.wait(ipi.PATIENCE) == 0
    said = start.log(server)
    assert "the energy jumps by" in said, said
    assert "2 of 2 Δ models run natively, and agree with torchscript" in said

    named = tags(run)
    changed = next(k for k, tag in enumerate(named) if tag != named[0])
    steps = len(named) - 1
    assert 2 < changed < steps
    assert named == [named[0]] * changed + [named[-1]] * (steps + 1 - changed)
    for tag, folder in ((named[0], committees["old"]), (named[-1], committees["new"])):
        hashes = [load_card(member).hash for member in (models.baseline, *members_of([folder]))]
        assert committee_hash(hashes).startswith(tag)
    # the run's own record
    taken = json.loads((run.folder / "summary.json").read_text())["committees"]
    assert [entry["committee"] for entry in taken] == [named[0], named[-1]]
    assert [entry["step"] for entry in taken] == [0, changed]
    # frames in the queue are of the committee that answered for them
    rows = Queue(run.folder / "q.db").rows()
    assert {row.kept.committee[:19] for row in rows} == {named[0], named[-1]}
    for row in rows:
        assert row.kept.committee.startswith(named[0] if row.kept.step < changed else named[-1])

    # before the swap: a run that knows nothing of it
    calm = prepared(ipi, tmp_path / "calm", batch, changed - 1)
    process = start.ipi(calm)
    assert serve(calm, "--baseline", models.baseline, "--delta", committees["old"]) == 0
    assert process.wait(ipi.PATIENCE) == 0
    ours, before = run.properties()["potential"], calm.properties()["potential"]
    np.testing.assert_allclose(ours[:changed], before, rtol=1e-9)
    np.testing.assert_allclose(beads(run)[:changed], beads(calm), rtol=1e-8, atol=1e-8)
    # and after it: MACE's own calculators
    where, atoms = beads(run), ipi.waters()
    old = [models.file(bundle) for bundle in models.delta[:2]]
    for step in (0, changed - 1, changed, changed + 1, steps):
        files = old if step < changed else committees["files"]
        expected = reference(models, files, atoms, where[step]).mean()
        assert ours[step] == pytest.approx(expected, abs=2e-7), f"step {step}, swapped at {changed}"
    other = reference(models, old, atoms, where[changed]).mean()
    assert abs(ours[changed] - other) > 1e-4  # the two committees can be told apart


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_no_estimator_is_of_two_committees(ipi, models, committees, start, tmp_path, told) -> None:
    """Finite differences of the heat capacity, three rings a step: where a file says i-PI's step a new committee is
    taken up between two of its lines, and no row is an outlier; else it waits for i-PI's next start, and says so."""
    run = prepared(ipi, tmp_path / "run", BEADS, 100_000)
    text = run.path.read_text()
    text = text.replace("[ step,", "[ step, scaledcoords," if told else "[ scaledcoords,")
    run.path.write_text(text)
    pointer = run.folder / "current"
    write_pointer(pointer, committees["old"])
    server = start.beadwork("run", run, "--baseline", models.baseline, "--delta", pointer)
    until(lambda: answered(run) > 24 or server.poll() is not None, ipi, "no step was answered")
    write_pointer(pointer, committees["new"])
    until(
        lambda: (
            len(committees_of(run).taken_up) == 2
            or "is ready and waits" in start.log(server)
            or server.poll() is not None
        ),
        ipi,
        "nothing came of the new committee",
    )
    assert (len(committees_of(run).taken_up) == 2) == told
    lines = answered(run)
    until(lambda: answered(run) > lines + 24, ipi, "the run stands still")
    (run.folder / "EXIT").touch()
    assert server.wait(ipi.PATIENCE) == 0
    named = tags(run)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (
        summary["steps"] == len(named) - 1 == int(re.search(r"<step>\s*(\d+)", (run.folder / "RESTART").read_text())[1])
    )
    if not told:
        assert len(set(named)) == 1
        assert start.log(server).count("is ready and waits") == 1
        assert all(
            line.split()[0] == "nan"
            for line in (run.folder / "beadwork.out").read_text().splitlines()
            if line[0] != "#"
        )
        return
    assert len(set(named)) == 2
    changed = next(k for k, tag in enumerate(named) if tag != named[0])
    assert [entry["step"] for entry in summary["committees"]] == [0, changed]
    rows = [line.split() for line in (run.folder / "run.out").read_text().splitlines() if line[0] != "#"]
    second = np.abs(np.array([float(row[2]) for row in rows]))  # the estimator's derivative
    around = np.delete(second[max(1, changed - 4) : changed + 5], min(4, changed - 1))
    assert second[changed] < 20 * around.max()


@pytest.mark.fault(
    "a new committee is bad",
    "one after the other, in mid-run with real i-PI: truncated file, NaN weights, wrong elements, another number of "
    "members, native.json of another model, no committee at all",
)
@pytest.mark.slow  # what is refused is in serve/test_hot_swap.py, a swap in mid-run above
def test_a_bad_committee_is_refused_and_the_old_one_answers_on(ipi, models, committees, start, fault, tmp_path) -> None:
    """Each of these is refused with its reason, the old committee answers on, and a good one is then taken up."""
    reasons = {
        "damaged": "is not the file that its card describes",
        "nan": "NaN or infinity",
        "carbon": "does not know",
        "three": "has 3 members and 2 serve",
        "mixed": "does NOT agree",
        "exchanged": "model.pt does not answer what the card says",
        "gone": "there is no committee.toml",
    }
    run = prepared(ipi, tmp_path / "run", BEADS, 100_000)
    pointer = run.folder / "current"
    write_pointer(pointer, committees["old"])
    server = start.beadwork("run", run, "--baseline", models.baseline, "--delta", pointer)
    until(lambda: answered(run) > 5 or server.poll() is not None, ipi, "no step was answered")
    refused: list[str] = []
    for name, reason in reasons.items():
        target = committees.get(name, tmp_path / "nowhere")
        fresh = run.folder / "fresh"
        fresh.write_text(f"{target}\n")  # a user's own way, which checks nothing
        fresh.replace(pointer)
        seen = len(refused)
        until(
            lambda seen=seen: len(committees_of(run).refused) > seen or server.poll() is not None,
            ipi,
            f"{name} not refused",
        )
        refused = committees_of(run).refused
        assert reason in refused[-1]
        lines = answered(run)
        until(lambda lines=lines: answered(run) > lines + 5, ipi, f"the run stands still after {name}")
    assert len(refused) == len(reasons)
    assert start.log(server).count("was refused") == len(reasons)
    assert all(why in start.log(server) for why in refused)
    written = "".join(file.read_text() for file in run.folder.glob("run.committee_*"))
    assert len(set(re.findall(r"^sha256:\w{12}$", written, re.MULTILINE))) == 1
    write_pointer(pointer, committees["new"])
    until(lambda: len(committees_of(run).taken_up) == 2, ipi, "the good committee was not taken up")
    assert committees_of(run).refused == []
    lines = answered(run)
    until(lambda: answered(run) > lines + 5, ipi, "the run stands still after the swap")
    write_pointer(pointer, committees["old"])  # rollback
    until(lambda: len(committees_of(run).taken_up) == 3, ipi, "no way back")
    assert start.log(server).count("the energy jumps by") == 2
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 128 + signal.SIGTERM
    taken = json.loads((run.folder / "summary.json").read_text())["committees"]
    assert [Path(entry["folder"]).name for entry in taken] == ["old", "new", "old"]
    fault(
        f"each of the {len(reasons)} was refused with its reason and the old committee went on; a good one was taken "
        f"up at step {taken[1]['step']}, and the old one again at {taken[2]['step']}"
    )


@pytest.mark.fault(
    "killed while a new committee is pointed to",
    "kill -9 of `beadwork models point`'s code at eight random instants",
)
def test_pointer_is_whole(committees, fault, tmp_path) -> None:
    """kill -9 at random instants of its replacement: it names the old committee or the new one, and both load."""
    pointer = tmp_path / "current"
    write_pointer(pointer, committees["old"])
    program = (
        "import sys; from pathlib import Path; from beadwork.potential.bundle import write_pointer\n"
        "pointer, one, two = map(Path, sys.argv[1:])\n"
        "while True: write_pointer(pointer, one); print(flush=True); write_pointer(pointer, two); print(flush=True)\n"
    )
    chance = random.Random(11)
    seen = set()
    for _ in range(8):
        command = [sys.executable, "-c", program, pointer, committees["old"], committees["new"]]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            writer.stdout.read(chance.randrange(1, 5))
            time.sleep(chance.uniform(0, 0.01))
            writer.kill()
        folder = members_of([pointer])[0].parent.resolve()
        assert folder in (committees["old"].resolve(), committees["new"].resolve())
        seen.add(folder)
    assert len(seen) == 2, "the instants were too much alike to show anything"
    fault("each time the file named the old committee or the new one, and both were seen")
    with pytest.raises(ModelError, match="is not the file"):
        write_pointer(pointer, committees["damaged"])
    assert members_of([pointer])[0].parent.resolve() == folder
