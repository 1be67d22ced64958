"""Write the reference pages that come from the code: python docs/make.py. A test holds the pages to this."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from beadwork import config, errors
from beadwork.doctor.bench import Bench
from beadwork.doctor.plan import Planned
from beadwork.doctor.report import Visit
from beadwork.harvest.listing import Listing, Shown
from beadwork.json_form import Failure, Form, Part, keys, parts, schema, words_of
from beadwork.label.clusters import Cut
from beadwork.label.codes.command import Pattern
from beadwork.label.jobs import Jobs, Slurm
from beadwork.label.spec import LABELLERS, Spec
from beadwork.loop.loop import Loop
from beadwork.observe.status import Status
from beadwork.settings import declared, title
from beadwork.train.settings import TrainSettings
from beadwork.train.validate import Validated

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
    """The options of a server by group, then the keys of every other TOML file, a table each."""
    rows = [
        "# Configuration",
        "",
        "In every TOML file names may have dashes or underscores, a whole number stands for a number, and paths count",
        "from the file's own folder. A name that is not known is refused, with the one that was probably meant.",
        "",
        "## Options of `beadwork serve`, `run`, `bench`, `doctor` and `plan`, and the keys of their file",
        "",
        "What is typed wins over the file. There `weights` and the bands are lists, `delta` and `devices` a text or a",
        "list of them, `at` is a table, and `periodic = false` is `--not-periodic` when typed.",
    ]
    for group in config.GROUPS:
        rows += ["", f"### {title(group)}", "", *_table(group, "option")]
    for name, make, where in FILES:
        rows += ["", f"## {name}", "", where, "", *_table(make, "key")]
    return "\n".join(rows) + "\n"


def labellers() -> str:
    """What every labeller's class says of itself, and its fields."""
    rows = [
        "# Settings of the labellers",
        "",
        "The keys of `[settings]` in LABELLER.toml ([labelling.md](labelling.md)) by kind, with their defaults; those",
        "without one must be given. Paths count from the file's own folder.",
    ]
    for kind, (make, _) in LABELLERS.items():
        rows += ["", f"## {kind}", "", *_settings(make)]
        if kind == "command":
            rows += ["", "### `energy` and `forces` of a command: tables with", "", *_settings(Pattern)]
    return "\n".join(rows) + "\n"


def _settings(make: Any) -> list[str]:
    """The docstring, without its last word on exceptions, and a table of the fields."""
    text = re.sub(r"\s*Raises\s+ConfigError.*", "", inspect.getdoc(make) or "", flags=re.DOTALL)
    return [text, "", *_table(make, "setting")]


def _table(of: Any, what: str) -> list[str]:
    """One row for each setting: its name, default, unit and text."""
    rows = [f"| {what} | default | unit | meaning |", "|---|---|---|---|"]
    for entry in declared(of):
        setting = entry.setting
        default = entry.shown if setting.unset or not entry.shown else f"`{entry.shown}`"
        default = "must be given" if entry.value is MISSING else default
        rows.append(f"| {entry.key} | {default} | {setting.unit or ''} | {setting.text}{setting.choice} |")
    return rows


def json_page() -> str:
    """What each `--json` prints: its keys, and those of the objects inside."""
    rows = [
        "# What `--json` prints",
        "",
        "A command with `--json` prints one object on stdout and nothing else there, whatever becomes of it: its own,",
        "or `error`; messages are on stderr as ever, and the exit code is as ever. The object begins with `kind` and",
        "`version`. Within a version keys may be added; none is taken away, renamed, or given another meaning or unit:",
        "what reads it takes the keys that it knows, and looks at `kind` and `version`. NaN and infinity are null.",
        "A traceback (exit code 1) is a fault of beadwork's own, and prints no object.",
        "",
        "The JSON schema of each is in [schemas/](schemas), made from the same declarations as this page.",
        "",
        "    beadwork status OUT --json | jq .servers[0].seconds_left",
    ]
    for form in FORMS:
        rows += ["", f"## {form.KIND} {form.VERSION}", "", *_described(form)]
        for part in parts(form):
            rows += ["", f"### {part.__name__}", "", *_described(part)]
    rows += [
        "",
        "## For who adds a command",
        "",
        "Declare a `Form` of `beadwork.json_form` in the command's own room, give the command `_json_option(parser)`",
        "in cli.py and `print(as_json(...))` where `args.json` is set, and name the class in `FORMS` of docs/make.py;",
        "`make docs` writes the page and the schema. Errors come as an object by themselves. Nothing else may go to",
        "stdout: progress goes to stderr.",
    ]
    return "\n".join(rows) + "\n"


def _described(of: type[Part]) -> list[str]:
    """The docstring, and a row for each key."""
    rows = [inspect.getdoc(of) or "", "", "| key | type | meaning |", "|---|---|---|"]
    return rows + [f"| {name} | {words_of(kind)} | {text} |" for name, kind, text in keys(of)]


#: every object that `--json` prints
FORMS: list[type[Form]] = [Status, Visit, Bench, Planned, Listing, Shown, Validated, Failure]


#: every other TOML file: its name, the class of its settings, and who reads it
FILES = [
    (
        "train.toml",
        TrainSettings,
        "For `beadwork train --settings` ([training.md](training.md)), and `[train]` of a loop.",
    ),
    (
        "LABELLER.toml",
        Spec,
        "For `beadwork label --with` ([labelling.md](labelling.md)); `[settings]` are in [labellers.md](labellers.md).",
    ),
    ("`[cut]` of LABELLER.toml", Cut, "One of the two."),
    ("`[jobs]` of LABELLER.toml and train.toml", Jobs, "Who works, and how many ([labelling.md](labelling.md))."),
    ("`[jobs.slurm]`", Slurm, 'With `executor = "slurm"`.'),
    ("LOOP.toml", Loop, "For `beadwork learn` ([loop.md](loop.md))."),
]
PAGES = {
    "exit-codes.md": exit_codes,
    "configuration.md": configuration,
    "labellers.md": labellers,
    "json.md": json_page,
    **{
        f"schemas/{form.KIND}.json": lambda form=form: json.dumps(schema(form), indent=1, ensure_ascii=False) + "\n"
        for form in FORMS
    },
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(page())
