"""From an evaluation to the queue: select frames, copy them, hand them to the writer's thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from logging import WARNING

import numpy as np

from beadwork.config import SelectionSettings
from beadwork.errors import BeadworkError, QueueError, ResourceError
from beadwork.events import Dropped, Event, FrameKept, Moment, Note, PassedOver, Waiting
from beadwork.frame import FloatArray, Frame
from beadwork.harvest.distance import Signature
from beadwork.harvest.queue import LABELLED, DiskFullError, Queue
from beadwork.harvest.row import KeptFrame, novelty_of
from beadwork.harvest.select import SelectionWindow, Selector
from beadwork.harvest.writer import QueueWriter
from beadwork.potential.bundle import committee_hash
from beadwork.potential.evaluation import Evaluation, Spread

#: seconds for which a disk may be full, or fail, before the run is stopped
DISK_FULL_SECONDS = 10.0


class Keeper:
    """Called with every evaluation after its reply has left. Opens the queue, and makes it where it is missing.

    mark_spread: eV/Å, the safety threshold where the selection window ends. simulation: sha256 of the simulation's
    file. Frames that the queue holds already are not kept again, and those of the same simulation and committee that
    have no label yet count for the limit. Raises QueueError for a queue that cannot be written from the start. One that
    cannot be written later is reported once, and the frames wait in memory; where the disk has been full for
    `DISK_FULL_SECONDS` seconds, ResourceError ends the run.
    """

    def __init__(
        self, config: SelectionSettings, mark_spread: float, simulation: str, watch: Callable[[Event], None]
    ) -> None:
        self._simulation = simulation
        self._watch = watch
        self._evaluations = 0
        self._config = config
        self._mark_spread = mark_spread
        # of the committee that was evaluated last
        self._usual: float | None = None  # its usual force spread
        self._models: tuple[tuple[str, ...], tuple[float, ...]] | None = None
        self._waiting = Waiting(0, "")  # as it was reported last
        #: frames that were selected and are not in the queue, once it is closed
        self.lost = 0
        # filled by the writer's thread, emptied by ours: watchers (status, metrics, log) are not made for two threads
        self._events: deque[Event] = deque()
        self.selector = Selector(
            SelectionWindow.of(config, mark_spread), config.cooldown, config.keep_most, config.distance
        )
        queue = Queue(str(config.queue), create=True, report=lambda text: watch(Note(text, WARNING)))
        queue.check()
        rows = queue.rows()
        # a run that was killed goes on counting; after labels or with a new committee the limit begins anew
        mine = {
            row.id
            for row in rows
            if row.kept.simulation.removeprefix("sha256:") == self._simulation and row.status != LABELLED
        }
        self.selector.seed(
            ((row.kept.committee, row.kept.frame) for row in rows if row.id in mine),
            (row.kept.frame for row in rows if row.id not in mine),
        )
        self.writer = QueueWriter(queue, on_kept=self._kept)

    def __call__(self, address: str, moment: Moment, frames: Sequence[Frame], evaluation: Evaluation) -> None:
        """Select frames of one evaluation; called after its reply was sent, while i-PI integrates.

        Where the step is not known, the cool-down counts evaluations.
        """
        self._evaluations += 1
        self._check_queue()
        spread, novelty = evaluation.spread, evaluation.novelty
        # the baseline at an address of its own: the same frames come to the committee, which has a spread
        if spread is None:
            return
        # a new committee brings the window of its own card, unless the user has given one
        if spread.usual != self._usual:
            self._usual = spread.usual
            self.selector.window = SelectionWindow.of(self._config, self._mark_spread, spread.usual)
        if self._models != (evaluation.models, evaluation.weights):
            self._models = evaluation.models, evaluation.weights
            self.selector.committee = committee_hash(*self._models)
        atoms = len(frames[0].numbers)  # all systems of a forcefield have one composition
        count = Moment(self._evaluations) if moment.step is None else moment
        # between two evaluations with the forces of all heads, novelty and energies alone say what is worth a look
        known = spread.largest.copy()
        force = known.copy() if spread.of_forces else np.zeros(len(frames))
        energy = spread.energy / atoms
        asks = None if novelty is None else novelty_of(novelty.of, self._config.keep_novelty_of)
        new = np.zeros(len(frames)) if asks is None else np.maximum.reduceat(asks, evaluation.ptr[:-1])
        choice = self.selector.consider(count, frames, force, energy, new, address)
        for index, sign in choice.kept:
            of_atoms = spread.force_of(index, evaluation.ptr)
            force[index] = known[index] = of_atoms.max()
            looks = (force[[index]], energy[[index]], new[[index]])
            if self.selector.window.classify(*looks)[1][0]:  # which its forces say only now
                self.selector.forget(sign)
                choice.passed.setdefault("above", []).append(index)
                continue
            why = self.selector.window.reasons(*(float(look[0]) for look in looks))
            self._offer(index, sign, moment.exact, frames[index], evaluation, spread, of_atoms, why)
        for reason, those in choice.passed.items():
            most = known[those][np.isfinite(known[those])].max(initial=-1.0)
            self._watch(PassedOver(moment.exact, reason, len(those), float(most) if most >= 0 else None))
        if self._waiting.why:  # the frames just taken wait too, and a kill would take them along
            self._check_queue()
        while self._events:
            self._watch(self._events.popleft())
        error = self.writer.error
        if isinstance(error, DiskFullError) and time.monotonic() - self.writer.failing_since >= DISK_FULL_SECONDS:
            raise ResourceError(
                f"for {DISK_FULL_SECONDS:g} s now: {error}; the run was stopped rather than lose frames"
            )

    def _offer(
        self,
        index: int,
        sign: Signature,
        step: int | None,
        frame: Frame,
        evaluation: Evaluation,
        spread: Spread,
        of_atoms: FloatArray,
        why: tuple[str, ...],
    ) -> None:
        # copies: slices would keep the arrays of all beads alive for as long as one frame waits
        atoms = slice(int(evaluation.ptr[index]), int(evaluation.ptr[index + 1]))
        novelty = evaluation.novelty
        kept = KeptFrame(
            frame=frame,
            evaluation=self._evaluations,
            energy_spread=float(spread.energy[index]) / len(frame.numbers),
            force_spread=of_atoms,
            member_energies=spread.members[:, index].copy(),
            models=evaluation.models,
            weights=evaluation.weights,
            simulation=self._simulation,
            step=step,
            novelty={} if novelty is None else {part: of[atoms].copy() for part, of in novelty.of.items()},
            why=why,
        )
        if not self.writer.offer(kept):
            self.selector.forget(sign)  # else a frame that was lost would keep later ones like it out
            which = f"evaluation {self._evaluations}" if step is None else f"step {step}"
            self._watch(
                Note(
                    f"a frame of {which} could not be kept: the queue does not keep up "
                    f"({_format_cause(self.writer.error)})",
                    WARNING,
                )
            )
            self._watch(Dropped(step))

    def _check_queue(self) -> None:
        error = self.writer.error
        now = Waiting(0, "") if error is None else Waiting(self.writer.pending, _format_cause(error))
        if now.why and not self._waiting.why:
            self._watch(Note(f"{now.why}; {now.frames} frames wait in memory to be kept", WARNING))
        elif self._waiting.why and not now.why:
            self._watch(Note("the queue can be written again, and the frames that waited are kept"))
        # when it begins, ends or changes, not at every step
        if now != self._waiting:
            self._watch(now)
        self._waiting = now

    def _kept(self, row: int, kept: KeptFrame) -> None:
        self._events.append(FrameKept(row, kept.step, kept.frame.bead, kept.max_force_spread, kept.why))

    def close(self) -> None:
        """Write what is pending. Raises QueueError when frames would be lost."""
        stored = self.writer.close()
        while self._events:
            self._watch(self._events.popleft())
        self.lost = self.writer.dropped + (0 if stored else self.writer.pending)
        if not stored:
            said = f"{self.writer.pending} frames could not be written to the queue: {_format_cause(self.writer.error)}"
            raise ResourceError(said) if isinstance(self.writer.error, DiskFullError) else QueueError(said)


def _format_cause(error: Exception | None) -> str:
    """The cause as a message; with its type where it is no error of ours."""
    if error is None or isinstance(error, BeadworkError):
        return str(error or "it is written too slowly")
    return f"the queue cannot be written ({type(error).__name__}: {error})"
