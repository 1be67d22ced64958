"""A thread that writes frames into the queue, so that no reply waits for a disk."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Protocol

from beadwork.errors import QueueError
from beadwork.harvest.row import KeptFrame

#: s between two attempts to write: doubled from the first to the second
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 10.0


class Store(Protocol):
    """What the writer needs of a queue."""

    def add_all(self, frames: list[KeptFrame]) -> list[int | None]:
        """Store all or none; see `Queue.add_all`."""
        ...


class QueueWriter:
    """A thread that writes frames in the order in which they are offered, with a buffer in front of it.

    max_pending: frames that the buffer holds at most. on_kept: called in the writer's thread with each frame
    and its id, after the commit that holds it, and not with those that the queue had already; it must be quick and must
    not raise.

    Whatever goes wrong (the queue is locked, the disk full, no descriptor left) is kept in `error`, and the same frames
    are tried again with growing pauses until they are stored or the writer is closed; `error` is None again when they
    are. An error that is a bug of ours has its traceback on stderr too. The queue is used in the writer's thread only.
    """

    def __init__(
        self, queue: Store, *, max_pending: int = 1024, on_kept: Callable[[int, KeptFrame], None] | None = None
    ) -> None:
        self._queue = queue
        self._max_pending = max_pending
        self._on_kept = on_kept
        self._pending: deque[KeptFrame] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None  # of closing, on the monotonic clock
        self._ended = False
        #: frames refused because the buffer was full or the writer closed
        self.dropped = 0
        #: the error of the last attempt, None after a successful one
        self.error: Exception | None = None
        #: since when attempts fail, on the monotonic clock
        self.failing_since = 0.0
        # a daemon: a queue that hangs (a network disk) must not keep the process alive after `close` gave up
        self._thread = threading.Thread(target=self._run, name="beadwork-queue", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Frames taken but not yet committed and reported."""
        return len(self._pending)

    def offer(self, kept: KeptFrame) -> bool:
        """Take a frame without waiting. False, and counted in `dropped`, where it could not be taken."""
        with self._changed:
            # never a wait: i-PI has its reply, and its next request must not meet a server that waits for a disk
            taken = len(self._pending) < self._max_pending and self._deadline is None and not self._ended
            if taken:
                self._pending.append(kept)
                self._changed.notify_all()
            else:
                self.dropped += 1
        return taken

    def flush(self, timeout: float) -> bool:
        """Wait until all that was offered is committed; False where that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending or self._ended, timeout) and (not self._pending)

    def close(self, timeout: float = 30.0) -> bool:
        """Write what is pending, for `timeout` seconds at most, and end the thread.

        False where frames are left that were never stored: `pending` of them, because of `error`.
        """
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._pending

    def _run(self) -> None:
        try:
            pause = _FIRST_PAUSE_SECONDS
            while True:
                try:
                    if (batch := self._next()) is None:  # which takes memory too, and there may be none
                        return
                    self._complete(batch, self._queue.add_all(batch))
                except Exception as error:  # noqa: BLE001 - it is kept in `error`, and the frames wait for a repair
                    if self.error is None:
                        self.failing_since = time.monotonic()
                    # each kind once: the same bug at every attempt would fill stderr
                    if not isinstance(error, (QueueError, OSError)) and type(error) is not type(self.error):
                        traceback.print_exception(error)
                    self.error = error
                    if not self._sleep(pause):
                        return
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                else:
                    pause = _FIRST_PAUSE_SECONDS
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _next(self) -> list[KeptFrame] | None:
        """Wait for frames and return all that are pending; None when the writer is closed and has nothing left."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._deadline is not None)
            # all at once: one transaction waits for the disk once
            return list(self._pending) or None

    def _sleep(self, seconds: float) -> bool:
        """Pause; a writer being closed pauses briefly. False when its time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._deadline is not None, seconds)
            if self._deadline is None:
                return True
        # while it is being closed the pauses are short: a lock that is let go in time saves the frames
        left = self._deadline - time.monotonic()
        time.sleep(max(0.0, min(_FIRST_PAUSE_SECONDS, left)))
        return left > 0

    def _complete(self, batch: list[KeptFrame], ids: list[int | None]) -> None:
        self.error = None
        # frames leave the buffer only after they were reported: `pending` counts what could still be lost
        # an id of None: another server has stored the same frame before
        for id, kept in zip(ids, batch, strict=True):
            if id is not None and self._on_kept is not None:
                self._on_kept(id, kept)
        with self._changed:
            for _ in batch:
                self._pending.popleft()
            self._changed.notify_all()
