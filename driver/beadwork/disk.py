"""Files that are written completely or not at all, folders that only one process uses, and errors of the file system as
a message and an exit code.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import os
import platform
import stat
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from beadwork.errors import BeadworkError, ConfigError, ResourceError

#: no space left: on the disk, in the user's quota, or below the limit for one file (ulimit -f)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: errors of flock where another process has the lock, and where the file system has no locks (some network disks)
_TAKEN, _NO_LOCKS = (errno.EAGAIN, errno.EACCES), (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

#: what Python and its libraries raise of a file that does not hold what it should
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    # also NotImplementedError and RecursionError: a zip file's flipped bits say that it is encrypted or of version 10.9
    RuntimeError,
    MemoryError,
    EOFError,
    StopIteration,
    zipfile.BadZipFile,
    zlib.error,
)

#: names of a process's own streams, which may be redirected into a regular file
_STREAMS = (Path("/dev/stdout"), Path("/dev/stderr"))


@contextmanager
def alone(lock: Path, busy: str, remedy: str) -> Iterator[None]:
    """Hold a lock on this file; its folder is made.

    The kernel releases it when the process ends, in whatever way. Where the file system has no locks, no process is
    kept out. busy, remedy: the message for a second process, with the holder of the lock in between. Raises
    ConfigError, or ResourceError where the disk fails.
    """
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with writing(lock):
            file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the lock is held
        with file:
            with writing(lock):
                try:
                    # a lock of the kernel, and not a file that merely exists: it is released however the process ends
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in _TAKEN:
                        file.seek(0)
                        who = file.read().strip() or "by a process that has just begun"
                        raise ConfigError(f"{busy} ({who})", remedy) from error
                    if error.errno not in _NO_LOCKS:
                        raise
                if not _is_at(file.fileno(), lock):
                    continue  # whoever had it before has just removed it
                # whoever held it before has left his name in it
                file.truncate(0)
                # not by the stream, which would fail again as it is closed
                who = f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M')}\n"
                os.write(file.fileno(), who.encode())
            try:
                yield
            finally:
                with suppress(OSError):
                    if _is_at(file.fileno(), lock):  # the folder may have been moved, and another be there
                        lock.unlink()
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether this open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def locks(folder: Path) -> bool:
    """Whether its file system has the locks of fcntl, which SQLite takes for others' where they are refused."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            # lockf, which is what SQLite takes, and not flock: a file system may have one of them alone
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return True


def rotate_file(path: Path, mark: str = ".") -> Path:
    """Rotate a file or folder: rename it to `path.1`, `path.2`, …, so that no earlier run is overwritten.

    Returns the new name. mark: between the name and the number.
    """
    number = 1
    # the first free number, so that the newest of the rotated files has the highest
    while (aside := path.with_name(f"{path.name}{mark}{number}")).exists():
        number += 1
    # nothing there to rotate, or another process has just done it
    with writing(aside), suppress(FileNotFoundError):
        path.rename(aside)
    return aside


def in_place(file: Path) -> bool:
    """Whether this cannot be replaced by another file: a device, a pipe, /dev/stdout."""
    try:
        # to replace a device or a pipe by a file would take it from all who use it
        regular = stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        return False
    path = file.absolute()
    return not regular or path in _STREAMS or str(path.parent) in ("/dev/fd", "/proc/self/fd")


@contextmanager
def whole(file: Path) -> Iterator[TextIO]:
    """Yield a stream whose text is in the file when the block ends: all of it, or nothing where the block raised.

    That holds also when the process is killed, and when others write the file at the same time. A link is followed;
    what is no regular file is written in place. Raises OSError.
    """
    if in_place(file):
        with file.open("a", encoding="utf-8") as stream:  # where it is redirected into a file, behind what is there
            yield stream
        return
    # a rename would replace the link and not its file
    file = Path(os.path.realpath(file))
    # host, process and thread in the name: parts of a killed process can be recognised and removed (`label.run`)
    part = file.with_name(f".{file.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            # before the rename: after a power failure the new name must not have an empty file
            os.fsync(stream.fileno())
        # a rename within one folder is one step to every reader: the old text or the new one
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a file as `whole` does. Raises OSError."""
    with whole(file) as stream:
        stream.write(text)


@contextmanager
def ignore_closed_terminal() -> Iterator[None]:
    """Ignore that a terminal or a pipe is closed: a run of days must not end because nobody reads its output."""
    try:
        yield
    except OSError as error:
        # EIO: the terminal is gone (a closed ssh session); EPIPE: the reader of a pipe is
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise


@contextmanager
def reading(path: Path, error: type[BeadworkError], remedy: str) -> Iterator[None]:
    """Raise this error of ours where a file, or what stands in it, is not what the block takes it for.

    Only around what reads and looks at the file: elsewhere such exceptions are faults of ours.
    """
    try:
        yield
    except DAMAGE as cause:
        raise error(f"{path} cannot be read ({damage(cause)})", remedy) from cause


def damage(cause: Exception) -> str:
    """What Python said of a file's content, on one line that is not too long."""
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    # parsers quote what they stumble over, which may be a whole file on one line
    said = " ".join(str(cause).split())[:200]
    return f"it lacks {said}" if isinstance(cause, KeyError) else f"{type(cause).__name__}: {said}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise ResourceError where there is no space for `path` or the disk fails, ConfigError for any other OSError."""
    try:
        yield
    except OSError as error:
        said = f"cannot write {path}: {error.strerror or error}"
        if error.errno in FULL:
            raise ResourceError(said, "make room there, or put the outputs elsewhere with --out") from error
        if error.errno == errno.EIO:
            raise ResourceError(f"{said}: the disk or network file system failed", "check it") from error
        raise ConfigError(said, "check the path and your rights to it, or choose another with --out") from error


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns by their names; None and NaN are empty. Raises ConfigError or ResourceError."""
    with writing(path), whole(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            rows.writerow([_cell(value) for value in row])


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else value
