"""Files written whole, and what an operating system says when one cannot be written, as a sentence and an exit code."""

from __future__ import annotations

import errno
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from beadwork.errors import ConfigError, ResourceError

#: no room: on the disk, in the user's quota, or below the limit for one file (ulimit -f)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def put_aside(path: Path, mark: str = ".") -> Path:
    """Rename what is there to `path.1`, `path.2`, …: what an earlier run left is not written over. Return the name."""
    number = 1
    while (aside := path.with_name(f"{path.name}{mark}{number}")).exists():
        number += 1
    with writing(aside), suppress(FileNotFoundError):
        path.rename(aside)
    return aside


def write_whole(file: Path, text: str) -> None:
    """Write a file whole or not at all, whatever is killed, and whoever writes it at the same time. Raises OSError."""
    # who writes stands in the name: `learn.labelling` removes what its process left when it was killed
    part = file.with_name(f".{file.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


@contextmanager
def telling() -> Iterator[None]:
    """A terminal or a pipe that is gone ends no run: there is nobody left to tell."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise ResourceError where there is no room for `path` or the disk fails, else ConfigError."""
    try:
        yield
    except OSError as error:
        said = f"cannot write {path}: {error.strerror or error}"
        if error.errno in FULL:
            raise ResourceError(f"{said}; make room there, or put the outputs elsewhere with --out") from error
        if error.errno == errno.EIO:
            raise ResourceError(f"{said}: the disk or network file system failed; check it") from error
        raise ConfigError(f"{said}; check the path and your rights to it, or choose another with --out") from error
