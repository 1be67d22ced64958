"""The files that beadwork reads, each kind made valid in a folder, with what reads them."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beadwork import cli, config
from beadwork.analyse.coordinate import parse
from beadwork.analyse.free_energy import free_energy, read_curve
from beadwork.analyse.properties import properties
from beadwork.analyse.runs import Sampled, open_run, sample
from beadwork.analyse.series import read_series, write_series
from beadwork.errors import BeadworkError
from beadwork.events import Evaluated, FrameKept
from beadwork.harvest.queue import Queue
from beadwork.ipi import wire
from beadwork.ipi.advice import advice
from beadwork.ipi.output_steps import Written
from beadwork.ipi.simulation import Output, read_simulation
from beadwork.ipi.steps import pattern
from beadwork.ipi.transport import Address, Line
from beadwork.label.label import Label
from beadwork.label.spec import read_spec
from beadwork.loop import loop
from beadwork.observe.record import Record, read_answered, read_committees
from beadwork.potential.bundle import WEIGHTS, format_card, load_committee, members_of, worse_than_baseline
from beadwork.potential.heads import Heads, load_heads
from beadwork.potential.native_file import check_native
from beadwork.potential.novelty import load_training_set
from beadwork.potential.potential import Potential
from beadwork.potential.weights import read_weights, write_weights
from beadwork.serve.server import Server
from beadwork.serve.service import Service
from beadwork.train.dataset import Dataset
from beadwork.train.label_file import read_examples
from beadwork.train.settings import TrainSettings
from support import truth
from support.conversation import ATOMS, converse
from support.kept_frames import make_kept
from support.pair_potential import Pair
from support.transcripts import Transcript, mutate

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "water-highlevel"
WATER = ROOT / "inputs" / "water"
COLUMNS = ["step", "time{femtosecond}", "conserved{electronvolt}", "temperature{kelvin}", "potential{electronvolt}"]


@dataclass(frozen=True)
class Subject:
    """make: puts the valid files into an empty folder, and returns those to damage, of which one is in each case.
    read: reads them, or raises; it may leave files, which are removed. share: of the cases, against 1 of the others.
    """

    name: str
    make: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], Any]
    share: float = 1.0


class Said(BeadworkError):
    """What a command line said as it ended with an error."""


def command(*words: object) -> None:
    """As a user types it. Raises Said for an exit code that is an error's."""
    code = cli.main([str(word) for word in words])
    if code and not (words[0] == "status" and code in (1, 8)):  # which tell of the run
        raise Said(f"exit code {code}, and a sentence on stderr")


def _queue(folder: Path) -> list[Path]:
    queue = Queue(folder / "queue.db", create=True)
    queue.add_all([make_kept(seed) for seed in range(4)])
    claimed = queue.claim("me", 60.0)
    assert claimed is not None
    told = Label(-1.5, np.zeros((6, 3)), 0.0, None, "a method", "a code", "1", 0, 0, "an input", 1.0, {"seed": 1})
    queue.finish(claimed.id, "me", told.to_dict())
    claimed = queue.claim("me", 60.0)
    assert claimed is not None
    queue.fail(claimed.id, "me", "no reason", again=False)
    return [folder / "queue.db"]


def _read_queue(folder: Path) -> None:
    queue = Queue(folder / "queue.db", report=lambda text: None)
    rows = queue.rows()
    for row in rows:
        assert np.isfinite(row.kept.frame.positions).all()
    queue.damaged()
    command("queue", "list", folder / "queue.db")
    command("queue", "export", folder / "queue.db", folder / "out.xyz")
    queue.save(folder / "saved.db")
    if (free := queue.claim("you", 60.0)) is not None:
        queue.release(free.id, "you")


def _bundles(folder: Path, *names: str) -> list[Path]:
    for member in ("baseline", "delta-0", "delta-1"):
        (folder / member).mkdir()
        for file in (MODELS / member).iterdir():
            # what is only hashed is read from where it lies
            if file.name in names:
                shutil.copy(file, folder / member)
            else:
                (folder / member / file.name).symlink_to(file)
    return [folder / "delta-0" / name for name in names]


def _weights(folder: Path) -> list[Path]:
    arrays = {
        "products.0.linear.weight": torch.linspace(0, 1, 12).reshape(3, 4),
        "atomic_numbers": torch.tensor([1, 8]),
    }
    write_weights(folder / WEIGHTS, arrays, {"class": "ScaleShiftMACE", "r_max": 4.5})
    return [folder / WEIGHTS]


def _committee(folder: Path) -> list[Path]:
    _bundles(folder)
    text = 'members = ["delta-0", "delta-1"]\nweights = [1.0, 2.0]\nalpha = 1.5\nenergy_alpha = 2.0\n'
    text += (
        "[spread_held_out]\nframes = 9\nshares = [0.5, 0.9, 0.99, 1.0]\nforce_eV_per_angstrom = [0.1, 0.2, 0.3, 0.4]\n"
    )
    text += "[held_out]\nframes = 9\nenergy_rmse_meV_per_atom = [1.0, 0.1]\n"
    text += "baseline_energy_rmse_meV_per_atom = [2.0, 0.1]\n"
    (folder / "committee.toml").write_text(text)
    (folder / "pointer").write_text("committee-1\n")
    (folder / "committee-1").symlink_to(".")
    return [folder / "committee.toml", folder / "pointer"]


def _read_committee(folder: Path) -> None:
    for what in (folder, folder / "pointer"):
        members = members_of([what])
        load_committee(members)
    worse_than_baseline(folder)


def _dataset(folder: Path) -> list[Path]:
    examples = [truth.example(frame, n, energy_noise=0.1 * (n % 2)) for n, frame in enumerate(truth.clusters(5, 1))]
    before = tuple(example.known_frame(n == 1) for n, example in enumerate(examples[3:]))
    Dataset(tuple(examples[:3]), (False, True, False), before).write(folder)
    return [folder / "dataset.json"]


def _run(folder: Path) -> list[Path]:
    about = {
        "simulation": "input.xml",
        "simulation_sha256": "f" * 64,
        "directory": ".",
        "outputs": "simulation",
        "properties": {"simulation.out": {"stride": 1, "columns": COLUMNS}},
        "queue": None,
        "first_step": 0,
        "time_step_fs": 0.5,
        "temperature_K": 300.0,
        "beads": 2,
        "periodic": True,
        "plain_mean": True,
        "models": {"models/baseline": "sha256:" + "a" * 64},
        "started": 1e9,
    }
    record = Record(folder, ["O", "H"], about)
    for step in range(5):
        seconds = {"idle": 0.05, "baseline": 0.15}
        record(Evaluated("s", step, 2, -1.0, 0.003, 0.01, seconds, {"O": 0.01, "H": 0.02}))
    record(FrameKept(1, 2, 0, 0.1))
    record.close(record.summary(done=4, each=2))
    lines = [f"# column {k:3d}     --> {name} : words" for k, name in enumerate(COLUMNS, 1)]
    lines += [f"{k} {0.5 * k} {-9 + 0.001 * k} {290 + k} {-10 + 0.1 * k}" for k in range(5)]
    (folder / "simulation.out").write_text("\n".join(lines) + "\n")
    for bead in range(2):
        title = "# CELL(abcABC): 8.0 8.0 8.0 90.0 90.0 90.0 Step: {} Bead: {} positions{{angstrom}} cell{{angstrom}}"
        atoms = "O 0.1 0.2 0.3\nH 1.0 0.2 0.3\nH 0.1 1.1 0.3"
        frames = [f"3\n{title.format(step, bead)}\n{atoms}\n" for step in range(0, 5, 2)]
        (folder / f"simulation.pos_{bead}.xyz").write_text("".join(frames))
        extras = [f" #EXTRAS(committee_pot)# Step: {step}\n -1.7e1 -1.8e1\n" for step in range(0, 5, 2)]
        (folder / f"simulation.committee_{bead}").write_text("".join(extras))
    names = ("summary.json", "beadwork.out", "simulation.out", "simulation.pos_0.xyz", "simulation.committee_0")
    return [folder / name for name in names]


def _status(folder: Path) -> list[Path]:
    from beadwork.observe.pace import Pace
    from beadwork.observe.status import StatusFile

    facts: dict[str, Any] = {"engines": ["a"], "committee": "sha256:1", "spread_of_delta_alone": True}
    status = StatusFile(folder, Pace(0.5, 1, 0), 100, lambda: facts, lambda event: None)
    status(Evaluated("s", 3, 2, -1.0, 0.003, 0.01, {"idle": 0.1, "baseline": 0.1}, {"O": 0.1}))
    return [folder / "status.json"]


def _heads(folder: Path) -> list[Path]:
    chance = np.random.default_rng(1)
    made = (chance.normal(size=shape) for shape in ((3, 2), (3, 8), (3, 4, 8), (3, 4)))
    Heads((1, 8), *made, 1.5).save(folder / "heads.npz")
    return [folder / "heads.npz"]


def _read_heads(folder: Path) -> None:
    heads = load_heads(folder / "heads.npz", (1, 8))
    heads.deviations(torch.ones((3, 16)), np.array([8, 1, 1]))


def _series(folder: Path) -> list[Path]:
    chance = np.random.default_rng(1)
    values = {"distance:O1,H1": chance.normal(1.0, 0.1, (60, 1)), "dc:O1,O2": chance.normal(size=(60, 2))}
    energies = chance.normal(0.0, 0.1, (60, 3))
    energies[::7] = np.nan
    write_series(folder / "a.csv.gz", Sampled(np.arange(60) * 10, values, energies, "", 300.0, 2, "beads", 0.5))
    x = np.linspace(-1, 1, 21)
    text = "\n".join(f"{a} {b:.6f}" for a in x for b in (a**2,))
    (folder / "curve.txt").write_text(f"#! FIELDS x file.free\n{text}\n")
    (folder / "curve.gz").write_bytes(gzip.compress(text.encode()))
    return [folder / name for name in ("a.csv.gz", "a.csv.gz", "curve.txt", "curve.gz")]


def _read_series(folder: Path) -> None:
    piece = read_series(folder / "a.csv.gz", ["distance:O1,H1"])
    assert np.isfinite(free_energy([piece], "distance:O1,H1", at=[1.0]).energy).all()
    for name in ("curve.txt", "curve.gz"):
        x, energy = read_curve(folder / name, 300.0)
        assert np.isfinite(x).all()
        assert not np.isnan(energy).any()


def _read_averages(folder: Path) -> None:
    run = open_run(folder)
    for of in ("centroid", "beads"):
        sample(run, [parse("distance:O1,H1")], of, 0.0005)
    properties([run], 0.0005)


def _input(folder: Path) -> list[Path]:
    for name in ("input.xml", "init.xyz"):
        shutil.copy(WATER / name, folder)
    return [folder / "input.xml", folder / "init.xyz"]


def _read_input(folder: Path) -> None:
    found = read_simulation(folder / "input.xml")
    advice(found, 1)
    found.check_outputs()
    for one in found.sockets:
        pattern(found, one)
        found.served(one)[0][0].frame(active=one.active).check()


def _settings(folder: Path) -> list[Path]:
    shutil.copy(WATER / "run.toml", folder)
    with (folder / "run.toml").open("a") as file:
        file.write("alpha = 1.5\nweights = [1.0, 2.0]\nmark-force = 50\n")
    for name in ("pyscf.toml", "cluster-mp2.toml", "slurm.toml", "ase.toml"):
        shutil.copy(ROOT / "inputs" / "labellers" / name, folder)
    shutil.copy(MODELS / "loop.toml", folder)
    shutil.copy(MODELS / "labeller.toml", folder)
    (folder / "train.toml").write_text("members = 2\nepochs = 3\nheld-out = 0.2\nseed = 1\n[jobs]\nworkers = 2\n")
    names = ("run.toml", "pyscf.toml", "cluster-mp2.toml", "slurm.toml", "ase.toml", "loop.toml", "train.toml")
    return [folder / name for name in names]


def _read_settings(folder: Path) -> None:
    """All of them: the others are valid, and the damaged one is refused by whoever reads it."""
    config.resolve({"simulation": str(folder / "run.toml")})
    for name in ("pyscf.toml", "cluster-mp2.toml", "slurm.toml", "ase.toml"):
        read_spec(folder / name)
    TrainSettings.read(folder / "train.toml")
    loop.read_loop(folder / "loop.toml")


def _frames(folder: Path) -> list[Path]:
    shutil.copy(WATER / "init.xyz", folder / "ipi.xyz")
    strangers = ROOT / "tests" / "strangers"
    for name in ("deuterium.pdb", "elements.lammpstrj", "ase_calculator.extxyz"):
        shutil.copy(strangers / name, folder)
    kept = make_kept(1).frame.to_atoms()
    kept.write(folder / "extended.xyz", format="extxyz")
    names = ("ipi.xyz", "deuterium.pdb", "elements.lammpstrj", "ase_calculator.extxyz", "extended.xyz")
    return [folder / name for name in names]


def _read_frames(folder: Path) -> None:
    names = ("ipi.xyz", "extended.xyz", "deuterium.pdb", "elements.lammpstrj", "ase_calculator.extxyz")
    command("queue", "add", folder / "q.db", *(folder / name for name in names))


def _labels(folder: Path) -> list[Path]:
    import ase.io

    atoms = []
    for n, frame in enumerate(truth.clusters(3, 2)):
        one = frame.to_atoms()
        example = truth.example(frame, n)
        one.info |= {"REF_energy": example.energy, "method": "pair potential", "charge": example.charge, "spin": 0}
        one.arrays["REF_forces"] = example.forces
        atoms.append(one)
    ase.io.write(folder / "labels.extxyz", atoms, format="extxyz")
    return [folder / "labels.extxyz"]


def _loop(folder: Path) -> list[Path]:
    stages = {"simulate": {"runs": {"a": {"flagged": 2, "steps": 10}}, "seconds": 1.0, "ended": 1e9}}
    (folder / loop.RECORD).write_text(json.dumps(stages))
    _run(folder)
    return [folder / loop.RECORD, folder / "beadwork.out", folder / "simulation.out"]


def _read_loop(folder: Path) -> None:
    done = loop.Generation(folder)
    if "simulate" in done.stages:
        assert done.flagged >= 0
    read_committees(folder / "beadwork.out")
    read_answered(folder / "beadwork.out", "sha256:1")
    outputs = Output("simulation.out", "properties", 1, tuple(COLUMNS), 1)
    written = Written([outputs])
    written.attach(None, folder)
    written.look()


#: what i-PI's own code says in some modes, made once for all cases
_TALKS: list[Transcript] = []


def _talks(folder: Path) -> list[Path]:
    if not _TALKS:
        for mode, batch in (("consolidated", 1), ("legacy", 1), ("consolidated", 4)):
            _TALKS.append(Transcript(mode, converse(mode, batch).sent))
    (folder / "seed").write_bytes(bytes(64))
    return [folder / "seed"]  # of the damage to the conversation, which is no file


def hostile(folder: Path) -> None:
    """A whole server against a peer that says damaged things. Raises AssertionError where NaN or infinity is sent."""
    seed = (folder / "seed").read_bytes()
    talk, pieces = mutate(random.Random(seed), _TALKS) if any(seed) else (_TALKS[0], [len(_TALKS[0].sent)])
    path = folder / "socket"
    heard = bytearray()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def peer() -> None:
            client, _ = listener.accept()
            listener.close()
            path.unlink()
            with client:
                client.settimeout(0.3 if any(seed) else 30.0)  # the first call compiles something
                at = 0
                try:
                    for size in pieces:
                        client.sendall(talk.sent[at : at + size])
                        at += size
                    while data := client.recv(1 << 16):
                        heard.extend(data)
                except OSError:
                    pass

        thread = threading.Thread(target=peer, daemon=True)
        thread.start()
        numbers = np.array([8, 1, 1, 8, 1])[:ATOMS]
        potential = Potential(Pair(2.0), [Pair(0.2), Pair(0.6)], baseline_uncertainty=0.1)
        one = Service(Line(Address(path), atoms=ATOMS), potential, numbers, None)
        try:
            Server([one], patience=0.4).run()
        finally:
            thread.join(2)
            _check_sent(bytes(heard))
    assert not thread.is_alive()


def _check_sent(data: bytes) -> None:
    """Every reply that was sent is finite. Those of one structure and of four are told apart by their atom counts."""
    at = -1
    while (at := data.find(wire.FORCEREADY, at + 1)) >= 0:
        for batch in (1, 4):
            start = at + wire.HEADER
            count = data[start + 8 * batch : start + 8 * batch + 4]
            if len(count) == 4 and wire.integer(count) == ATOMS:
                parts = (data[start : start + 8 * batch], data[start + 8 * batch + 4 :][: 8 * batch * (3 * ATOMS + 9)])
                for part in parts:
                    assert np.isfinite(np.frombuffer(part[: len(part) // 8 * 8])).all(), "NaN or infinity was sent"
                break


SUBJECTS = (
    Subject("queue.db", _queue, _read_queue, 1.5),
    Subject("card.toml", lambda folder: _bundles(folder, "card.toml"), lambda folder: format_card(folder / "delta-0")),
    Subject("committee.toml and pointers", _committee, _read_committee),
    Subject(
        "novelty.npz",
        lambda folder: _bundles(folder, "novelty.npz"),
        lambda folder: load_training_set(folder / "delta-0" / "novelty.npz"),
    ),
    Subject(
        "native.json",
        lambda folder: _bundles(folder, "native.json"),
        lambda folder: check_native(folder / "delta-0" / "native.json"),
        0.5,
    ),
    Subject("heads.npz", _heads, _read_heads),
    Subject("series and curves of free energy", _series, _read_series),
    Subject("model.safetensors", _weights, lambda folder: read_weights(folder / WEIGHTS), 0.5),
    Subject("dataset.json", _dataset, Dataset.read),
    Subject("status.json", _status, lambda folder: command("status", folder)),
    Subject("a run's summary.json, beadwork.out and i-PI's files", _run, lambda folder: command("report", folder), 0.2),
    Subject("what averages are made of", _run, _read_averages),
    Subject("input.xml and init.xyz", _input, _read_input),
    Subject("TOML of runs, labellers, loops and training", _settings, _read_settings),
    Subject("frames of a user", _frames, _read_frames),
    Subject("files of labels", _labels, lambda folder: read_examples(str(folder / "labels.extxyz"), None)),
    Subject("what a loop finds of its runs", _loop, _read_loop),
    Subject("a hostile i-PI", _talks, hostile, 0.7),
)
