"""Conversations of i-PI's, recorded and then damaged by a seeded mutator: what a fuzz test feeds to the protocol."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from beadwork.ipi import wire

#: where the system keeps shared memory
SHM = Path("/dev/shm")
HEADERS = (wire.STATUS, wire.INIT, wire.POSDATA, wire.GETFORCE, wire.EXIT)
#: what a mutator writes where a length or a count belongs
COUNTS = (-(2**31), -1, 0, 1, 2, 4, 6, 255, 256, 65537, 10**6, 2**24, 2**30, 2**31 - 1)


@dataclass(frozen=True)
class Transcript:
    """All that i-PI sent over one connection, and whether its numbers went through shared memory."""

    mode: str
    sent: bytes
    shared: bool = False

    @cached_property
    def messages(self) -> list[int]:
        """Where each message begins, and the end."""
        starts = []
        at = 0
        while at < len(self.sent):
            if self.sent[at : at + wire.HEADER] in HEADERS:
                starts.append(at)
                at += wire.HEADER
            else:
                at += 1
        return [*starts, len(self.sent)]

    @cached_property
    def greeting(self) -> int:
        """Where INIT ends."""
        starts = self.messages
        return next(b for a, b in pairwise(starts) if self.sent[a : a + 12] == wire.INIT)


@contextmanager
def segments(transcripts: list[Transcript], atoms: int, batch: int) -> Iterator[None]:
    """The shared memory that recorded conversations name, for as long as they are played again.

    Made as files: Python's own class would make its resource tracker count what this process attaches to as well.
    """
    sizes = {"pos": 24 * atoms, "h": 72, "ih": 72, "pot": 8, "force": 24 * atoms, "vir": 72}
    shared = [transcript.sent for transcript in transcripts if transcript.shared]
    paths = {SHM / _name(sent, kind): size * batch for sent in shared for kind, size in sizes.items()}
    try:
        for path, size in paths.items():
            path.write_bytes(bytes(size))
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _name(sent: bytes, kind: str) -> str:
    begin = sent.index(b"ipi_shm_")
    return sent[begin : sent.index(b"pos", begin)].decode() + kind


def mutate(chance: random.Random, seeds: list[Transcript]) -> tuple[Transcript, list[int]]:
    """One damaged conversation, and the pieces (bytes) that it arrives in.

    Two of three keep their greeting, so that the damage is met by a conversation that is under way.
    """
    seed = chance.choice(seeds)
    kept = seed.greeting if chance.random() < 2 / 3 else 0
    data = bytearray(seed.sent[kept:])
    marks = [mark - kept for mark in seed.messages if mark >= kept]
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 5))):
        chance.choice(_DAMAGES)(chance, data, marks, seeds)
    sent = seed.sent[:kept] + bytes(data)
    return Transcript(seed.mode, sent, seed.shared), _pieces(chance, len(sent))


def _flip(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """Some bits, anywhere or in a header."""
    for _ in range(chance.choice((1, 1, 2, 8))):
        if data:
            at = chance.choice(marks) + chance.randrange(12) if chance.random() < 0.3 else chance.randrange(len(data))
            if at < len(data):
                data[at] ^= 1 << chance.randrange(8)


def _cut(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """A piece is missing, or everything from somewhere on."""
    at = chance.choice(marks) if chance.random() < 0.3 else chance.randrange(len(data) + 1)
    del data[at : len(data) if chance.random() < 0.3 else at + chance.randrange(1, 64)]


def _duplicate(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """A message, or a piece of one, comes twice."""
    begin, end = _span(chance, data, marks)
    data[end:end] = data[begin:end]


def _swap(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """Two neighbours change places."""
    if len(marks) > 2:
        k = chance.randrange(len(marks) - 2)
        a, b, c = marks[k : k + 3]
        data[a:c] = data[b:c] + data[a:b]


def _splice(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """A piece of another conversation, perhaps of another mode, in between or in place of the rest."""
    other = chance.choice(seeds)
    begin, end = _span(chance, bytearray(other.sent), other.messages)
    at = chance.choice(marks)
    data[at : at if chance.random() < 0.5 else len(data)] = other.sent[begin:end]


def _count(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """A length or count that is none, where i-PI has one: right behind a header, or behind the cell."""
    at = chance.choice(marks) + wire.HEADER + chance.choice((0, 4, 8, 144))
    if at + 4 <= len(data):
        data[at : at + 4] = wire.pack_integer(chance.choice(COUNTS))


def _noise(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """Bytes from nowhere."""
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.randbytes(chance.choice((1, 3, 12, 100)))


def _header(chance: random.Random, data: bytearray, marks: list[int], seeds: list[Transcript]) -> None:
    """A whole message of i-PI's where it does not belong."""
    at = chance.choice(marks)
    data[at:at] = chance.choice(HEADERS)


_DAMAGES = (_flip, _cut, _duplicate, _swap, _splice, _count, _noise, _header)


def _span(chance: random.Random, data: bytearray, marks: list[int]) -> tuple[int, int]:
    if chance.random() < 0.6 and len(marks) > 1:
        k = chance.randrange(len(marks) - 1)
        return marks[k], marks[k + 1]
    begin = chance.randrange(len(data) + 1)
    return begin, min(len(data), begin + chance.randrange(64))


def _pieces(chance: random.Random, size: int) -> list[int]:
    """Whole, byte by byte, or cut at random: headers come in pieces."""
    how = chance.random()
    if how < 0.4 or size == 0:
        return [size]
    if how < 0.45 and size < 2000:
        return [1] * size
    cuts = sorted({chance.randrange(size + 1) for _ in range(chance.choice((1, 3, 10, 40)))} | {0, size})
    return [b - a for a, b in pairwise(cuts)]
