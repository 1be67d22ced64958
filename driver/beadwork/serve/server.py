"""The server: receive structures from i-PI, evaluate them once, send the results.

The reply is always sent first; all other work is done while i-PI integrates (an i-PI that sends bead by bead waits for
it, since it counts a bead as done only when we report READY again).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from logging import WARNING
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from beadwork.errors import BeadworkError, ConnectionLost, ModelError, RemoteProtocolError, ResourceError
from beadwork.events import NOVELTY_EDGE, WHOSE, Evaluated, Event, Joined, Lost, Moment, Note, ThresholdPassed
from beadwork.frame import FloatArray, Frame
from beadwork.ipi.messages import Exit, HangUp, Incoming, Init, PosData
from beadwork.ipi.output_steps import Written
from beadwork.ipi.transport import Peer, Transport
from beadwork.observe.last import LastFrames
from beadwork.potential.evaluation import Evaluation, Novelty
from beadwork.potential.limits import (
    NOVELTY_REMEDIES,
    Breach,
    Thresholds,
    format_breach,
    format_novelty,
    threshold_error,
)
from beadwork.serve.hot_swap import Swap
from beadwork.serve.reply import by_element, most_by_element, packed
from beadwork.serve.service import Service
from beadwork.units import BOHR

#: seconds of waiting after which the server checks whether it must stop
STOP_CHECK_SECONDS = 0.5
#: seconds without a connection that still count as silence; longer gaps are handled by patience
AWAY_SECONDS = 1.0
#: Å; in the same simulation half of the atoms have moved less than this after some picoseconds
ANOTHER_SYSTEM_DISTANCE = 3.0
#: advice about a file EXIT
REMOVE_EXIT_FILE = "remove that file before you start i-PI again, which would end after its first step"


#: called after every reply with the address, the moment, the frames and their evaluation
Harvester = Callable[[str, Moment, Sequence[Frame], Evaluation], None]


class Server:
    """Serves i-PI until it sends EXIT.

    silence: seconds that an i-PI may keep its connections without a request, 0 for ever.
    harvest and watch run after the reply was sent. marks: safety thresholds, None for none. directory: i-PI's, where it
    is known; else it is found over the unix socket when i-PI has to be stopped. swap: has the committee that becomes
    active at the next step. written: i-PI's outputs, which contain its step.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        patience: float = 60.0,
        silence: float = 0.0,
        harvest: Harvester | None = None,
        watch: Callable[[Event], None] = lambda event: None,
        stopped: Callable[[], bool] = lambda: False,
        marks: Thresholds | None = None,
        directory: Path | None = None,
        swap: Swap | None = None,
        written: Written | None = None,
    ) -> None:
        self.services = list(services)
        self.transport = Transport([service.line for service in services], patience, lambda text: watch(Note(text)))
        self._of = {id(service.line): service for service in services}
        self._harvest = harvest
        self._watch = watch
        self._stopped = stopped
        self._marks = marks
        self._noted: set[str] = set()  # kinds of thresholds whose first breach was reported
        self._new: set[tuple[str, int]] = set()  # (part, element) pairs of which a new atom was reported
        #: the frames whose evaluation failed
        self.refused: LastFrames | None = None
        self._answered: dict[str, list[LastFrames]] = {}
        self._directory = directory
        self._swap = swap
        # outputs from which no step can be read are not looked at in every step
        self._written = written if written is not None and written.tells else None
        self._written_here: Written | None = None  # once an i-PI of this machine is met
        self._evaluations = 0
        self._idle_since = time.perf_counter()
        self._aside = 0.0  # seconds of work after the last reply
        self._silence = silence
        self._silent = 0.0  # seconds for which i-PI was connected without a request
        self._listened = self._there = time.monotonic()  # time of the last check, and when i-PI was last connected

    def run(self) -> None:
        """Serve until every i-PI has said EXIT, or `stopped()`.

        On any BeadworkError (a NaN from a model, an exceeded threshold, a peer that breaks the protocol, a full disk)
        i-PI is stopped with an EXIT file where its directory is known, every connection is closed, and the error is
        raised. i-PI is not stopped where our device has failed and other servers share its beads, or where it was only
        silent and was not started by us: it may be busy with other forcefields.
        """
        try:
            while not self.transport.finished and not self._stopped():
                events = self.transport.poll(self._timeout())
                self._handle(events)
                self._listen(events)
                if self._swap is not None:
                    # between two evaluations: it returns at once, and its thread does what takes time
                    self._swap.look()
                for service in self.services:
                    peers = service.gather.take(time.monotonic())
                    if peers:
                        self._answer(service, peers)
        except BeadworkError as error:
            # a failed device is ours alone: the other servers can answer the same beads
            if isinstance(error, (ModelError, ResourceError)) and any(service.servers > 1 for service in self.services):
                self._watch(Note("i-PI is left to the other servers, to which it sends our beads", WARNING))
            elif isinstance(error, ConnectionLost) and self._directory is None:
                # without a connection there is no i-PI that could wait
                if any(line.peers for line in self.transport.lines):
                    self._watch(
                        Note(
                            "i-PI is not stopped: if it lives, it waits for a server; start one again, or end it",
                            WARNING,
                        )
                    )
            else:
                self._stop_ipi()
            raise
        finally:
            self.transport.close()

    def _timeout(self) -> float:
        now = time.monotonic()
        waits = [wait for service in self.services if (wait := service.gather.wait(now)) is not None]
        return min([STOP_CHECK_SECONDS, *waits])

    def _listen(self, events: list[tuple[Peer, Incoming]]) -> None:
        """Measure how long i-PI has been connected without a request: it is busy elsewhere, or hangs."""
        now = time.monotonic()
        # by the monotonic clock, which nobody can set
        before, self._listened = self._listened, now
        # only a peer that has shown i-PI's handshake counts as i-PI
        if any(peer.met for peer, _ in events) or any(line.met for line in self.transport.lines):
            self._there = now
        if any(isinstance(event, PosData) for _, event in events):
            self._silent = 0.0
        elif now - self._there < AWAY_SECONDS:  # connections that come and go without a request count as silence too
            self._silent += now - before
        if self._silence and self._silent >= self._silence:
            raise ConnectionLost(
                f"i-PI has kept its connections for {self._silent:.0f} s and asked for nothing: see whether it "
                "still runs (its log, top), start it again from its RESTART, or allow it longer with --silence"
            )

    def _handle(self, events: list[tuple[Peer, Incoming]]) -> None:
        for peer, event in events:
            service = self._of[id(peer.line)]
            if isinstance(event, PosData):
                names = _fingerprints(event)
                service.waiting[peer] = event, names
                # distinct structures: i-PI fills a short batch with copies of the last one
                service.gather.arrived(peer, len(set(names)), time.monotonic())
            elif isinstance(event, Init):
                service.gather.join(peer)
            elif isinstance(event, (Exit, HangUp)):
                service.gather.leave(peer)
                # its structures will come again over another connection, and nobody reads this answer
                service.waiting.pop(peer, None)
                if isinstance(event, HangUp) and peer.met:  # without a handshake there was no connection to lose
                    line = service.line
                    service.left = not line.peers
                    self._watch(Lost(str(line.address), line.why, len(line.peers)))

    def _answer(self, service: Service, peers: list[Peer]) -> None:
        begin = time.perf_counter()
        # counted as i-PI's: it integrates, or waits for its other forcefields
        idle, aside = begin - self._idle_since, self._aside
        requests, names = zip(*(service.waiting.pop(peer) for peer in peers), strict=True)
        # a key is the exact bytes: nearly equal structures are two. The same structure is evaluated once, whether i-PI
        # padded a batch with it or several beads are in one place
        place: dict[bytes, int] = {}
        inverse = [[place.setdefault(name, len(place)) for name in request] for request in names]
        # of equal structures the first one stands for all
        every = [name for request in names for name in request]
        first = [every.index(name) for name in place]
        positions = np.concatenate([request.positions for request in requests])[first] * BOHR
        cells = np.concatenate([request.cells for request in requests])[first]
        # i-PI has lattice vectors in columns, a Frame in rows
        lattices = np.ascontiguousarray(cells.transpose(0, 2, 1)) * BOHR
        # species never travel: another number of atoms is the only sign of another system
        if positions.shape[1] != len(service.numbers):
            raise RemoteProtocolError(
                f"{service.line.address} sent {positions.shape[1]} atoms where the simulation file has "
                f"{len(service.numbers)}",
                "serve the file that i-PI was started with",
            )
        self._evaluations += 1
        # before the step is counted: which i-PI this is decides whether the count goes on
        if service.left:
            service.left = False
            self._meet(service, peers[0], list(place), positions, lattices)
        moment, begins = service.steps.count(
            list(place), positions, peers, self._written_here, ours=service.line.pid is not None
        )
        # where i-PI's outputs can be read they tell the step, so nothing is unknown
        if service.joined and not service.told_joined and self._written_here is None:
            service.told_joined = True
            self._watch(Joined(str(service.line.address)))
        if self._swap is not None:
            address = str(service.line.address)
            # before the evaluation, so that all beads of a step have one committee
            service.potential = self._swap.take(address, service.potential, moment, self._evaluations, begins)
        pbc = (service.periodic,) * 3
        # the run's charge and spin go with what is kept: a label must be of the same electrons
        charge, spin = service.potential.charge, service.potential.spin
        frames = [
            Frame(service.numbers, where, lattice, pbc, charge=charge, spin=spin)
            for where, lattice in zip(positions, lattices, strict=True)
        ]
        try:
            evaluation = service.evaluate(frames)
        except BeadworkError:
            named = _named(service, positions, frames, in_order=len(peers) == 1)
            self.refused = LastFrames(str(service.line.address), moment.exact, named, None)
            service.potential.evaluate(named)  # the same error again, which now names the bead
            raise
        # before the reply leaves: i-PI must not make a step with a force that is certainly wrong
        passed = [] if self._marks is None else self._marks.breaches(evaluation)
        if passed and self._marks is not None and self._marks.stop:
            named = _named(service, positions, frames, in_order=len(peers) == 1)
            self.refused = LastFrames(str(service.line.address), moment.exact, named, evaluation)
            raise threshold_error(passed[0], named[passed[0].system], self._when(moment), service.potential)
        packing = time.perf_counter()
        replies = packed(evaluation, inverse, service.potential)
        sending = time.perf_counter()
        events: list[tuple[Peer, Incoming]] = []
        for peer, reply in zip(peers, replies, strict=True):
            # every connection has its reply before any is waited for: i-PI reads one, asks that connection for READY,
            # and only then reads the next
            peer.machine.answer(reply)
            self.transport.advance(peer, events)
        # the time of sending belongs to the reply, and i-PI integrates only when it has all of it
        while self.transport.sending:
            events += self.transport.poll(None)
        end = time.perf_counter()
        # an evaluation may take longer than --silence, and that is no silence of i-PI's
        self._silent, self._listened = 0.0, time.monotonic()
        frames = _named(service, positions, frames, in_order=len(peers) == 1)
        seconds = {"idle": idle, "aside": aside, "pack": sending - packing, "send": end - sending}
        self._after(service, moment, frames, evaluation, passed, seconds)
        self._idle_since = time.perf_counter()
        self._aside = self._idle_since - end
        self._handle(events)

    def _after(
        self,
        service: Service,
        moment: Moment,
        frames: list[Frame],
        evaluation: Evaluation,
        passed: Sequence[Breach],
        seconds: dict[str, float],
    ) -> None:
        """The work after the reply: prefetching, thresholds that are only counted, harvest, events."""
        service.potential.prefetch()
        for note in evaluation.notes:
            self._watch(Note(note, WARNING))
        self._remember(LastFrames(str(service.line.address), moment.exact, frames, evaluation))
        for breach in passed:
            frame = frames[breach.system]
            self._watch(ThresholdPassed(breach.kind, moment.exact, frame.bead, breach.value))
            # one line for each kind: a run that counts breaches may have thousands
            if breach.kind not in self._noted:
                self._noted.add(breach.kind)
                message = format_breach(breach, frame, self._when(moment), service.potential)
                self._watch(Note(f"{message}; more of these are only counted", WARNING))
        if self._harvest is not None:
            self._harvest(str(service.line.address), moment, frames, evaluation)
        if self._swap is not None:
            # a new committee is verified on these
            self._swap.answered(str(service.line.address), frames, evaluation)
        spread, novelty = evaluation.spread, evaluation.novelty
        if novelty is not None:
            self._report_novelty(service, self._when(moment), frames, evaluation, novelty)
        self._watch(
            Evaluated(
                address=str(service.line.address),
                step=moment.step,
                blur=moment.blur,
                evaluated=len(frames),
                # the mean over the beads is the potential energy of the ring polymer as i-PI has it
                energy=float(evaluation.energies.mean()),
                energy_spread=None if spread is None else float(spread.energy.mean()),
                force_spread=float(spread.largest.max()) if spread is not None and spread.of_forces else None,
                seconds={**evaluation.seconds, **seconds},
                element_spread=(
                    by_element(service.numbers, spread.force) if spread is not None and spread.of_forces else {}
                ),
                novelty={} if novelty is None else {part: float(of.max()) for part, of in novelty.of.items()},
                element_novelty={} if novelty is None else most_by_element(service.numbers, novelty.atoms),
                new_structures=0 if novelty is None else int((novelty.largest > NOVELTY_EDGE).sum()),
                new_atoms=0 if novelty is None else int((novelty.atoms > NOVELTY_EDGE).sum()),
            )
        )

    def _meet(
        self, service: Service, peer: Peer, names: Sequence[bytes], positions: FloatArray, lattices: FloatArray
    ) -> None:
        """The first request after i-PI was not connected: it is the first one, the same again, or another one."""
        # which process is at the other end tells a new i-PI from one that only lost its connections
        process, before = peer.process(), service.process
        met = str(service.line.address) in self._answered
        service.process = process
        if met:
            self._compare(service, positions, lattices)
            if process is None or before is None:
                service.steps.returned(names)
            elif process != before:
                service.steps.restarted()
        directory = peer.directory()
        if self._written is not None and process is not None and directory is not None:
            # only an i-PI on this machine has a process, and outputs that we can read
            self._written.attach(process, directory)
            self._written_here = self._written

    def _when(self, moment: Moment) -> str:
        """The step for messages, or the evaluation where the step is not known."""
        return f"evaluation {self._evaluations}" if moment.exact is None else f"step {moment.exact}"

    def _report_novelty(
        self, service: Service, when: str, frames: list[Frame], evaluation: Evaluation, novelty: Novelty
    ) -> None:
        """Report the first atom of an element that is new to a part: the newest atom of this evaluation."""
        numbers = np.tile(service.numbers, len(frames))
        for z in np.unique(numbers[novelty.atoms > NOVELTY_EDGE]).tolist():
            new = {
                part
                for part, of in novelty.of.items()
                if (of[numbers == z] > NOVELTY_EDGE).any() and (part, z) not in self._new
            }
            if new:
                # each pair once: of a new element every later step has new atoms
                self._new |= {(part, z) for part in new}
                atom = int(np.where(numbers == z, novelty.atoms, 0.0).argmax())
                frame = frames[atom // len(service.numbers)]
                where = "a structure of unknown bead" if frame.bead is None else f"bead {frame.bead}"
                wanted = "; ".join(NOVELTY_REMEDIES[part] for part in WHOSE if part in new)
                self._watch(
                    Note(
                        f"{when}, {where}: {format_novelty(evaluation, frame, atom)}, where 1 is the edge of training: "
                        f"{wanted}. More of {chemical_symbols[z]} is only counted",
                        WARNING,
                    )
                )

    def _compare(self, service: Service, positions: FloatArray, lattices: FloatArray) -> None:
        """Compare the structures of an i-PI that connects again with the last ones: it may be another simulation."""
        address = str(service.line.address)
        known = [frame.positions for last in self._answered.get(address, []) for frame in last.frames]
        # with several systems at one address nothing says which structure was whose
        if not known or not service.ring_polymer:
            return
        # a median: in the same simulation a few atoms may have been folded or diffused away, in another one most differ
        apart = np.array(known) - positions[0]
        if service.periodic and np.linalg.det(lattices[0]):
            # shortest images: i-PI may have folded the atoms meanwhile
            apart = apart - np.round(apart @ np.linalg.inv(lattices[0])) @ lattices[0]
        if (least := float(np.median(np.linalg.norm(apart, axis=2), axis=1).min())) > ANOTHER_SYSTEM_DISTANCE:
            self._watch(
                Note(
                    f"i-PI at {address} has come back with half of its atoms {least:.1f} Å or more from where they "
                    "were: if this is another simulation than the file's, its atoms may be others; end it, and serve "
                    "its own file",
                    WARNING,
                )
            )

    def _remember(self, last: LastFrames) -> None:
        """Keep the frames and results of this step and of the one before: references, no copies."""
        answered = self._answered.setdefault(last.address, [])
        if last.step is None:
            # without steps the last two evaluations are kept: nobody knows which belong together
            answered[:] = [*answered[-1:], last]
        else:
            answered[:] = [one for one in answered if one.step is not None and one.step >= last.step - 1] + [last]

    def last(self) -> list[LastFrames]:
        """The frames whose evaluation failed; else those evaluated last, at least a ring polymer."""
        if self.refused is not None:
            return [self.refused]
        found: list[LastFrames] = []
        for service in self.services:
            answered = self._answered.get(str(service.line.address), [])
            newest = [one for one in answered if one.step is not None and one.step == answered[-1].step]
            whole = bool(newest) and service.ring is not None and sum(len(one.frames) for one in newest) >= service.ring
            found += newest if whole else answered
        return found

    def _stop_ipi(self) -> None:
        """Stop i-PI with a file EXIT. i-PI reads it only when no request is in flight: then all connections are closed.

        i-PI does not remove the file, and would end again at its next start: `Session` removes it for its own i-PI.
        """
        peers = [peer for line in self.transport.lines for peer in line.peers]
        # the kernel names the process at the other end of a socket, and that has a working folder
        found = [self._directory, *(peer.directory() for peer in peers)]
        directories = {directory for directory in found if directory is not None}
        for directory in directories:
            try:
                (directory / "EXIT").touch()
            except OSError as error:
                self._watch(
                    Note(f"i-PI cannot be stopped by a file EXIT in {directory} ({error}): end it by hand", WARNING)
                )
                continue
            if self._directory is None:
                self._watch(Note(f"i-PI is stopped by the file {directory / 'EXIT'}: {REMOVE_EXIT_FILE}", WARNING))
        if peers and not directories:
            self._watch(
                Note(
                    "i-PI's directory is not known from here: stop it with a file named EXIT where it runs; "
                    f"{REMOVE_EXIT_FILE}",
                    WARNING,
                )
            )


def _named(service: Service, positions: FloatArray, frames: list[Frame], *, in_order: bool) -> list[Frame]:
    """The same frames with their beads, where known. in_order: one connection has sent them all."""
    if service.beads is None:
        return frames
    beads = service.beads.identify(positions, in_order=in_order)
    return [replace(frame, bead=bead) for frame, bead in zip(frames, beads, strict=True)]


def _fingerprints(request: PosData) -> list[bytes]:
    """A key for every structure of a request; equal keys are equal bytes."""
    pairs = zip(request.cells, request.positions, strict=True)
    return [cell.tobytes() + where.tobytes() for cell, where in pairs]
