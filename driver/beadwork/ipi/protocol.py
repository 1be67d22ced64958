"""One connection's conversation with i-PI, without I/O: bytes in, events out, bytes to send.

    machine = Machine(shared=False)
    machine.receive(data)                 # what the socket gave; b"" for end of file
    while (event := machine.next_event()) is not None: ...
    machine.answer(result)                # after a PosData; only then does the conversation go on
    sock.sendall(machine.data_to_send())

One rule is right for every version of i-PI: after POSDATA the machine reads nothing more until it is given the result.
An i-PI with consolidated messages (the default since 3.2) has sent GETFORCE by then, an older one a STATUS, to which
the reply is HAVEDATA.
"""

from __future__ import annotations

from enum import Enum, auto

import numpy as np

from beadwork.errors import LocalProtocolError, RemoteProtocolError
from beadwork.ipi import wire
from beadwork.ipi.messages import Exit, ForceReady, GetForce, HangUp, Incoming, Init, PosData, Status
from beadwork.ipi.shm import Shared


class State(Enum):
    """The state of the conversation."""

    NEEDS_INIT = auto()
    READY = auto()
    COMPUTING = auto()  # has a PosData, waits for our own result
    HAS_DATA = auto()
    CLOSED = auto()


#: our reply to STATUS
_STATUS_REPLY = {State.NEEDS_INIT: wire.NEEDINIT, State.READY: wire.READY, State.HAS_DATA: wire.HAVEDATA}

#: every legal move: (state, message) -> next state. A table, so that what is not in it is refused and not guessed
_MOVES: dict[tuple[State, bytes], State] = {
    (State.NEEDS_INIT, wire.STATUS): State.NEEDS_INIT,
    (State.NEEDS_INIT, wire.INIT): State.READY,
    (State.READY, wire.STATUS): State.READY,
    (State.READY, wire.POSDATA): State.COMPUTING,
    (State.HAS_DATA, wire.STATUS): State.HAS_DATA,
    (State.HAS_DATA, wire.GETFORCE): State.READY,
    (State.NEEDS_INIT, wire.EXIT): State.CLOSED,
    (State.READY, wire.EXIT): State.CLOSED,
    (State.HAS_DATA, wire.EXIT): State.CLOSED,
}

#: messages that are a header and nothing else
_BARE: dict[bytes, Incoming] = {wire.STATUS: Status(), wire.GETFORCE: GetForce(), wire.EXIT: Exit()}


class Machine:
    """The driver's side of one connection.

    shared: the forcefield's mode is 'shm'. atoms: the atom count that the simulation file promises, or None.
    """

    def __init__(self, *, shared: bool = False, atoms: int | None = None) -> None:
        self.state = State.NEEDS_INIT
        self.request: int | None = None
        self.batch_size = 1
        self._shared = shared
        self._atoms = atoms
        self._layout: wire.Layout = wire.Single()
        self._in = wire.ReceiveBuffer()
        self._out: list[bytes] = []
        self._pending: tuple[int, int] | None = None  # (structures, atoms) of the PosData that awaits its result
        self._result: ForceReady | None = None
        self._eof = False

    def receive(self, data: bytes) -> None:
        """Take received bytes; empty means that the peer hung up. After the end they are discarded."""
        if self.state is State.CLOSED:
            return
        if data:
            self._in.feed(data)
        else:
            self._eof = True

    def next_event(self) -> Incoming | None:
        """Return the next message, or None when more bytes, or our own result, are needed first.

        Raises RemoteProtocolError, once, for anything i-PI would not send here: the conversation is over then. After an
        end of file it returns HangUp.
        """
        try:
            return self._next_event()
        except RemoteProtocolError:
            self.close()
            raise

    def _next_event(self) -> Incoming | None:
        if self.state is State.CLOSED:
            return None
        if len(self._in) > wire.MAX_HELD:  # while we compute nothing is parsed, and a peer could fill the memory
            raise RemoteProtocolError(
                f"the peer sent {len(self._in)} bytes without waiting for an answer",
                "check that it is i-PI that listens at this address",
            )
        if self.state is State.COMPUTING:
            return None
        header = self._in.peek(wire.HEADER)
        if header is None:
            return self._end_of_file() if self._eof else None
        # before the body is read: a message that is not allowed now need not even be complete
        target = _MOVES.get((self.state, header))
        if target is None:
            raise RemoteProtocolError(self._complaint(header))
        message = self._read(header)
        if message is None:
            return self._end_of_file() if self._eof else None
        if isinstance(message, Status):
            self._out.append(_STATUS_REPLY[self.state])
        elif isinstance(message, GetForce):
            self._reply()
        elif isinstance(message, Init):
            self._initialise(message)
        elif isinstance(message, PosData):
            self._pending = message.positions.shape[0], message.positions.shape[1]
        self.state = target
        return message

    def answer(self, result: ForceReady) -> None:
        """Give the result of the last PosData. Raises LocalProtocolError when it does not fit."""
        if self.state is not State.COMPUTING or self._pending is None:
            raise LocalProtocolError(f"a result was given in state {self.state.name}, without a PosData before it")
        structures, atoms = self._pending
        shapes = (result.potentials.shape, result.forces.shape, result.virials.shape, len(result.extras))
        if shapes != ((structures,), (structures, atoms, 3), (structures, 3, 3), structures):
            raise LocalProtocolError(f"a result of shapes {shapes} for {structures} structures of {atoms} atoms")
        if not all(np.isfinite(values).all() for values in (result.potentials, result.forces, result.virials)):
            # the last barrier: i-PI 3.3.1 integrates NaN forces and reports success
            raise LocalProtocolError("a result with NaN or infinity was to be sent, which i-PI would integrate")
        self._result = result
        self._pending = None
        self.state = State.HAS_DATA

    @property
    def owes(self) -> bool:
        """Whether there are bytes to send."""
        return bool(self._out)

    def data_to_send(self) -> bytes:
        """Return the bytes to send, once."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def close(self) -> None:
        """End the conversation from our side and detach from shared memory."""
        self.state = State.CLOSED
        self._layout.close()

    def _read(self, header: bytes) -> Incoming | None:
        """Consume header and body together, or nothing at all."""
        if header == wire.INIT:
            return self._read_init()
        if header == wire.POSDATA:
            self._in.take(wire.HEADER)
            message = self._layout.posdata(self._in, self._atoms)
            if message is None:
                self._in.put_back(wire.HEADER)
            return message
        self._in.take(wire.HEADER)
        return _BARE[header]

    def _read_init(self) -> Init | None:
        fixed = self._in.peek(8, wire.HEADER)
        if fixed is None:
            return None
        length = wire.integer(fixed[4:])
        if not 0 <= length <= wire.MAX_PARAMETERS:
            raise RemoteProtocolError(
                f"the peer announced {length} bytes of parameters", "check that it is i-PI that listens at this address"
            )
        body = self._in.peek(length, wire.HEADER + 8)
        if body is None:
            return None
        self._in.take(wire.HEADER + 8 + length)
        return Init(wire.integer(fixed[:4]), body.decode("utf-8", "replace"))

    def _initialise(self, init: Init) -> None:
        if not 1 <= init.batch_size <= 65536:  # 0: `Init.batch_size` could not parse it
            raise RemoteProtocolError(
                f"INIT's batch size cannot be read: {init.parameters[-60:]!r}", "<batch_size> wants a positive number"
            )
        self.request = init.request
        self.batch_size = init.batch_size
        if self._shared:
            self._layout = Shared(self.batch_size)
        elif self.batch_size > 1:
            self._layout = wire.Batched(self.batch_size)

    def _reply(self) -> None:
        if self._result is None:
            raise LocalProtocolError("GETFORCE reached a machine without a result")
        self._out.append(self._layout.forceready(self._result))
        self._result = None

    def _end_of_file(self) -> HangUp:
        self.state = State.CLOSED
        return HangUp(len(self._in))

    def _complaint(self, header: bytes) -> str:
        if header in (wire.INIT, wire.POSDATA, *_BARE):
            return f"the peer sent {header.decode().strip()} while we were {self.state.name}; i-PI does not do that"
        return (
            f"the peer sent {header!r}, which is no message of i-PI's; "
            "check that the address, port and mode are those of an i-PI forcefield"
        )
