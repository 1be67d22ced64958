"""Write the reference pages that come from the code: python docs/make.py. A test holds the pages to this."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from beadwork import config, errors

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
        rows.append(f"| {kind.exit_code} | {text} |")
    rows.append(
        "| 1, 8 | `beadwork status`: the run has ended or was killed, or hangs; 0: it runs, or waits for i-PI |"
    )
    rows.append("| any | `beadwork doctor`: what the first red finding would end a run with; 0: nothing is red |")
    rows.append(
        "| 130, 143 | SIGINT (the keyboard) or SIGTERM: the answer under way was sent, queue written, our i-PI ended |"
    )
    return "\n".join(rows) + "\n"


def configuration() -> str:
    """One row for each option of `beadwork serve` and `beadwork run`."""
    source = inspect.getsource(config.ServeConfig)
    default = config.ServeConfig()
    rows = [
        "# Configuration",
        "",
        "Options of `beadwork serve`, `run`, `bench` and `doctor`, and the keys of their TOML file. What is typed wins",
        "over the file; paths in the file count from its own folder. There `delta`, `devices`, `weights` and the bands",
        'are lists, and `at` is a table: `delta = ["current"]`. `periodic = false` is `--not-periodic` when typed.',
        "",
        "| option | default | meaning |",
        "|---|---|---|",
    ]
    for entry in fields(config.ServeConfig):
        match = re.search(rf"^    {entry.name}:.*#: (.*)$", source, re.MULTILINE)
        if match is None:
            raise SystemExit(f"the field {entry.name} of ServeConfig has no '#:' comment")
        value = getattr(default, entry.name)
        shown = "" if value in (None, "", [], {}) else f"`{str(value).lower() if isinstance(value, bool) else value}`"
        rows.append(f"| {entry.name.replace('_', '-')} | {shown} | {match[1]} |")
    return "\n".join(rows) + "\n"


PAGES = {"exit-codes.md": exit_codes, "configuration.md": configuration}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
