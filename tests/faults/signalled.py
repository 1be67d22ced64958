"""`beadwork`, with a signal that reaches it in one chosen place: python signalled.py SIGNAL WHERE NTH ARGUMENTS…

WHERE is module:function or module:Class.method; the signal comes when it is called for the NTH time, before it does
anything. "after-" before it: when it has just returned.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def main() -> int:
    """Patch the place, and run the command."""
    number, where, nth = signal.Signals[sys.argv[1]], sys.argv[2], int(sys.argv[3])
    module, _, path = where.removeprefix("after-").partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    function, calls = getattr(owner, name), [0]

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        now = calls[0] == nth
        if now and not where.startswith("after-"):
            os.kill(os.getpid(), number)
        result = function(*args, **kwargs)
        if now and where.startswith("after-"):
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, patched)
    from beadwork.cli import main as command

    return command(sys.argv[4:])


if __name__ == "__main__":
    raise SystemExit(main())
