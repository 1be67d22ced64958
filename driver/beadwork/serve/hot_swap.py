"""Activate a new Δ committee in a running server: load and verify it in a thread, then activate it between two steps,
or refuse it. Where the beginning of a step cannot be known, it waits for i-PI's next start.

`--delta` names what is watched (`potential.bundle.members_of`). A pointer file is checked once a second; anything else,
also the same folder with new files in it, when `ask` is called, which SIGHUP does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from logging import WARNING
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from beadwork.config import ModelSettings
from beadwork.errors import ModelError
from beadwork.events import Activated, Event, Moment, Note, Refused
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.potential.additions import check_expected
from beadwork.potential.auto_engine import AutoEngine
from beadwork.potential.bundle import Card, members_of
from beadwork.potential.evaluation import Evaluation
from beadwork.potential.limits import Thresholds
from beadwork.potential.load import check_baseline, load_for
from beadwork.potential.potential import Potential

#: seconds between two checks of a pointer file
POLL_SECONDS = 1.0
#: seconds after which a verification is reported to hang, and seconds that it gets when the run has ended
HANG_SECONDS, EXIT_TIMEOUT_SECONDS = 300.0, 20.0
#: inode, time and size of a pointer
Stamp = tuple[int, int, int]
Result = TypeVar("Result")


@dataclass(eq=False)
class Served:
    """One forcefield's potential with a committee, and its latest results.

    last: the newest structures, a ring polymer at most, and their Δ energies in eV. next: the verified potential to be
    activated at the next step, and the message of its verification. told: whether its wait for i-PI's next start was
    reported.
    """

    address: str
    potential: Potential
    numbers: IntArray
    last: deque[tuple[Frame, float]]
    next: tuple[Potential, str] | None = None
    told: bool = False


class Swap:
    """Watches what `--delta` names, verifies it in a thread, and prepares it for the next step of each forcefield.

    The thread uses no model that is being served: the jump of the energy is that of Δ, whose old values are known. No
    error of a new committee ends the run: the old committee stays active, and an event gives the reason.
    """

    def __init__(self, models: ModelSettings, limits: Thresholds, watch: Callable[[Event], None]) -> None:
        """limits: a committee that exceeds one of them on the last structures is refused where it would end the run."""
        self._models = models
        self._limits = limits
        self._watch = watch
        self._served: list[Served] = []
        self._asked = False
        # a pointer is replaced in one step; a folder's files come one by one, so it is looked at only when asked
        self._pointer = Path(models.delta[0]) if len(models.delta) == 1 and Path(models.delta[0]).is_file() else None
        self._seen = self._stamp()
        self._looking: Future[Stamp | None] | None = None
        self._looked = 0.0
        self._told_of_pointer = False  # that its disk does not respond
        # One thread for the whole run: without memory for another, `Thread.start` never returns. A daemon, no pool,
        # for whose threads Python would wait at its end: a network disk may never respond.
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name="beadwork-swap", daemon=True).start()
        self._checking: Future[list[tuple[Potential, str] | None]] | None = None
        self._since = 0.0  # of the check under way
        self._told = False  # that it hangs

    def serve(self, address: str, potential: Potential, numbers: IntArray, ring: int | None) -> None:
        """Take this forcefield into care. ring: structures a step, None where that is not known."""
        # no more than the newest ring polymer: older structures say nothing of the next step
        self._served.append(Served(address, potential, numbers, deque(maxlen=ring or 1)))
        # replaced while the models were loaded
        loaded = [card.path for card in potential.member_cards]
        self._asked |= self._pointer is not None and members_of(self._models.delta) != loaded
        self._watch(Activated(address, 0, potential.short_identity, potential.folder, "serves from the start"))

    def ask(self) -> None:
        """Look at what `--delta` names, whether a pointer has changed or not. May be called by a signal handler."""
        self._asked = True

    def look(self) -> None:
        """Start a verification where something has changed, and process the result of the last one. Returns at once."""
        now = time.monotonic()
        idle = self._checking is None and self._looking is None
        # before each forcefield has answered once there is no structure to verify a committee on
        if idle and self._asked and self._served and all(served.last for served in self._served):
            self._asked = False
            # copies: our thread reads them while the server goes on to answer
            last = [list(served.last) for served in self._served]
            self._since, self._told = now, False
            self._checking = self._begin(lambda: self._check(last))
        elif self._checking is None:
            self._look_at_pointer(now)
        elif self._checking.done():
            done, self._checking = self._checking, None
            self._hear(done)
        elif not self._told and now - self._since >= HANG_SECONDS:
            self._told = True
            self._watch(
                Note(
                    f"the check of the new committee goes on since {now - self._since:.0f} s: see whether the disk of "
                    f"{', '.join(self._models.delta)} answers (ls); {self._served[0].potential.folder} goes on, and "
                    "no other committee is looked at before",
                    WARNING,
                )
            )

    def answered(self, address: str, frames: Sequence[Frame], evaluation: Evaluation) -> None:
        """Remember what was answered last."""
        for served in self._served:
            if served.address == address and evaluation.delta is not None:
                served.last.extend(zip(frames, evaluation.delta.energies.tolist(), strict=True))

    def take(
        self, address: str, potential: Potential, moment: Moment, evaluation: int, begins: bool | None
    ) -> Potential:
        """The potential that is active at an address now.

        begins: whether a step begins with this evaluation, which is the only time to change; None where that is not
        known.
        """
        for served in self._served:
            if served.address != address or served.next is None:
                continue
            # once: the committee may wait for days
            if begins is None and not served.told:
                served.told = True
                self._watch(
                    Note(
                        f"the committee in {served.next[0].folder} is ready and waits for i-PI's next start at "
                        f"{address}: no step is to be of two committees, and from here it "
                        "cannot be told where i-PI's steps begin, or all of them make one result, which is to be begun "
                        "anew then; else make i-PI pause with a file EXIT in its directory, and start it again from "
                        "its RESTART",
                        WARNING,
                    )
                )
            if begins:
                served.potential, found = served.next
                served.next, served.told = None, False
                served.last.clear()  # the old one's energies
                new = served.potential
                self._watch(Activated(served.address, moment.exact, new.short_identity, new.folder, found, evaluation))
                return new
        return potential

    def close(self) -> None:
        """Wait for a running verification, but not for ever, and discard it."""
        if self._checking is not None:
            wait([self._checking], EXIT_TIMEOUT_SECONDS)
        self._jobs.put(None)

    def _begin(self, work: Callable[[], Result]) -> Future[Result]:
        """Do this in our thread, after what is under way there."""
        future: Future[Result] = Future()

        def job() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it, whatever it is
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def _look_at_pointer(self, now: float) -> None:
        """Check once a second whether it has changed; i-PI waits for our answers, and its disk may not respond."""
        if self._looking is None:
            if self._pointer is not None and now - self._looked >= POLL_SECONDS:
                self._looked, self._looking = now, self._begin(self._stamp)
        elif self._looking.done():
            stamp, self._looking, self._told_of_pointer = self._looking.result(), None, False
            self._asked |= stamp is not None and stamp != self._seen
            # no stamp: the pointer is being replaced, or its disk is away; what was seen last is compared again then
            self._seen = stamp or self._seen
        elif not self._told_of_pointer and now - self._looked >= HANG_SECONDS:
            self._told_of_pointer = True
            self._watch(
                Note(
                    f"{self._pointer} does not respond since {now - self._looked:.0f} s: see whether its disk does "
                    f"(ls); {self._served[0].potential.folder} goes on, and no other committee is looked at before"
                )
            )

    def _stamp(self) -> Stamp | None:
        """Inode, time and size of the pointer, which change with it; None where there is no pointer at this instant."""
        try:
            about = self._pointer.stat() if self._pointer else None
        except OSError:
            return None
        return about and (about.st_ino, about.st_mtime_ns, about.st_size)

    def _hear(self, done: Future[list[tuple[Potential, str] | None]]) -> None:
        if (error := done.exception()) is not None:  # whatever it is: ours, PyTorch's, of a pointer full of NULs
            self._watch(Refused(self._served[0].potential.folder, str(error)))
            return
        ready = done.result()
        if not any(ready):
            self._watch(Note(f"the committee in {self._served[0].potential.folder} is the one that serves already"))
        for served, new in zip(self._served, ready, strict=True):
            served.next, served.told = new, False

    def _check(self, last: list[list[tuple[Frame, float]]]) -> list[tuple[Potential, str] | None]:
        """Load the committee and verify it; one potential for each forcefield, None where it is the active one.

        Raises ModelError, GeometryError or NonFiniteError with the reason to refuse it.
        """
        begin = time.perf_counter()
        # without the baseline, which stays; loading checks the hashes, and that members fit each other
        alone = replace(
            self._models, baseline=None, add={}, baseline_uncertainty=None, baseline_uncertainty_atom=None, also={}
        )
        fresh = load_for(alone)
        old = self._served[0].potential
        # a potential that was just loaded has no limit yet, and would try all structures at once
        fresh.share_memory_limit(old)
        for baseline in old.baseline_cards:
            check_baseline(baseline, fresh.cards)
            check_expected(fresh.cards, self._models.add)
        same = [_same(served.potential, fresh) for served in self._served]
        if all(same):
            return [None] * len(same)
        if len(fresh.members) != len(old.members):
            raise ModelError(
                f"{fresh.folder} has {len(fresh.members)} members and {len(old.members)} serve: i-PI's outputs of "
                "extras have a column for each",
                "end the run to change their number",
            )
        found = []
        for served, known in zip(self._served, last, strict=True):
            fresh.check_species(served.numbers)
            frames = [frame for frame, _ in known]
            whole = served.potential.with_committee(fresh)
            # two members or more have extras in any case, with null where novelty is not known
            if len(fresh.members) == 1 and served.potential.knows_novelty and not whole.knows_novelty:
                raise ModelError(
                    f"{fresh.folder} does not know what it was trained on, and the model that serves does: i-PI's "
                    "outputs of extras have its novelty",
                    "give it one (beadwork models novelty)",
                )
            # on the last structures of the run: a committee that exceeds a threshold there would end it at the next
            # step
            energies = _energies(whole, frames, self._limits)
            found.append(_jump(energies, np.array([energy for _, energy in known])))
        engines = _verified_engines(fresh)
        checked = f"checked in {time.perf_counter() - begin:.1f} s"
        return [
            None
            if known
            else (
                served.potential.with_committee(fresh),
                "; ".join([jump, engines, *fresh.notes, *_scaled(served.potential, fresh), checked]),
            )
            for served, jump, known in zip(self._served, found, same, strict=True)
        ]


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    """Do the jobs one by one, until there is None."""
    while (job := jobs.get()) is not None:
        with suppress(MemoryError):  # of telling what came of it: there is none left for that, and may be for the next
            job()


def _scaled(old: Potential, new: Potential) -> list[str]:
    """Other changes of the spread, which act on the selection window, the thresholds and the weighted baseline."""
    changes = []
    for what, was, now in (
        ("alpha", old.alpha, new.alpha),
        ("energy_alpha", old.energy_alpha, new.energy_alpha),
    ):
        if was != now:
            changes.append(f"{what} {was:g} -> {now:g}")
    was, now = (sum(card.novelty is not None for card in potential.member_cards) for potential in (old, new))
    if was and not now:
        changes.append(
            "none of its members knows what it was trained on, so from here on nothing is known of what is new to Δ "
            "(beadwork models novelty fits it)"
        )
    elif was != now:
        changes.append(f"members that know what they were trained on {was} -> {now}")
    if not np.array_equal(old.weights, new.weights):
        changes.append(f"weights {old.weights.round(4).tolist()} -> {new.weights.round(4).tolist()}")
    return changes


def _same(old: Potential, new: Potential) -> bool:
    """Whether these are the same models, with the same calibration and the same training sets."""
    return (
        # by hash: a committee may be copied to another folder, or be made anew in the same one
        [_model_key(card) for card in old.member_cards] == [_model_key(card) for card in new.cards]
        and (old.alpha, old.energy_alpha, old.usual) == (new.alpha, new.energy_alpha, new.usual)
        and np.array_equal(old.weights, new.weights)
    )


def _model_key(card: Card) -> tuple[str | None, dict[str, str]]:
    # every file: what an engine runs may be none of those that the model's name is of
    return card.head, dict(card.sha256)


def _energies(potential: Potential, frames: Sequence[Frame], limits: Thresholds) -> FloatArray:
    """Δ of the frames, eV, as it is summed to the baseline, which is not evaluated. Raises ModelError where the run
    would end with it."""
    answer = potential.without_baseline().evaluate(frames)
    if limits.stop and answer.novelty and (new := answer.novelty.largest.max()) > limits.novelty:
        raise ModelError(
            f"the last structures are new to it, up to {new:.3g}, above the threshold of {limits.novelty:g} "
            "(--mark-novelty) that ends the run",
            "train it on such frames",
        )
    if limits.stop and answer.spread and (most := answer.spread.largest.max()) > limits.spread:
        raise ModelError(
            f"its force spread on the last structures is up to {most:.4g} eV/Å, above the threshold of "
            f"{limits.spread:g} eV/Å (--mark-spread) that ends the run",
            "train it further, or see to its alpha",
        )
    return answer.energies


def _jump(new: FloatArray, old: FloatArray) -> str:
    jump = new - old
    return (
        f"the energy jumps by {jump.mean():+.6f} eV per bead on the last {len(jump)} structures "
        f"({jump.min():+.6f} to {jump.max():+.6f})"
    )


def _verified_engines(potential: Potential) -> str:
    """Format the selected backends. Raises ModelError where a bundle's two models do not agree with each other."""
    natively = 0
    for engine, card in zip(potential.models, potential.cards, strict=True):
        # of `--engine torchscript` there is no second engine to agree with
        if isinstance(engine, AutoEngine):
            if engine.disagrees:
                raise ModelError(f"{card.path}: {engine.choice}", "import the model again")
            natively += engine.native
    return f"{natively} of {len(potential.models)} Δ models run natively, and agree with torchscript"
