"""What is wrong is said in one sentence, with an exit code of its own, and i-PI never gets a number that is none."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest

from beadwork.cli import main
from beadwork.ipi.transport import Address, Line
from beadwork.log import taken_apart
from beadwork.potential.analytic import Harmonic
from beadwork.potential.potential import Potential
from beadwork.serve.server import Server
from beadwork.serve.service import Service


@pytest.fixture
def refused(capfd) -> Callable[..., str]:
    """Run a command that must fail with this exit code; return its one sentence."""

    def call(code: int, run: Callable[[], int]) -> str:
        assert run() == code
        shown = capfd.readouterr().err
        assert "Traceback" not in shown
        call.shown = shown
        level, said = taken_apart([line for line in shown.replace("\r", "\n").splitlines() if line.strip()][-1])
        assert level == logging.ERROR
        assert said.startswith("beadwork: ")
        return said.removeprefix("beadwork: ")

    return call


def changed_card(bundle, copy, old: str, new: str):
    """A copy of a bundle that says something else of itself."""
    shutil.copytree(bundle, copy)
    card = (copy / "card.toml").read_text()
    assert old in card
    (copy / "card.toml").write_text(card.replace(old, new))
    return copy


def test_an_unknown_species_is_named_with_the_model(ipi, models, serve, refused, tmp_path) -> None:
    """A species that a model lacks is named, with the model."""
    atoms = ipi.waters()
    atoms.symbols[0] = "Na"
    run = ipi.Input(tmp_path / "run", atoms=atoms).write()
    said = refused(4, lambda: serve(run, "--baseline", models.baseline))
    assert "Na" in said
    assert "baseline" in said


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('dtype = "float64"', 'dtype = "float32"', "precision"),
        ("elements = [\n    1,\n    8,\n]", "elements = [1]", "elements"),
        ('energy = "eV"', 'energy = "Hartree"', "units"),
    ],
    ids=["precision", "elements", "units"],
)
def test_models_that_do_not_go_together(ipi, models, serve, refused, tmp_path, old, new, word) -> None:
    """A committee of different precision, elements or units is refused before anything is started."""
    other = changed_card(models.delta[1], tmp_path / "other", old, new)
    run = ipi.Input(tmp_path / "run").write()
    said = refused(4, lambda: serve(run, "--baseline", models.baseline, "--delta", models.delta[0], other))
    assert word in said


def test_missing_truncated_and_foreign_bundle(ipi, models, serve, refused, tmp_path) -> None:
    """Each names the file and what to do."""
    run = ipi.Input(tmp_path / "run").write()
    assert "missing" in refused(4, lambda: serve(run, "--baseline", tmp_path / "nowhere"))
    cut = tmp_path / "cut"
    shutil.copytree(models.baseline, cut)
    model = (cut / "model.pt").read_bytes()
    (cut / "model.pt").write_bytes(model[: len(model) // 2])
    assert "model.pt" in refused(4, lambda: serve(run, "--baseline", cut))
    assert "import" in refused(4, lambda: serve(run, "--baseline", models.file(models.baseline)))
    foreign = tmp_path / "foreign.pt"
    foreign.write_text("hello")
    assert "neither" in refused(4, lambda: main(["models", "import", str(foreign), "--out", str(tmp_path / "x")]))
    half = tmp_path / "half.model"
    half.write_bytes(models.file(models.baseline).read_bytes()[:5000])
    arguments = ["models", "import", str(half), "--out", str(tmp_path / "x"), "--trust-pickle"]
    assert "truncated" in refused(4, lambda: main(arguments))


def test_pickle_without_trust(models, refused, tmp_path) -> None:
    """A pickle is not opened unless the user says so, and nothing is left behind."""
    arguments = ["models", "import", str(models.file(models.baseline)), "--out", str(tmp_path / "x")]
    assert "--trust-pickle" in refused(4, lambda: main(arguments))
    assert not (tmp_path / "x").exists()


def test_forcefields_none_or_several(ipi, models, serve, refused, tmp_path) -> None:
    """An input without ffsocket, or with several and none named."""
    none = ipi.Input(
        tmp_path / "none",
        [],
        around="<fflj name='lj'><parameters>{{eps: 0.1, sigma: 1.0}}</parameters></fflj>{}",
        forces="<force forcefield='lj'/>",
    ).write()
    assert "ffsocket" in refused(3, lambda: serve(none, "--baseline", models.baseline))
    several = ipi.Input(tmp_path / "several", [ipi.Forcefield("one"), ipi.Forcefield("two")]).write()
    said = refused(3, lambda: serve(several, "--baseline", models.baseline))
    assert "one" in said
    assert "two" in said


def listener(run, path=None) -> socket.socket:
    """A socket where i-PI would listen."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path or run.prefix + "water")
    sock.listen(5)
    return sock


def test_stale_socket_file(ipi, models, serve, refused, tmp_path) -> None:
    """A socket file on which nobody listens: `serve` waits as long as it was told, then says what it is."""
    run = ipi.Input(tmp_path / "run").write()
    listener(run).close()
    said = refused(8, lambda: serve(run, "--baseline", models.baseline, "--patience", "0.5"))
    assert "killed i-PI" in said


def test_address_that_another_ipi_holds(ipi, models, refused, tmp_path, monkeypatch) -> None:
    """`run` does not start a second i-PI at the address of a first one, and leaves its file alone."""
    run = ipi.Input(tmp_path / "run").write()
    monkeypatch.chdir(run.folder)
    with listener(run):
        said = refused(3, lambda: main(["run", "input.xml", "--baseline", str(models.baseline)]))
        assert "another i-PI" in said
        assert os.path.exists(run.prefix + "water")


class Peer(threading.Thread):
    """Something that listens where i-PI should, talks to the first client as `talk` does, and keeps what came back."""

    def __init__(self, run, talk: Callable[[socket.socket], None]) -> None:
        super().__init__(daemon=True)
        self.heard = b""
        self._listener = listener(run)
        self._talk = talk

    def run(self) -> None:
        with self._listener:
            self._listener.settimeout(120)
            client, _ = self._listener.accept()
        with client:
            client.settimeout(120)
            try:
                self._talk(client)
                while data := client.recv(1 << 16):
                    self.heard += data
            except (ConnectionError, TimeoutError):
                pass


def header(word: str) -> bytes:
    """One of i-PI's 12-byte words."""
    return word.ljust(12).encode()


def begin(client: socket.socket) -> None:
    """Shake hands as i-PI does."""
    client.sendall(header("STATUS"))
    assert client.recv(12) == header("NEEDINIT")
    client.sendall(header("INIT") + np.int32([0, 1]).tobytes() + b" ")


def structure(positions: np.ndarray, cell: np.ndarray, count: int | None = None) -> bytes:
    """POSDATA and GETFORCE for one structure, given in Bohr."""
    matrices = np.array([cell, cell]).tobytes()
    number = np.int32(len(positions) if count is None else count).tobytes()
    return header("POSDATA") + matrices + number + positions.tobytes() + header("GETFORCE")


def speak(what: str) -> Callable[[socket.socket], None]:
    """A peer that is no i-PI, or an i-PI that has gone wrong."""
    rng = np.random.default_rng(0)
    good = rng.uniform(0, 10, (12, 3))
    cell = np.eye(3) * 10.6

    def talk(client: socket.socket) -> None:
        if what == "http":
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        begin(client)
        if what == "negative count":
            client.sendall(structure(good, cell, -12))
        elif what == "huge count":
            client.sendall(structure(good, cell, 2**31 - 1))
        elif what == "other atoms":
            client.sendall(structure(good[:11], cell))
        elif what == "half":
            client.sendall(structure(good, cell)[:200])
            client.shutdown(socket.SHUT_RDWR)
        elif what == "no volume":
            client.sendall(structure(good, np.zeros((3, 3))))
        elif what == "on top":
            client.sendall(structure(np.concatenate([good[:11], good[:1] + 1e-3]), cell))
        elif what == "NaN":
            client.sendall(structure(np.where(np.arange(36).reshape(12, 3) == 16, np.nan, good), cell))
        elif what == "infinite":
            client.sendall(structure(np.where(np.arange(36).reshape(12, 3) == 16, np.inf, good), cell))

    return talk


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("http", 7, ["no message of i-PI's"]),
        ("negative count", 7, ["-12 atoms"]),
        ("huge count", 7, ["2147483647 atoms"]),
        ("other atoms", 7, ["11 atoms", "12"]),
        ("half", 8, ["nobody listens"]),
        ("no volume", 5, ["no volume"]),
        ("on top", 5, ["atoms 0 and 11"]),
        ("NaN", 5, ["atom 5", "nan"]),
        ("infinite", 5, ["atom 5", "inf"]),
    ],
)
@pytest.mark.fault("the peer sends nonsense: {what}", "a program of the test's own listens in i-PI's place")
def test_nonsense_from_the_peer_ends_the_server_without_an_answer(
    ipi, models, serve, refused, fault, tmp_path, what, code, words
) -> None:
    """Nonsense from the other side ends the server with a sentence, soon, and is never answered with a number."""
    run = ipi.Input(tmp_path / "run").write()
    peer = Peer(run, speak(what))
    peer.start()
    begin = time.monotonic()
    options = ["--engine", "torchscript", "--connections", 1, "--patience", 1]
    said = refused(code, lambda: serve(run, "--baseline", models.baseline, *options))
    assert time.monotonic() - begin < ipi.PATIENCE
    peer.join(ipi.PATIENCE)
    assert not peer.is_alive()
    assert b"FORCEREADY" not in peer.heard
    for word in words:
        assert word in said
    if what == "half":
        assert "hung up 200 bytes into a message" in refused.shown
    if code == 5:
        assert len(ase.io.read(run.folder / "last-frames.extxyz", ":")) == 1
    left = "; the frame is on disk" if code == 5 else ""
    fault(f"exit code {code}: '{said.replace(run.prefix, '…/s-')}'; no FORCEREADY was sent{left}")


def test_exit_that_cannot_be_written(ipi, models, serve, refused, tmp_path) -> None:
    """Where no file EXIT can be put, the run ends with what ended it, and the user is told that i-PI lives on."""
    run = ipi.Input(tmp_path / "run").write()
    (run.folder / "EXIT").symlink_to(tmp_path / "missing" / "EXIT")
    peer = Peer(run, speak("other atoms"))
    peer.start()
    options = ["--engine", "torchscript", "--connections", 1]
    assert "11 atoms" in refused(7, lambda: serve(run, "--baseline", models.baseline, *options))
    peer.join(ipi.PATIENCE)
    assert f"i-PI cannot be stopped by a file EXIT in {run.folder} " in refused.shown
    assert "end it by hand" in refused.shown
    assert "is stopped by the file" not in refused.shown


def test_extras_that_will_not_be_sent(ipi, models, start, serve, refused, tmp_path) -> None:
    """i-PI dies with a KeyError where it is to write extras that no reply has, as a server shows that sends none: an
    input that asks for them is refused before anything is dialled."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4)], extras=["force_spread_max"], steps=3).write()
    said = refused(3, lambda: serve(run, "--baseline", models.baseline))
    assert (
        "writes the extras force_spread_max, which will not be sent: nothing will; take those outputs out, or give"
        in said
    )
    process = start.ipi(run)
    ipi.wait_for(Path(run.prefix + "water"))
    line = Line(Address(Path(run.prefix + "water")))
    service = Service(line, Potential(Harmonic(1.0)), run.atoms.numbers, 4)
    Server([service], stopped=lambda: process.poll() is not None).run()
    assert process.wait(ipi.PATIENCE) != 0
    assert "KeyError: \"Extra type 'force_spread_max'" in start.log(process)


@pytest.mark.fault("a model answers NaN", "one force of one bead, from the third step on, {layout}; real i-PI")
@pytest.mark.parametrize("layout", ["batched", "single"])
def test_nan_from_a_model(ipi, models, start, serve, refused, fault, tmp_path, monkeypatch, layout) -> None:
    """The server stops i-PI and itself, names bead and atom, leaves the frames on disk; i-PI never saw the NaN.

    Beads that started in one place and come over connections of their own have no number that is known.
    """
    from beadwork.potential.torchscript import TorchScriptEngine

    evaluate = TorchScriptEngine.evaluate
    seen: list[int] = []

    def poisoned(self, graph):
        answer = evaluate(self, graph)
        seen.append(len(graph))
        # after three whole rings, however they came, and where most beads are there: else the spread of positions tells
        # bead 2 nothing
        if sum(seen) >= 13 and len(graph) > 2:
            answer.forces[2 * 12 + 7, 1] = np.nan
        return answer

    monkeypatch.setattr(TorchScriptEngine, "evaluate", poisoned)
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4 if layout == "batched" else 1, latency=1e-2)]).write()
    process = start.ipi(run)
    said = refused(6, lambda: serve(run, "--baseline", models.baseline, "--engine", "torchscript"))
    assert "atom 7" in said
    # alone on several connections, a ring comes in as many pieces as the machine is busy
    named = re.search("bead 2" if layout == "batched" else r"structure 2 of ([34])", said)
    assert named
    process.wait(ipi.PATIENCE)
    assert "nan" not in (run.folder / "run.out").read_text().lower()
    assert np.isfinite(run.positions()).all()
    steps = run.properties()["step"]
    assert 1 <= steps[-1] < run.steps
    kept = ase.io.read(run.folder / "last-frames.extxyz", ":")
    assert len(kept) == (4 if layout == "batched" else int(named[1]))  # those that came with it
    # i-PI leaves the file that stopped it, and ends by it again: the user is told which one to remove
    assert f"stopped by the file {run.folder / 'EXIT'}: remove that file" in refused.shown
    again = start.ipi(run)
    assert again.wait(ipi.PATIENCE) == 0
    assert "EXIT file detected" in start.log(again)
    fault(
        f"exit code 6: '{said}'; i-PI has ended at step {int(steps[-1])} and never saw it; {len(kept)} frames on disk"
    )


def test_mixed_systems_are_refused(ipi, models, tmp_path, monkeypatch, refused) -> None:
    """Species do not travel, so two systems of other atoms on one socket are refused before anything is dialled."""
    run = ipi.Input(tmp_path / "run", ensembles=("nvt", "nvt"), steps=2).write()
    lines = (run.folder / "init.xyz").read_text().splitlines()
    fewer = [str(int(lines[0]) - 3), *lines[1:-3]]
    (run.folder / "fewer.xyz").write_text("\n".join(fewer) + "\n")
    head, _, tail = run.path.read_text().rpartition("init.xyz")
    run.path.write_text(f"{head}fewer.xyz{tail}")
    monkeypatch.chdir(run.folder)
    sentence = refused(3, lambda: main(["serve", "input.xml", "--baseline", str(models.baseline)]))
    assert "give each composition its own" in sentence
