"""What is said while a command works goes through the standard library's logging to stderr.

On a terminal or through a pipe a message stands there as it is; in a file it has time and level in front, since there
it is read later. Other packages' messages from WARNING on, and Python's warnings, go the same way under their own
names. Results of a command are no messages: they are printed on stdout.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import time
import warnings
from typing import TextIO

from beadwork.disk import ignore_closed_terminal

_RED, _PLAIN = "\033[1;31m", "\033[0m"
logger = logging.getLogger("beadwork")
#: lines that tell how far a run is, and need not be told whose they are
progress = logging.getLogger("beadwork.progress")
_IN_FILE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR|CRITICAL) +(.*)")


def set_up(verbosity: int = 0) -> None:
    """Show messages on stderr, of this level from now on: -1 from WARNING on, 0 from INFO on, 1 all of them.

    Called by whatever a user starts; who imports the package has his own handlers.
    """
    # ours by its own logger: a library that logs much stays at its own level
    logger.setLevel({-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[verbosity])
    root = logging.getLogger()
    root.setLevel(logging.INFO if verbosity > 0 else logging.WARNING)
    # called twice by each command, before and after its options are read
    if not any(isinstance(handler, _Stderr) for handler in root.handlers):
        root.addHandler(_Stderr())
    # Python would print the line of source below, which says nothing to a user
    warnings.formatwarning = _one_line
    logging.captureWarnings(True)


def flags() -> list[str]:
    """The option with which a command that we start says as much as we do."""
    level = logger.getEffectiveLevel()
    return ["-v"] if level < logging.INFO else ["-q"] if level > logging.INFO else []


def shows_progress() -> bool:
    """Whether a user wants to be told how far it is."""
    return logger.isEnabledFor(logging.INFO)


class Alarm(str):
    """Words about a result that nobody should overlook: red on a terminal, and told however quiet it is."""


def colours(stream: TextIO) -> bool:
    """Whether colours are wanted there: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def painted(text: str) -> str:
    """What stdout is to have of it: an alarm in red."""
    return f"{_RED}{text}{_PLAIN}" if isinstance(text, Alarm) and colours(sys.stdout) else text


def print_progress(text: str) -> None:
    """Print how far a command is that tells so on stdout, where a user wants to be told."""
    if shows_progress() or isinstance(text, Alarm):
        print(painted(text))


def taken_apart(line: str) -> tuple[int, str]:
    """The level and the message of a line of a log in a file; INFO and the line itself where it has neither."""
    if (found := _IN_FILE.fullmatch(line)) is None:
        # what a library printed to stderr itself, or a traceback
        return logging.INFO, line
    return int(getattr(logging, found[1])), found[2]


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the moment. OSError reaches the caller: a full disk may have to end a run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, above the bar where there is one."""
        line = _line(record)
        with ignore_closed_terminal():
            # looked up, not imported: a command without a bar need not load it
            if "tqdm" in sys.modules:
                sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
                sys.stderr.flush()
            else:
                print(line, file=sys.stderr, flush=True)


def _line(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    if record.name != progress.name:
        ours = record.name.partition(".")[0] == logger.name
        text = f"{logger.name if ours else record.name}: {text}"
    if not _in_file():
        return text
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
    return f"{when} {record.levelname:<7} {text}"


def _in_file() -> bool:
    """Whether stderr goes into a file."""
    try:
        return stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # it has been replaced by something in memory, or closed
        return False


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of Python's without the line of source that Python prints below it."""
    return f"{message} ({category.__name__}, {filename}:{lineno})"
