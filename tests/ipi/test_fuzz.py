"""Damaged conversations of every mode: parsed to their end, or refused by one named error, soon, in little memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from beadwork.errors import RemoteProtocolError
from beadwork.ipi import wire
from beadwork.ipi.messages import ForceReady, GetForce, PosData, Status
from beadwork.ipi.protocol import Machine, State
from support.conversation import ATOMS, converse
from support.transcripts import Transcript, mutate, segments

#: seconds that no transcript may take
LONGEST = 1.0
#: bytes beyond a few copies of the transcript that no transcript may make us ask for
MEMORY = 1 << 18
BATCH = 4


@dataclass
class Tally:
    """How many transcripts ended how."""

    parsed: int = 0
    refused: int = 0
    past_init: int = 0
    slowest: float = 0.0
    most: int = 0  # bytes held at once, beyond the transcript's own copies
    complaints: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        return self.parsed + self.refused

    def __str__(self) -> str:
        return (
            f"{self.total} transcripts: {self.parsed} parsed, {self.refused} refused with one RemoteProtocolError, "
            f"{self.past_init} past INIT, slowest {1e3 * self.slowest:.1f} ms, "
            f"{self.most / 1024:.0f} kB of memory at most"
        )


def play(transcript: Transcript, pieces: list[int]) -> tuple[Machine, str | None]:
    """Feed a conversation in pieces and answer it, to its end or to the one complaint about it."""
    machine = Machine(shared=transcript.shared)
    at, owed, said = 0, 0, 0
    try:
        for size in [*pieces, 0]:  # and the end of file
            machine.receive(transcript.sent[at : at + size])
            at += size
            while (event := machine.next_event()) is not None:
                owed += isinstance(event, (Status, GetForce))
                if isinstance(event, PosData):
                    structures, atoms, _ = event.positions.shape
                    assert event.cells.shape == (structures, 3, 3)
                    assert structures == machine.batch_size
                    forces = np.zeros((structures, atoms, 3))
                    virials = np.zeros((structures, 3, 3))
                    machine.answer(ForceReady(forces[:, 0, 0], forces, virials, [b""] * structures))
            said += _replies(machine.data_to_send())
        # at the end of file the conversation is over: by EXIT, by a HangUp, or as we hold a result that nobody fetched
        assert machine.state is State.CLOSED, machine.state
        assert said == owed
        assert machine.next_event() is None
    except RemoteProtocolError as error:
        machine.receive(wire.STATUS)  # whatever comes after it is not listened to
        assert machine.next_event() is None
        return machine, str(error)
    finally:
        machine.close()
    return machine, None


def _replies(data: bytes) -> int:
    return sum(data.count(word) for word in (wire.NEEDINIT, wire.READY, wire.HAVEDATA, wire.FORCEREADY))


def fuzz(seeds: list[Transcript], count: int, seed: int) -> Tally:
    """Play `count` damaged transcripts; a failure names the number that makes it again."""
    tally = Tally()
    with segments(seeds, ATOMS, BATCH):
        tracemalloc.start()
        try:
            for number in range(count):
                transcript, pieces = mutate(random.Random(f"{seed}-{number}"), seeds)
                tracemalloc.reset_peak()
                before, begin = tracemalloc.get_traced_memory()[0], time.perf_counter()
                try:
                    machine, complaint = play(transcript, pieces)
                except Exception as error:
                    raise AssertionError(f"transcript {seed}-{number} ({transcript.mode}): {error!r}") from error
                tally.slowest = max(tally.slowest, time.perf_counter() - begin)
                memory = tracemalloc.get_traced_memory()[1] - before - 4 * len(transcript.sent)
                tally.most = max(tally.most, memory)
                tally.parsed += complaint is None
                tally.refused += complaint is not None
                tally.past_init += machine.request is not None
                if complaint is not None:
                    assert len(complaint) > 40, f"transcript {seed}-{number}: {complaint}"
                    tally.complaints.add(complaint[:24])
        finally:
            tracemalloc.stop()
    return tally


def check(tally: Tally, count: int) -> None:
    """What is asked of every run, however long."""
    assert tally.total == count
    assert tally.past_init >= count / 2, tally
    assert min(tally.parsed, tally.refused) > count / 10, tally  # neither all nor nothing is damaged beyond reading
    assert tally.slowest < LONGEST, tally
    assert tally.most < MEMORY, tally
    assert len(tally.complaints) >= 6, tally.complaints  # the mutator finds every way to be refused


@pytest.fixture(scope="module")
def recorded() -> list[Transcript]:
    """What i-PI's own code sends in every mode, handshake to EXIT."""
    modes = {
        "unbatched": ("consolidated", 1),
        "legacy order": ("legacy", 1),
        "batched": ("consolidated", BATCH),
        "shm": ("shm", 1),
        "shm batched": ("shm", BATCH),
    }
    return [Transcript(name, converse(mode, batch).sent, shared=mode == "shm") for name, (mode, batch) in modes.items()]


def test_recorded_conversations_parse(recorded: list[Transcript]) -> None:
    """Undamaged, whole and byte by byte, each is read to its EXIT: what the mutator starts from is sound."""
    with segments(recorded, ATOMS, BATCH):
        for transcript in recorded:
            for pieces in ([len(transcript.sent)], [1] * len(transcript.sent)):
                machine, complaint = play(transcript, pieces)
                assert complaint is None
                assert machine.request is not None


def test_three_thousand_damaged_conversations(recorded: list[Transcript]) -> None:
    """Flipped, cut, doubled, swapped, spliced, with wrong and huge counts, in pieces: parsed, or one named error."""
    check(fuzz(recorded, 3000, seed=1), 3000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "damaged conversations",
    "100,000 transcripts: what i-PI 3.3.1 sends in every mode (unbatched, legacy order, batched, shm, shm batched), "
    "with bits flipped, pieces cut, doubled, swapped, spliced from another mode, wrong and huge counts, headers in "
    "pieces",
)
def test_hundred_thousand_damaged_conversations(recorded: list[Transcript], fault: Callable[[str], None]) -> None:
    """The same at length, from another seed: no hang, no other exception, no memory for a count that is claimed."""
    tally = fuzz(recorded, 100_000, seed=2)
    fault(str(tally))
    check(tally, 100_000)


@pytest.mark.fault("a flood", "the peer sends megabytes while a result is computed, and never reads one")
def test_what_is_kept_of_a_flood_is_bounded(recorded: list[Transcript], fault: Callable[[str], None]) -> None:
    """A peer that sends on while we compute is refused once it has sent more than i-PI's largest message."""
    machine = Machine(atoms=ATOMS)
    machine.receive(recorded[0].sent)
    while machine.state is not State.COMPUTING:
        machine.next_event()
    fed = 0

    def flood() -> None:
        nonlocal fed
        while fed < 1 << 28:
            machine.receive(bytes(1 << 20))
            fed += 1 << 20
            assert machine.next_event() is None

    with pytest.raises(RemoteProtocolError, match="without waiting for an answer") as caught:
        flood()
    assert fed <= 1 << 27
    fault(f"refused after {fed >> 20} MB: RemoteProtocolError, {caught.value}")
    machine.receive(bytes(1 << 20))
    assert machine.next_event() is None
