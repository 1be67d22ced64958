"""The conversation, held against i-PI's own Driver classes and against any bytes at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beadwork.errors import LocalProtocolError, RemoteProtocolError
from beadwork.ipi import wire
from beadwork.ipi.messages import ForceReady, HangUp, Init, PosData
from beadwork.ipi.protocol import Machine, State
from support.conversation import ATOMS, answer, converse


def replay(data: bytes, pieces: list[int] | None = None, *, shared: bool = False) -> Machine:
    """Feed a transcript in pieces, answering every PosData."""
    machine = Machine(shared=shared)
    at = 0
    for size in pieces or [len(data)]:
        machine.receive(data[at : at + size] or b"")
        at += size
        while (event := machine.next_event()) is not None:
            if isinstance(event, PosData):
                structures, atoms, _ = event.positions.shape
                forces = np.zeros((structures, atoms, 3))
                machine.answer(ForceReady(forces[:, 0, 0], forces, np.zeros((structures, 3, 3)), [b""] * structures))
    return machine


def refused(data: bytes, pieces: list[int] | None = None, *, shared: bool = False) -> str | None:
    """What was said of a transcript that is none; None where it parses. Any other exception is a failed test."""
    try:
        replay(data, pieces, shared=shared)
    except RemoteProtocolError as error:
        return str(error)
    return None


def test_ipi_gets_what_we_answer(mode: tuple[str, int]) -> None:
    """Energies, forces, virials and extras reach i-PI's own code unchanged, in every mode, padded batches included."""
    talk = converse(*mode)
    seen = [(cell, where) for data in talk.seen for cell, where in zip(data.cells, data.positions, strict=True)]
    assert len(talk.answered) >= 3
    for bead in talk.answered:
        assert bead["status"] == "Done"
        cell, where = next(pair for pair in seen if np.array_equal(pair[1].ravel(), bead["pos"]))
        assert np.array_equal(cell, bead["cell"][0])
        expected = answer(PosData(cell[None], where[None]))
        energy, forces, virial, extra = bead["result"]
        assert energy == expected.potentials[0]
        assert np.array_equal(forces, expected.forces.ravel())
        assert np.array_equal(virial, expected.virials[0])
        assert extra["name"] == "é"


def test_headers_in_pieces(mode: tuple[str, int]) -> None:
    """A header in two pieces (which hangs i-PI's own driver) changes nothing: here every byte comes alone."""
    whole, bytewise = converse(*mode), converse(*mode, chunk=1)
    assert whole.sent.count(b"POSDATA") == bytewise.sent.count(b"POSDATA") == 3
    for one, other in zip(whole.answered, bytewise.answered, strict=True):
        assert one["result"][0] == other["result"][0]
        assert np.array_equal(one["result"][1], other["result"][1])


def test_batch_size_is_read_from_init() -> None:
    """INIT's string announces the batch; parameters of the user's own before it are no trouble."""
    assert Init(0, " ").batch_size == 1
    assert Init(0, "batch_size:8").batch_size == 8
    assert Init(0, " cutoff : 5 , , batch_size:16").batch_size == 16
    assert Init(0, "my_batch_size:4").batch_size == 1


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=200), shared=st.booleans())
def test_any_bytes_parse_or_raise_its_own_error(noise: bytes, shared: bool) -> None:
    """Noise of any kind, before and after a valid start, is a RemoteProtocolError or waits for more."""
    init = wire.INIT + wire.pack_integer(0) + wire.pack_integer(12) + b"batch_size:2"
    for start in (b"", wire.STATUS, wire.STATUS + init, wire.STATUS + init + wire.POSDATA):
        complaint = refused(start + noise, shared=shared)
        assert complaint is None or any(word in complaint for word in ("peer", "batch size", "shared-memory"))


@pytest.mark.parametrize("count", [-1, 0, 2**31 - 1])
def test_counts_are_refused_before_memory_is_asked_for(count: int) -> None:
    """A huge or negative atom count is an error at once, not an allocation or a wait for terabytes."""
    init = wire.INIT + wire.pack_integer(0) + wire.pack_integer(0)
    body = wire.POSDATA + bytes(144) + wire.pack_integer(count)
    with pytest.raises(RemoteProtocolError, match=f"announced {count} atoms"):
        replay(wire.STATUS + init + body)


def test_changed_number_of_atoms_is_named() -> None:
    """An i-PI that serves another system than the file says is told apart by its atom count."""
    talk = converse("consolidated", 1)
    machine = Machine(atoms=ATOMS + 1)
    machine.receive(talk.sent)
    with pytest.raises(RemoteProtocolError, match=f"{ATOMS} atoms where the simulation file has {ATOMS + 1}"):
        list(iter(machine.next_event, None))


def test_end_of_file_says_how_much_was_lost() -> None:
    """A peer that hangs up half way is a HangUp with the bytes it left, not a silent end."""
    machine = Machine()
    machine.receive(wire.STATUS + b"POSD")
    machine.receive(b"")
    assert machine.next_event() is not None
    assert machine.next_event() == HangUp(4)


def test_our_own_mistakes_are_ours() -> None:
    """A result without a request, of another shape or with NaN is LocalProtocolError: not sent, not the peer's."""
    result = ForceReady(np.zeros(1), np.zeros((1, 2, 3)), np.zeros((1, 3, 3)), [b""])
    with pytest.raises(LocalProtocolError, match="without a PosData"):
        Machine().answer(result)
    talk = converse("consolidated", 1, steps=1)
    machine = Machine()
    machine.receive(talk.sent)
    while machine.state is not State.COMPUTING:
        machine.next_event()
    with pytest.raises(LocalProtocolError, match="shapes"):
        machine.answer(result)
    structures, atoms = machine._pending
    for field in ("potentials", "forces", "virials"):
        right = {
            "potentials": np.zeros(structures),
            "forces": np.zeros((structures, atoms, 3)),
            "virials": np.zeros((structures, 3, 3)),
        }
        right[field].flat[-1] = np.nan
        with pytest.raises(LocalProtocolError, match="NaN or infinity was to be sent"):
            machine.answer(ForceReady(**right, extras=[b""] * structures))
    assert machine.state is State.COMPUTING
