"""Say whose a TorchScript file is, and its hash, before it runs here for the first time: such a file is a program."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from beadwork.log import logger
from beadwork.potential.bundle import sha256

#: what came with the package is as much the user's choice as the package is
PACKAGE = Path(__file__).resolve().parents[1]


def announce(file: Path) -> None:
    """Log owner and SHA-256 of a file that is about to be run, once a file and user; any later time nothing.

    A file with other bytes is another program, whatever its name. What has run is remembered by empty files in the
    user's state folder; where that cannot be written, it is said again each time. Raises OSError for what cannot be
    read.
    """
    file = file.resolve()
    if PACKAGE in file.parents:
        return
    digest = sha256(file)
    if (_folder() / digest).exists():
        return
    logger.warning(
        "%s of %s runs here for the first time, sha256 %s: TorchScript is a program and has your rights "
        "(docs/security.md)",
        file,
        _owner(file),
        digest,
    )
    _remember(digest)


def made_here(file: Path) -> None:
    """Remember a file that was compiled here from a model that the user trusts: `announce` says nothing of it."""
    _remember(sha256(file))


def _remember(digest: str) -> None:
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        (_folder() / digest).touch()
    except OSError as error:  # a home that cannot be written
        logger.debug("a TorchScript file will be announced again the next time: %s", error)


def _folder() -> Path:
    # XDG's base directories: state is what should outlive a restart and is no configuration
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "beadwork" / "programs"


def _owner(file: Path) -> str:
    number = file.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a user of another machine or of a container's host
        return f"user {number}"
