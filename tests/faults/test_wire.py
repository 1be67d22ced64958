"""The wire between real i-PI and beadwork is cut, slowed and silenced by a proxy; its trajectory must not show it."""

from __future__ import annotations

import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from beadwork.errors import ConnectionLost
from beadwork.events import Evaluated, Event
from beadwork.ipi import wire
from beadwork.ipi.transport import Address, Line
from beadwork.potential.analytic import Harmonic
from beadwork.potential.potential import Potential
from beadwork.serve.server import Server
from beadwork.serve.service import Service

PROXY = Path(__file__).with_name("proxy.py")
#: every message, in the direction in which it goes
MESSAGES = {
    "in": (wire.STATUS, wire.INIT, wire.POSDATA, wire.GETFORCE, wire.EXIT),
    "out": (wire.NEEDINIT, wire.READY, wire.HAVEDATA, wire.FORCEREADY),
}
BEADS = 4


@dataclass
class Outcome:
    """How a run ended. connections: that the proxy has seen. cut: those that it has cut. log: what i-PI said.

    waited: seconds between the last answer and the end. limited: the server did not end by itself.
    """

    run: Any
    code: int
    error: str
    structures: int
    connections: int
    seconds: float
    processor: float
    waited: float = 0.0
    limited: bool = False
    log: str = ""
    cut: tuple[int, ...] = ()

    @property
    def written(self) -> str:
        """What i-PI wrote of its trajectory, every digit."""
        return (self.run.folder / "run.out").read_text() + np.array2string(self.run.positions(), threshold=10**9)


@dataclass
class Rig:
    """Real i-PI, a proxy before it, and beadwork's server with a harmonic potential in this process."""

    ipi: SimpleNamespace
    start: Any
    folder: Path

    def run(
        self,
        name: str,
        plan: dict[str, Any] | None = None,
        *,
        steps: int = 20,
        patience: float = 60.0,
        limit: float = 240.0,
        end: bool = False,
        alone: bool = False,
        watch: Callable[[Outcome], None] = lambda outcome: None,
        **forcefield: Any,
    ) -> Outcome:
        """One simulation; plan: what the proxy does, None for no proxy; end: an i-PI that has not ended is killed.

        limit: seconds after which the server is stopped, as it is when i-PI is gone; not so if it is left alone.
        """
        forcefield = {"batch": BEADS, **forcefield}
        run = self.ipi.Input(self.folder / name, [self.ipi.Forcefield(**forcefield)], beads=BEADS, steps=steps).write()
        inet = forcefield.get("mode") == "inet"
        theirs = ["127.0.0.1", self.ipi.free_port(run.folder, "water")] if inet else run.prefix + "water"
        ours = theirs
        count, done = run.folder / "connections", run.folder / "done"
        if plan is not None:
            ours = ["127.0.0.1", self.ipi.free_port(run.folder, "proxy")] if inet else f"{run.folder}/p"
            plan = {"listen": ours, "dial": theirs, "count": str(count), "done": str(done), **plan}
            (run.folder / "plan.json").write_text(json.dumps(plan))
            self.start("proxy", sys.executable, PROXY, "plan.json", cwd=run.folder)
        process = self.start.ipi(run)
        self._wait(theirs)
        address = Address(host=ours[0], port=ours[1]) if inet else Address(path=Path(ours))
        line = Line(address, -(-BEADS // forcefield["batch"]), forcefield.get("mode") == "shm", len(run.atoms))
        potential = Potential(Harmonic(5.0, run.atoms.positions))
        service = Service(line, potential, run.atoms.numbers, BEADS)
        outcome = Outcome(run, -1, "", 0, 0, 0.0, 0.0)
        begin, before = time.monotonic(), time.process_time()
        answered = begin

        def see(event: Event) -> None:
            nonlocal answered
            if isinstance(event, Evaluated):
                answered = time.monotonic()
                outcome.structures += event.evaluated
                watch(outcome)

        def stopped() -> bool:
            outcome.limited = time.monotonic() - begin > limit
            return outcome.limited or (process.poll() is not None and not alone)

        try:
            Server([service], patience=patience, watch=see, stopped=stopped).run()
        except ConnectionLost as error:
            outcome.error = str(error)
        outcome.seconds, outcome.processor = time.monotonic() - begin, time.process_time() - before
        outcome.waited = time.monotonic() - answered
        outcome.connections = int(count.read_text()) if count.exists() else 0
        outcome.cut = tuple(map(int, done.read_text().split())) if done.exists() else ()
        if process.poll() is None and end:
            process.kill()
        if process.poll() is None and not outcome.error:
            process.wait(20)
        outcome.code = -1 if process.poll() is None else process.returncode
        outcome.log = self.start.log(process)
        return outcome

    def _wait(self, where: Any) -> None:
        """Until i-PI listens, which a proxy before it would hide; without connecting, for i-PI counts its clients."""
        end = time.monotonic() + self.ipi.PATIENCE
        listens = f":{where[1]:04X} 00000000:0000 0A" if isinstance(where, list) else where
        while listens not in Path("/proc/net/tcp" if isinstance(where, list) else "/proc/net/unix").read_text():
            assert time.monotonic() < end, f"i-PI does not listen at {where}"
            time.sleep(0.05)


@pytest.fixture
def rig(ipi: SimpleNamespace, start: Any, tmp_path: Path) -> Rig:
    """Simulations in a folder of the test's own."""
    return Rig(ipi, start, tmp_path)


def spans(sent: bytes, direction: str) -> list[tuple[str, int, int]]:
    """The messages of one direction: name, where it begins, where the next does."""
    starts = [at for at in range(len(sent)) if sent[at : at + 12] in MESSAGES[direction]]
    return [(sent[a : a + 12].decode().strip(), a, b) for a, b in pairwise([*starts, len(sent)])]


def places(folder: Path, chance: random.Random, spared: tuple[str, ...] = ()) -> list[tuple[str, str, int]]:
    """Where to cut: name, direction, bytes. Every byte of the header of each message of a connection, and its body.

    The first of each kind, and the next STATUS, NEEDINIT and READY, where the conversation stands elsewhere. spared:
    messages whose headers are left whole.
    """
    cuts = []
    for direction in ("in", "out"):
        sent = (folder / f"0-{direction}").read_bytes()
        seen: dict[str, int] = {}
        for name, begin, after in spans(sent, direction):
            seen[name] = seen.get(name, 0) + 1
            if name == "EXIT" or seen[name] > (3 if name in ("STATUS", "NEEDINIT", "READY") else 1):
                continue
            inside = range(begin + 12, after)
            body = chance.sample(inside, min(len(inside), 12)) if inside else []
            header = () if name in spared else range(begin, begin + 12)
            cuts += [(name, direction, at) for at in (*header, *body)]
    return cuts


def cut_everywhere(rig: Rig, mode: str, seed: int, most: int = 10**6) -> tuple[Outcome, Outcome, list[str]]:
    """A calm run and one that is cut in at most so many places; both outcomes, and what was cut."""
    settings: dict[str, Any] = {"mode": "unix" if mode == "legacy" else mode}
    if mode == "legacy":
        settings |= {"batch": 1, "consolidate": False}
    # where not consolidated, i-PI 3.3.1 does not survive a connection that ends before a whole FORCEREADY: see below
    spared = ("GETFORCE", "FORCEREADY") if mode == "legacy" else ()
    record = rig.folder / "record"
    record.mkdir()
    rig.run("recorded", {"record": str(record)}, steps=2, **settings)
    cuts = places(record, random.Random(seed), spared)
    random.Random(seed).shuffle(cuts)
    cuts = cuts[:most]
    steps = max(4, len(cuts) // 4)
    calm = rig.run("calm", steps=steps, **settings)
    cut = rig.run("cut", {"cuts": [[direction, at] for _, direction, at in cuts]}, steps=steps, **settings)
    return calm, cut, [name for name, _, _ in cuts]


def test_cut_in_some_messages(rig: Rig) -> None:
    """A share of the test below, for every day: i-PI asks again, and its trajectory is the same to the last digit."""
    calm, cut, cuts = cut_everywhere(rig, "unix", seed=1, most=16)
    assert (cut.code, cut.error) == (0, "")
    assert sorted(cut.cut) == list(range(len(cuts)))
    assert cut.written == calm.written


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("mode", "seed"), [("unix", 1), ("inet", 2), ("shm", 3), ("legacy", 4)])
@pytest.mark.fault(
    "connection cut in every message ({mode})",
    "real i-PI behind a proxy that hangs up at every byte of the 12-byte header of every message, and at random places "
    "in its body, both directions, one connection after the other",
)
def test_cut_in_every_message(rig: Rig, fault: Callable[[str], None], mode: str, seed: int) -> None:
    """However a connection ends, i-PI asks again and its trajectory is that of the undisturbed run, to the digit."""
    calm, cut, cuts = cut_everywhere(rig, mode, seed)
    what = f"{len(cut.cut)} cuts in {', '.join(sorted({cuts[number] for number in cut.cut}))}"
    if mode == "legacy" and cut.error:
        # one of its threads has died, and it waits for ever: shown, and ours has to have an end
        fault(f"{what}: a thread of i-PI's died and i-PI hung; beadwork: {cut.error}")
        assert cut.code == -1
        assert len(cut.cut) > 10
        assert "shaken hands" in cut.error or "no i-PI at" in cut.error
        # by i-PI's own word: a traceback, or (what dies in its pool of threads says nothing) a connection never greeted
        dead = re.search(r"Exception in thread.*\nTraceback", cut.log)
        assert dead or cut.log.count("Now hand-shaking") < cut.connections, cut.log[-3000:]
        return
    assert (cut.code, cut.error) == (0, "")
    same = cut.written == calm.written
    fault(
        f"{what}: {cut.connections} connections, i-PI's exit code {cut.code}, trajectory "
        f"{'the same to the last digit' if same else 'ANOTHER'}; {cut.seconds:.0f} s against {calm.seconds:.0f} s"
    )
    assert sorted(cut.cut) == list(range(len(cuts)))
    assert same


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.fault(
    "connection cut before a whole FORCEREADY header, i-PI not consolidated",
    "<consolidate_messages> False, and the proxy hangs up after {at} bytes of FORCEREADY",
)
def test_cut_that_ipi_does_not_survive(rig: Rig, fault: Callable[[str], None], at: int) -> None:
    """i-PI 3.3.1 then reads the end of file over and over in one thread. Ours waits for it at no cost, and can end."""
    settings: dict[str, Any] = {"batch": 1, "consolidate": False}
    rig.run("recorded", {"record": str(rig.folder)}, steps=2, **settings)
    begin = next(a for name, a, _ in spans((rig.folder / "0-out").read_bytes(), "out") if name == "FORCEREADY")
    cut = rig.run("cut", {"cuts": [["out", begin + at]]}, steps=4, limit=40.0, end=True, **settings)
    log = "\n".join(path.read_text(errors="replace") for path in rig.folder.glob("log-*-i-pi"))
    spins = log.count("Unexpected getforce reply: b''")
    fault(
        f"i-PI said 'Unexpected getforce reply' {spins} times and did {'not ' if cut.code else ''}end; beadwork "
        f"served on at {100 * cut.processor / cut.seconds:.0f} % of the processor: {cut.error or 'stopped when told'}"
    )
    assert spins > 1000
    assert cut.processor < 0.2 * cut.seconds + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("at", range(12))
@pytest.mark.fault("i-PI's EXIT cut after {at} bytes", "the proxy hangs up in the middle of i-PI's last message")
def test_cut_in_exit(rig: Rig, fault: Callable[[str], None], at: int) -> None:
    """A farewell that does not arrive ends as an i-PI that is gone: by name, after the patience, and not before."""
    outcome = rig.run("run", {"cuts": [["exit", at]]}, steps=3, patience=1.0, limit=120.0, alone=True)
    fault(f"i-PI's exit code {outcome.code}; beadwork ends: {outcome.error or 'as i-PI has ended'}")
    assert outcome.run.properties()["step"][-1] == 3
    assert not outcome.limited
    assert "no i-PI at" in outcome.error
    assert outcome.waited >= 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault(
    "connection reset while i-PI reads a reply",
    "the proxy resets i-PI's TCP connection in the middle of FORCEREADY, as the kernel does for a killed client",
)
def test_reset_is_the_end_of_ipi_and_ours_has_a_name(rig: Rig, fault: Callable[[str], None]) -> None:
    """i-PI 3.3.1 does not survive a reset: its polling thread dies and it hangs. Ours ends, with the reason."""
    calm = rig.run("recorded", {"record": str(rig.folder)}, steps=2, mode="inet")
    assert calm.code == 0
    begin = next(a for name, a, _ in spans((rig.folder / "0-out").read_bytes(), "out") if name == "FORCEREADY")
    plan = {"cuts": [["out", begin + 100, "reset"]]}
    outcome = rig.run("reset", plan, steps=20, mode="inet", patience=3.0, limit=60.0)
    log = "\n".join(path.read_text(errors="replace") for path in rig.folder.glob("log-*-i-pi"))
    died = "ConnectionResetError" in log
    fault(
        f"i-PI's polling thread {'died of ConnectionResetError and i-PI hung' if died else 'lived'}; beadwork after "
        f"{outcome.seconds:.0f} s: {outcome.error or f'i-PI ended with code {outcome.code}'}"
    )
    assert died == bool(outcome.error)
    if died:
        assert "shaken hands" in outcome.error
        assert outcome.seconds < 30
    else:
        assert outcome.code == 0


@pytest.mark.slow
@pytest.mark.fault(
    "slow peer, i-PI's bytes dribble", "the proxy lets the first {bytes} bytes through one by one, {pause} s apart"
)
@pytest.mark.parametrize(
    ("bytes", "pause"), [(60, 0.05), pytest.param(4000, 0.002, marks=pytest.mark.slow)], ids=["headers", "bodies"]
)
def test_bytes_that_dribble_in_are_waited_for(rig: Rig, fault: Callable[[str], None], bytes: int, pause: float) -> None:
    """Headers and bodies that come byte by byte are waited for without hanging, and without burning the processor."""
    calm = rig.run("calm", steps=5)
    outcome = rig.run("slow", {"dribble": ["in", pause, bytes]}, steps=5)
    fault(
        f"i-PI's exit code {outcome.code}, the same trajectory; {outcome.seconds:.1f} s, of which beadwork used the "
        f"processor for {outcome.processor:.2f} s"
    )
    assert (outcome.code, outcome.error) == (0, "")
    assert outcome.written == calm.written
    assert outcome.seconds > bytes * pause
    assert outcome.processor < 0.2 * outcome.seconds + 0.5


@pytest.mark.slow
@pytest.mark.fault(
    "slow network, our reply stalls", "the proxy holds back the second half of a FORCEREADY for 4 s; i-PI gives up at 2"
)
def test_a_stalled_reply_is_asked_for_and_sent_again(rig: Rig, fault: Callable[[str], None]) -> None:
    """i-PI drops a reply that stalls over two seconds and asks again; beadwork answers again, and nothing is lost."""
    rig.run("recorded", {"record": str(rig.folder)}, steps=2)
    begin = next(a for name, a, _ in spans((rig.folder / "0-out").read_bytes(), "out") if name == "FORCEREADY")
    calm = rig.run("calm", steps=5)
    outcome = rig.run("slow", {"stall": ["out", begin + 200, 4.0]}, steps=5)
    fault(
        f"{outcome.connections} connections, i-PI's exit code {outcome.code}, the same trajectory, "
        f"{outcome.seconds:.1f} s {outcome.error}"
    )
    assert (outcome.code, outcome.error) == (0, "")
    assert outcome.written == calm.written


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "1,000 reconnects", "the proxy hangs up after every first reply, a thousand times, real i-PI behind it"
)
def test_a_thousand_reconnects(rig: Rig, fault: Callable[[str], None]) -> None:
    """Not a descriptor, thread or process is left over from a thousand connections that ended."""
    rig.run("recorded", {"record": str(rig.folder)}, steps=2)
    sent = (rig.folder / "0-out").read_bytes()
    end = next(after for name, _, after in spans(sent, "out") if name == "FORCEREADY")
    held: list[tuple[int, int, int]] = []

    def count(outcome: Outcome) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        held.append((len(os.listdir("/proc/self/fd")), threading.active_count(), len(children)))

    steps = 1000
    outcome = rig.run("run", {"cuts": [["out", end]] * 1000}, steps=steps, limit=1700.0, watch=count)
    early, late, most = held[20], held[-1], tuple(max(column) for column in zip(*held, strict=True))
    fault(
        f"{outcome.connections} connections in {outcome.seconds:.0f} s, i-PI's exit code {outcome.code}; descriptors, "
        f"threads, processes: {early} after 20 answers, {late} at the end, {most} at most"
    )
    assert (outcome.code, outcome.error) == (0, "")
    assert outcome.connections > 1000
    assert late == early
    assert max(most[0] - early[0], most[1] - early[1], most[2] - early[2]) <= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault("20,000 steps", "real i-PI, four beads, free particle; memory and descriptors read as it runs")
def test_twenty_thousand_steps(fault: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run takes no more memory than a short one: what is kept of a step is let go."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from soak import soak

    result = soak(tmp_path, steps=20_000, beads=4, batch=4)
    fault(str(result))
    assert result.steps == 20_000
    assert result.exchanges >= 79_990
    assert result.steady, result
