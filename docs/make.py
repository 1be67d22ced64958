"""Write the reference pages that come from the code: python docs/make.py. A test holds the pages to this."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from beadwork import config, errors
from beadwork.label.codes.command import Pattern
from beadwork.label.spec import KINDS

HERE = Path(__file__).parent


def exit_codes() -> str:
    """One row for each error class."""
    rows = [
        "# Exit codes",
        "",
        "Every end has a code and one sentence on stderr. Where a run ends other than with 0, the last frames of the",
        "ring polymer are in `last-frames.extxyz`: those that could not be answered for, or else those answered last,",
        "with step, bead, energies (eV) and forces (eV/Å) where there are any. `make faults` provokes every end.",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | i-PI said EXIT, or `beadwork run`: i-PI's own |",
    ]
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.BeadworkError)]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        text = " ".join((kind.__doc__ or "").split())
        if kind is errors.BeadworkError:  # what nobody has foreseen ends so
            text = "A traceback: a fault of beadwork's own; please report it."
        rows.append(f"| {kind.exit_code} | {text} |")
    rows.append(
        "| 1, 2, 8 | `beadwork status`: it has ended or was killed, there is none, it hangs; 0: it runs, or waits |"
    )
    rows.append("| any | `beadwork doctor`: what the first red finding would end a run with; 0: nothing is red |")
    rows.append("| 141 | what read our output has gone (a pipe into `head`), before the command was done |")
    rows.append(
        "| 130, 143 | SIGINT (the keyboard) or SIGTERM: the answer under way was sent, queue written, our i-PI ended |"
    )
    return "\n".join(rows) + "\n"


def configuration() -> str:
    """One row for each option of `beadwork serve` and `beadwork run`."""
    rows = [
        "# Configuration",
        "",
        "Options of `beadwork serve`, `run`, `bench` and `doctor`, and the keys of their TOML file. What is typed wins",
        "over the file; paths in the file count from its own folder. There `weights` and the bands are lists, `delta`",
        "and `devices` a text or a list of them, `at` is a table; names may have underscores for dashes. `periodic =",
        "false` is `--not-periodic` when typed.",
        "",
        *_table(config.ServeConfig, "option"),
    ]
    return "\n".join(rows) + "\n"


def labellers() -> str:
    """What every labeller's class says of itself, and its fields."""
    rows = [
        "# Settings of the labellers",
        "",
        "The keys of `[settings]` in LABELLER.toml ([labelling.md](labelling.md)) by kind, with their defaults; those",
        "without one must be given. Paths count from the file's own folder.",
    ]
    for kind, (make, _) in KINDS.items():
        rows += ["", f"## {kind}", "", *_settings(make)]
        if kind == "command":
            rows += ["", "### `energy` and `forces` of a command: tables with", "", *_settings(Pattern)]
    return "\n".join(rows) + "\n"


def _settings(make: Any) -> list[str]:
    """The docstring, without its last word on exceptions, and a table of the fields."""
    text = re.sub(r"\s*Raises\s+ConfigError.*", "", inspect.getdoc(make) or "", flags=re.DOTALL)
    return [text, "", *_table(make, "setting")]


def _table(of: Any, what: str) -> list[str]:
    """One row for each field of a dataclass: its name, default, and the '#:' comment beside or above it."""
    source = inspect.getsource(of)
    rows = [f"| {what} | default | meaning |", "|---|---|---|"]
    for entry in fields(of):
        match = re.search(rf"^    (?:#: (.*)\n    )?{entry.name}:.*?(?:  #: (.*))?$", source, re.MULTILINE)
        if match is None or not (match[1] or match[2]):
            raise SystemExit(f"the field {entry.name} of {of.__name__} has no '#:' comment")
        value = entry.default if entry.default_factory is MISSING else entry.default_factory()
        value = str(value).lower() if isinstance(value, bool) else value
        shown = "" if value in (None, "", [], {}) else f"`{value}`"
        name = entry.name.replace("_", "-") if what == "option" else entry.name
        rows.append(f"| {name} | {'must be given' if value is MISSING else shown} | {match[1] or match[2]} |")
    return rows


PAGES = {"exit-codes.md": exit_codes, "configuration.md": configuration, "labellers.md": labellers}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
