"""Thousands of evaluations of a real i-PI while the machine fails at random, and docs/endure.md with what happened.

    python tests/endure/run.py [--steps 5000] [--seed 1] [--losses]

Three runs of one water molecule on two beads, with small models of random weights in compiled kernels: one that nobody
disturbs; one with faults, in which the committee is exchanged for copies of itself under other hashes, and for bad
ones; and one with faults in which it is exchanged for committees of other weights. A server that a fault has ended is
started again, as its user would. Then one run in which frames are lost: a server is killed, one is told to end and one
finds its disk full, each with frames that it cannot store; --losses makes this one alone, and its part of the page.
Exit code 1 where the page would not say that all held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from scipy.spatial import cKDTree

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from beadwork.frame import Frame  # noqa: E402
from beadwork.harvest.queue import Queue  # noqa: E402
from beadwork.potential.bundle import load_card, write_card  # noqa: E402
from beadwork.potential.load import load  # noqa: E402
from beadwork.units import BOHR, HARTREE  # noqa: E402
from support import real_ipi  # noqa: E402
from support.real_ipi import BIN, ENVIRONMENT, Forcefield, Input, waters  # noqa: E402

PAGE = ROOT / "docs" / "endure.md"
BEADS, ATOMS = 2, 3
#: what two runs may differ by, relative to the largest value of a column
SAME = 1e-10
#: a program that stays put for so many seconds has stalled, on a machine that has other things to do as well
STALLED = 1800.0
#: how the part of the page begins that is of frames that are lost
LOSSES = "## Frames that are lost"
#: eV/Å; the largest force spread from which frames are kept: some of the beads
LOW = 0.0
#: read by every Python process of a run: the machine's clock, without setting it for others
CLOCK = """
import os, time
_time = time.time
def _set():
    try:
        with open(os.environ["ENDURE_CLOCK"]) as file:
            return _time() + float(file.read() or 0)
    except (OSError, ValueError):
        return _time()
time.time = _set
"""


@dataclass
class Happened:
    """One run with faults. faults: how often each was provoked. ends: exit code and last words of servers that ended
    before i-PI did. reported: frames that servers said were kept. said: those that they said were lost."""

    faults: Counter[str] = field(default_factory=Counter)
    ends: list[tuple[int, str]] = field(default_factory=list)
    servers: int = 0
    reported: int = 0
    said: int = 0
    refused: int = 0
    activated: int = 0
    seconds: float = 0.0


def committees(folder: Path) -> None:
    """Make folders of two members each: `a`, `b` of other weights, `a2` like `a` to the bit under another hash, and
    bad ones: damaged, of NaN, of one member too many.
    """
    import torch

    made = [real_ipi.make_model(folder, f"delta-{k}", k + 1, 0.5, False, (0.0, 0.0)) for k in range(4)]
    real_ipi.make_model(folder, "baseline", 0, 2.0, True, (-13.6, -442.0))

    def committee(name: str, members: list[Path]) -> Path:
        (folder / name).mkdir()
        for k, member in enumerate(members):
            shutil.copytree(member, folder / name / f"delta-{k}")
        listed = [f"delta-{k}" for k in range(len(members))]
        (folder / name / "committee.toml").write_bytes(tomli_w.dumps({"members": listed}).encode())
        return folder / name

    def saved_again(bundle: Path, change: Callable[[object], None]) -> None:
        script = torch.jit.load(str(bundle / "model.pt"))
        change(script)
        torch.jit.save(script, str(bundle / "model.pt"), _extra_files={"again": bundle.parent.name})
        card = load_card(bundle)
        about = {"name": card.name, "elements": list(card.elements), "cutoff": card.cutoff, "dtype": card.dtype}
        write_card(bundle, about)

    def spoil(script: object) -> None:
        for parameter in script.parameters():  # type: ignore[attr-defined]
            parameter.data.fill_(float("nan"))

    found = {"a": committee("a", made[:2]), "b": committee("b", made[2:]), "a2": committee("a2", made[:2])}
    for k in range(2):
        saved_again(found["a2"] / f"delta-{k}", lambda script: None)
    found["damaged"] = committee("damaged", made[:2])
    model = found["damaged"] / "delta-1" / "model.pt"
    model.write_bytes(model.read_bytes()[:-100])
    found["nan"] = committee("nan", made[:2])
    saved_again(found["nan"] / "delta-0", spoil)
    committee("three", made[:3])


@dataclass
class Running:
    """A simulation under way: i-PI, and the server that answers it now."""

    run: Input
    models: Path
    pointer: Path
    happened: Happened
    ipi: subprocess.Popen[bytes]
    cooldown: int = 50
    server: subprocess.Popen[bytes] | None = None

    @property
    def small(self) -> Path:
        """Where the queue lies: a disk of its own, where one may be made."""
        return self.run.folder / "small"

    @property
    def clock(self) -> Path:
        """What is added to the clock, s."""
        return self.run.folder / "clock"

    def serve(self) -> None:
        """Start a server, as a user does who finds that there is none."""
        number = self.happened.servers
        self.happened.servers += 1
        words = ["serve", self.run.path.name, "--baseline", self.models / "baseline", "--delta", self.pointer]
        words += ["--engine", "native", "--threads", 1, "--patience", 60, "--out", f"out-{number}"]
        words += ["--queue", "small/queue.db", "--keep-force", LOW, "--keep-novelty", "inf"]
        words += ["--keep-most", 100_000, "--distance", 0, "--cooldown", self.cooldown]
        with open(self.run.folder / f"server-{number}.log", "wb") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "beadwork.cli", *map(str, words)],
                cwd=self.run.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{self.run.folder / 'site'}:{ROOT / 'driver'}",
                    "ENDURE_CLOCK": str(self.clock),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def look(self) -> None:
        """Start another server where the last one has ended and i-PI has not."""
        if self.server is not None and (code := self.server.poll()) is not None and self.ipi.poll() is None:
            self.count(code)
            self.serve()

    def count(self, code: int | None = None) -> None:
        """Take down what the last server said of frames, and of its end if that came before i-PI's."""
        number = self.happened.servers - 1
        log = (self.run.folder / f"server-{number}.log").read_text(errors="replace")
        if code is not None:
            last = [line for line in log.splitlines() if line.startswith("beadwork: ")]
            self.happened.ends.append((code, last[-1] if last else "nothing"))
        summary = self.run.folder / f"out-{number}" / "summary.json"
        status = self.run.folder / f"out-{number}" / "status.json"
        told: dict[str, int] = {}
        for file in (status, summary):
            if file.exists() and file.stat().st_size:
                told |= json.loads(file.read_text())
        self.happened.reported += told.get("frames_kept", 0)
        # of one that was killed its status knows what it held
        self.happened.said += told.get("frames_dropped", told.get("frames_waiting", 0))
        self.happened.refused += log.count("was refused")
        record = self.run.folder / f"out-{number}" / "beadwork.out"
        if record.exists():
            self.happened.activated += record.read_text().count("# from ")


def limit(process: subprocess.Popen[bytes], which: int, value: int) -> Callable[[], None]:
    """Set a soft limit of a running process; return what takes it back."""
    before = resource.prlimit(process.pid, which)
    resource.prlimit(process.pid, which, (value, before[1]))

    def back() -> None:
        if process.poll() is None:
            resource.prlimit(process.pid, which, before)

    return back


def stopped(process: subprocess.Popen[bytes]) -> Callable[[], None]:
    """Stop a process; return what lets it go on."""
    process.send_signal(signal.SIGSTOP)
    return lambda: process.send_signal(signal.SIGCONT)


def provoke(on: Running, chance: random.Random, good: list[Path], bad: list[Path]) -> tuple[str, Callable[[], None]]:
    """One fault of the machine, or a new committee; return its name, and what ends it."""
    server = on.server
    assert server is not None
    name = chance.choice(
        (
            "descriptors",
            "disk",
            "clock",
            "SIGSTOP",
            "SIGSTOP i-PI",
            "memory",
            "queue locked",
            "keeper",
            "bad",
            "good",
            "good",
        )
    )
    if name == "descriptors":
        return name, limit(server, resource.RLIMIT_NOFILE, len(list(Path(f"/proc/{server.pid}/fd").iterdir())))
    if name == "disk" and os.path.ismount(on.small):
        filler = on.small / "filler"
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        return name, lambda: filler.unlink(missing_ok=True)
    if name == "memory":
        pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0])
        return name, limit(server, resource.RLIMIT_AS, pages * resource.getpagesize())
    if name == "clock":
        on.clock.write_text(str(chance.choice((-1e6, -3600, 3600, 1e6))))
        return name, lambda: None
    if name == "SIGSTOP":
        return name, stopped(server)
    if name == "SIGSTOP i-PI":
        return name, stopped(on.ipi)
    if name == "queue locked" and (on.small / "queue.db").exists():
        lock = sqlite3.connect(on.small / "queue.db", timeout=1.0)
        lock.execute("BEGIN EXCLUSIVE")
        return name, lock.close
    if name == "keeper":
        for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
            if "fd_keeper" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        return name, lambda: None
    if name in ("good", "bad"):
        part = on.pointer.with_name("pointer.part")
        part.write_text(f"{chance.choice(good if name == 'good' else bad)}\n")
        part.replace(on.pointer)
        return f"committee: {name}", lambda: None
    return name, lambda: None


def begin(
    folder: Path,
    models: Path,
    steps: int,
    first: Path,
    disk: str = "",
    latency: float | None = None,
    cooldown: int = 50,
) -> Running:
    """Start i-PI; disk: what the queue's own disk holds, as `mount` has it. It lies on that of all others elsewhere."""
    molecule = waters(1)
    molecule.cell = [12.0] * 3
    forcefield = Forcefield(batch=BEADS) if latency is None else Forcefield(batch=BEADS, latency=latency)
    run = Input(folder, [forcefield], beads=BEADS, steps=steps, atoms=molecule, extras=["committee"])
    run.write()
    # i-PI's trajectories have six digits, its properties sixteen
    places = ", ".join(f"atom_x(atom={atom};bead={bead})" for bead in range(BEADS) for atom in range(ATOMS))
    run.path.write_text(run.path.read_text().replace("potential,", f"potential, {places},"))
    (folder / "site").mkdir()
    (folder / "small").mkdir()
    if disk and os.geteuid() == 0:  # elsewhere no disk is filled
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk}", "tmpfs", folder / "small"], check=False)
    (folder / "site" / "sitecustomize.py").write_text(CLOCK)
    pointer = folder / "pointer"
    pointer.write_text(f"{first}\n")
    with open(folder / "i-pi.log", "wb") as log:
        ipi = subprocess.Popen([BIN / "i-pi", run.path.name], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    return Running(run, models, pointer, Happened(), ipi, cooldown=cooldown)


def leave(on: Running) -> None:
    """End what still runs, and save the queue from its disk."""
    for process in (on.server, on.ipi):
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
    shutil.copy(on.small / "queue.db", on.run.folder)
    if os.path.ismount(on.small):
        subprocess.run(["umount", on.small], check=False)


def simulate(
    folder: Path, models: Path, steps: int, first: Path, good: list[Path], bad: list[Path], seed: int | None
) -> tuple[Input, Happened]:
    """One run; seed: of its faults, None for a run without any."""
    began = time.monotonic()
    on = begin(folder, models, steps, first, "" if seed is None else "4m")
    ipi, happened = on.ipi, on.happened
    chance = random.Random(seed)
    try:
        on.serve()
        done, since = 0, time.monotonic()
        while ipi.poll() is None:
            lines = (folder / "run.out").read_bytes().count(b"\n") if (folder / "run.out").exists() else 0
            if lines > done:
                done, since = lines, time.monotonic()
            if time.monotonic() - since > STALLED:
                raise SystemExit(f"i-PI has stalled after {done} lines of run.out; see {folder}")
            on.look()
            if seed is None or lines < 20:
                time.sleep(0.2)
                continue
            name, back = "", lambda: None
            try:
                name, back = provoke(on, chance, good, bad)
                time.sleep(chance.choice((0.05, 0.3, 1.0)))
            except (ProcessLookupError, FileNotFoundError, sqlite3.OperationalError):
                continue  # the server has just ended, or has the queue itself
            finally:
                back()
            happened.faults[name] += 1
            time.sleep(chance.choice((0.2, 1.0, 3.0)))
        assert on.server is not None
        on.server.wait(60)
        on.count()
    finally:
        leave(on)
    happened.seconds = time.monotonic() - began
    return on.run, happened


def lose(folder: Path, models: Path, first: Path) -> tuple[Running, list[tuple[str, int, str]]]:
    """A run that keeps every structure, and in which frames are lost in three ways. Returns how, the exit code and what
    was said of the frames, of each server that ended."""
    # a step takes a tenth of a second, so that all that comes in the seconds of a lock has room in memory
    on = begin(folder, models, 10**6, first, "256m", latency=0.1, cooldown=0)
    ended = []

    def state() -> dict[str, Any]:
        file = folder / f"out-{on.happened.servers - 1}" / "status.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def until(what: Callable[[], bool]) -> None:
        since = time.monotonic()
        while not what():
            if time.monotonic() - since > STALLED or on.ipi.poll() is not None:
                raise SystemExit(f"nothing goes on any more, or i-PI has ended; see {folder}")
            time.sleep(0.005)

    def over(how: str) -> None:
        assert on.server is not None
        code, number = on.server.wait(STALLED), on.happened.servers - 1
        on.count(code)
        said = (folder / f"server-{number}.log").read_text(errors="replace")
        if code == -signal.SIGKILL:
            command = [sys.executable, "-m", "beadwork.cli", "status", f"out-{number}"]
            said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
        words = re.findall(r"\d+ frames (?:that waited in memory|could not be written)[^;\n]*", said)
        ended.append((how, code, words[-1] if words else "nothing"))

    try:
        on.serve()
        for how, number in (("kill -9", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
            until(lambda: state().get("frames_kept", 0) > 20)
            assert on.server is not None
            lock = sqlite3.connect(on.small / "queue.db", timeout=60.0)
            lock.execute("BEGIN EXCLUSIVE")
            until(lambda: state().get("frames_waiting", 0) > 20)
            told = state()["frames_waiting"]
            until(lambda told=told: state().get("frames_waiting", 0) > told)  # it has just told
            on.server.send_signal(number)
            over(f"{how}, and another connection holds the queue")
            lock.close()
            on.serve()
        until(lambda: state().get("frames_kept", 0) > 20)
        if os.path.ismount(on.small):
            with suppress(OSError), open(on.small / "filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 12))
            over("the queue's disk is full and stays so")
        else:
            (folder / "EXIT").touch()
        on.ipi.wait(STALLED)
    finally:
        (on.small / "filler").unlink(missing_ok=True)
        leave(on)
    return on, ended


def accounted(on: Running) -> dict[str, bool]:
    """What became of every structure of a run that keeps all, and whether it holds."""
    columns = on.run.properties()
    places = [
        np.stack([columns[f"atom_x(atom={atom};bead={bead})"] for atom in range(ATOMS)], axis=1).reshape(-1, 3 * ATOMS)
        for bead in range(BEADS)
    ]
    # beads begin at one place
    written = np.unique(np.concatenate(places).round(9), axis=0) * BOHR
    rows = Queue(on.run.folder / "queue.db").rows()
    stored = np.array([row.kept.frame.positions.ravel() for row in rows])
    missing = int((cKDTree(stored).query(written)[0] > 1e-7).sum())
    said, servers = on.happened.said, len(on.happened.ends)
    return {
        f"{len(rows)} structures are in the queue, {on.happened.reported} were reported": len(rows)
        >= on.happened.reported,
        # what one server had answered as it ended, its successor may be asked again
        f"i-PI wrote {len(written)} structures; {missing} of them are not in the queue, and {said} were said to be "
        "lost": 0 < missing <= said <= missing + BEADS * servers,
    }


def page_of_losses(folder: Path, models: Path, first: Path) -> tuple[list[str], bool]:
    """Make that run; return its part of the page, and whether all held."""
    shutil.rmtree(folder, ignore_errors=True)
    on, ended = lose(folder, models, first)
    checks = accounted(on)
    checks["each server that ended said how many"] = all(words != "nothing" for _, _, words in ended)
    steps = int(on.run.properties()["step"][-1])
    lines = [
        LOSSES,
        "",
        f"Every structure of {steps} steps was to be kept, on {date.today().isoformat()}, and what could not be stored "
        "was lost in each of these ways; another server came after it. i-PI's own outputs tell what there was.",
        "",
        *(f"- {'yes' if held else '**NO**'}: {words}" for words, held in checks.items()),
        "",
        "| what happened | exit code | what was said of the frames |",
        "|---|---|---|",
        *(f"| {how} | {code} | {re.sub(r'/[^ ]+/', '…/', words)} |" for how, code, words in ended),
    ]
    return lines, all(checks.values())


def apart(one: Input, other: Input) -> float:
    """How far i-PI's own numbers of every step are apart, relative to each column's largest."""
    a, b = one.properties(), other.properties()
    worst = 0.0
    for name, values in a.items():
        if values.shape != b[name].shape:
            return float("inf")
        worst = max(worst, float(np.abs(values - b[name]).max() / max(1e-300, float(np.abs(values).max()))))
    return worst


def answered_by_its_committee(run: Input, models: Path, found: dict[str, Path]) -> tuple[float, Counter[str]]:
    """The largest difference (Hartree) between the potential of a step and that of the committee whose hash the step's
    extras name, evaluated anew on the positions that i-PI wrote; and how many steps each has answered.
    """
    potentials = {}
    for name in ("a", "b"):
        one = load(models / "baseline", sorted(found[name].glob("delta-*")), "native")
        potentials[str(one.short_identity)] = (name, one)
    tags, beads = [], []
    for bead in range(BEADS):
        lines = next(iter(run.folder.glob(f"run.committee_{bead}*"))).read_text().splitlines()
        tags.append([line.strip() for line in lines if line.strip().startswith("sha256:")])
        places = [run.properties()[f"atom_x(atom={atom};bead={bead})"] for atom in range(ATOMS)]
        beads.append(np.stack(places, axis=1) * BOHR)
    if any(len(set(step)) != 1 for step in zip(*tags, strict=True)):
        return float("inf"), Counter({"a step of two committees": 1})
    numbers, cell = np.array([8, 1, 1]), np.eye(3) * 12.0
    energies = np.empty(len(tags[0]))
    counted: Counter[str] = Counter()
    for identity, (name, potential) in potentials.items():
        steps = [k for k, tag in enumerate(tags[0]) if tag == identity]
        counted[name] += len(steps)
        for start in range(0, len(steps), 100):
            part = steps[start : start + 100]
            frames = [Frame(numbers, beads[b][k], cell) for k in part for b in range(BEADS)]
            energies[part] = potential.evaluate(frames).energies.reshape(-1, BEADS).mean(axis=1) / HARTREE
    return float(np.abs(energies - run.properties()["potential"]).max()), counted


def frames_of(run: Input) -> set[str]:
    """The frames in a run's queue, by fingerprint; read whole, so that a damaged one would be said."""
    queue = Queue(run.folder / "queue.db")
    damaged = queue.damaged()
    assert not damaged, damaged
    return {row.fingerprint for row in queue.rows()}


def section(title: str, happened: Happened) -> list[str]:
    """What happened in a run with faults."""
    faults = ", ".join(f"{name} {count}" for name, count in sorted(happened.faults.items()))
    lines = ["", f"## {title}", "", f"{sum(happened.faults.values())} faults in {happened.seconds:.0f} s: {faults}."]
    lines += [
        "",
        f"{happened.servers} servers, of which {len(happened.ends)} ended before i-PI did and were started again; "
        f"{happened.refused} committees were refused, and {happened.activated} began to answer. They reported "
        f"{happened.reported} frames kept, and {happened.said} lost.",
    ]
    if happened.ends:
        lines += ["", "| exit code | last words | times |", "|---|---|---|"]
        words = Counter((code, re.sub(r"/\S+/", "…/", re.sub(r"\d+", "N", text))[:160]) for code, text in happened.ends)
        lines += [f"| {code} | {text} | {count} |" for (code, text), count in sorted(words.items())]
    return lines


def main() -> int:
    """Run all three; see above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep everything here, the models for another time too")
    parser.add_argument("--losses", action="store_true", help="that run alone")
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="endure-") as name:
        folder = given.folder or Path(name)
        os.environ.setdefault("SYMMETRIX_JIT_CACHE", str(folder / "kernels"))
        (folder / "kernels").mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "models").exists():
            part = folder / "models.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            committees(part)
            part.rename(folder / "models")
        found = {name: folder / "models" / name for name in ("a", "b", "a2", "damaged", "nan", "three")}
        if given.losses:
            lines, held = page_of_losses(folder / "losses", folder / "models", found["a"])
            before = PAGE.read_text(encoding="utf-8").partition(LOSSES)[0].rstrip()
            PAGE.write_text("\n".join([before, "", *lines]) + "\n", encoding="utf-8")
            print("\n".join(lines))
            return 0 if held else 1
        for run in ("calm", "same", "other"):
            shutil.rmtree(folder / run, ignore_errors=True)
        bad = [found[k] for k in ("damaged", "nan", "three")]
        one, two = [found["a"], found["a2"]], [found["a"], found["b"]]
        with ThreadPoolExecutor(3) as pool:
            always = folder / "models", given.steps, found["a"]
            runs = [
                pool.submit(simulate, folder / "calm", *always, [], [], None),
                pool.submit(simulate, folder / "same", *always, one, bad, given.seed),
                pool.submit(simulate, folder / "other", *always, two, bad, given.seed + 1),
            ]
            (calm, _), (same, first), (other, second) = [run.result() for run in runs]
        difference = apart(calm, same)
        wrong, steps = answered_by_its_committee(other, folder / "models", found)
        kept, wanted = frames_of(same), frames_of(calm)
        rows = {run.folder.name: len(Queue(run.folder / "queue.db")) for run in (same, other)}
        checks = {
            f"i-PI's numbers of all {given.steps} steps are the undisturbed run's to {difference:.1e}": difference
            < SAME,
            f"every step of other weights is of the committee that its extras name, to {wrong:.1e} Ha "
            f"({', '.join(f'{name}: {count}' for name, count in steps.items())} steps)": wrong < SAME
            and sum(steps.values()) == given.steps + 1
            and min(steps["a"], steps["b"]) > 0,
            f"{rows['same']} and {rows['other']} frames are in the queues, {first.reported} and {second.reported} were "
            "reported": rows["same"] >= first.reported and rows["other"] >= second.reported,
            f"{len(wanted)} frames were kept undisturbed and {len(kept)} with faults": len(kept) > 0,
            "bad committees were refused, and good ones answered": min(first.refused, second.refused) > 0
            and min(first.activated, second.activated) > first.servers,
        }
        lines = [
            "# A machine that fails",
            "",
            "`make endure` lets a real i-PI run against a server while descriptors go, the queue's disk is "
            "full, memory is refused, the clock is set, server and i-PI are stopped "
            "and go on, the queue is locked, the process that closes a dead server's connections is killed, and the "
            f"committee is exchanged for good and bad ones: at random, seed {given.seed}, twice for {given.steps} "
            f"steps of {BEADS} beads on {date.today().isoformat()}.",
            "",
            *(f"- {'yes' if held else '**NO**'}: {words}" for words, held in checks.items()),
            *section("Same weights under other hashes", first),
            *section("Other weights", second),
        ]
        more, all_said = page_of_losses(folder / "losses", folder / "models", found["a"])
        lines += ["", *more]
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(PAGE.read_text())
        return 0 if all_said and all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
