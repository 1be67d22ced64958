"""Arguments in, calls out, exit codes. Nothing is computed here."""

from __future__ import annotations

import argparse
import os
import select
import shlex
import signal
import sys
import tempfile
import time
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from beadwork.analyse.command import add as add_analyse
from beadwork.config import ADDITIONS, ALSO, GROUPS, ROLES, ServeConfig, resolve
from beadwork.errors import BeadworkError, ConfigError
from beadwork.json_form import as_json, failure
from beadwork.log import Alarm, logger, painted, print_progress, set_up
from beadwork.settings import WORDS, Declared, declared, meant, title
from beadwork.signals import Interrupted, handled, interrupt

#: what `plan` is asked beside what a server is
PLANNED = ("error", "force_error", "piglet", "measure")
#: characters of a path that a message shows
LONG = 200
#: units of labels of dipoles and polarizabilities, those of beadwork first (`potential.response`)
_DIPOLE_UNITS, _POLARIZABILITY_UNITS = ("eang", "debye", "atomic_unit"), ("eang2/V", "ang3", "atomic_unit")
#: seconds between two looks of `status --watch`
WATCH_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or that of the BeadworkError which ended it.

    Where nobody reads our words any more (`| head`) it is the command's own if that has come to its end, else 141, as
    shells have it for a program that SIGPIPE ends.
    """
    for stream in _streams():
        stream.reconfigure(errors="backslashreplace")  # in a locale that has no Å it is \xc5, and ends no run
    args = argparse.Namespace()
    try:
        with handled({signal.SIGINT: interrupt, signal.SIGTERM: interrupt}):
            set_up()
            args = _parser().parse_args(arguments)
            # again: how much is to be said is known only now
            set_up(args.verbosity)
            return int(args.call(args))
    except (BeadworkError, Interrupted) as error:
        return _refused(error, args)
    except BrokenPipeError:
        if not any(map(_unread, _streams())):
            raise  # of another pipe: a fault of ours
        # as shells have it; Python ignores SIGPIPE, so that it arrives here as an exception
        return 128 + signal.SIGPIPE
    except (OSError, RecursionError, OverflowError) as error:
        if (said := _about_input(error)) is None:
            raise  # a fault of ours
        return _refused(said, args)
    finally:
        for stream in _streams():
            with suppress(OSError, ValueError):  # of the disk that is full, and of a stream that is closed
                stream.flush()
            if _unread(stream):  # or Python says so at its end, with an exit code of its own
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refused(error: BeadworkError | Interrupted, args: argparse.Namespace) -> int:
    """Say why a command ends, and return its exit code."""
    with suppress(OSError):  # a log on the disk that is full; the exit code says it too
        logger.error("%s", error)
    if getattr(args, "json", False):
        with suppress(OSError):
            print(as_json(failure(error)))
    return error.exit_code


def _about_input(error: Exception) -> ConfigError | None:
    """What Python says of a path or a value that was given to us, as an error; None where it says it of our own."""
    if isinstance(error, OSError):
        if error.filename is None:
            return None
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
        short = name if len(name) <= LONG else f"{name[:LONG]}… ({len(os.fsencode(name))} bytes)"
        return ConfigError(f"cannot use {short}: {error.strerror}", "check the path and your rights to it")
    if isinstance(error, RecursionError):
        return ConfigError(
            "a file that was given is nested too deeply to be read", "see whether it is the one that you meant"
        )
    return ConfigError(f"a number that was given is too large ({error})", "correct it, here or in the file that has it")


def _streams() -> list[TextIOWrapper]:
    """What we print to: none of those that the process was started without, or that somebody has put others in."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]


def _unread(stream: TextIOWrapper) -> bool:
    """Whether it is a pipe or a terminal at the other end of which nobody is left."""
    poll = select.poll()
    try:
        poll.register(stream, select.POLLOUT)
    except (OSError, ValueError):  # it is no file of the system's, or closed
        return False
    # POLLERR: a pipe without a reader; POLLHUP: a terminal that was hung up
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class _Parser(argparse.ArgumentParser):
    """Two lines for a slip: what it is, with what was meant where that can be told, and where help is."""

    _as_json = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is no option before anything else is missed for want of it, and what is left over."""
        self._as_json = "--json" in self._option_string_actions and "--json" in (args or ())
        # `--` alone: a short one is a letter, of which nothing can be meant
        options = [name for name in self._option_string_actions if name.startswith("--")]
        # a parser with commands passes the words on to theirs, which knows its own options
        leaf = self._subparsers is None
        for word in takewhile(lambda word: word != "--", args or ()) if leaf else ():
            name = word.partition("=")[0]
            # argparse takes a beginning that fits one option
            if word.startswith("--") and not any(option.startswith(name) for option in options):
                self.error(f"{name} is no option; {meant(name, options)}")
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"{' '.join(left)} is one too many; an option with several values takes what follows it")
        return found, left

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"there is no {value!r}; {meant(str(value), action.choices)}")

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        if self._as_json:
            print(as_json(failure(ConfigError(message, f"see `{self.prog} --help`"))))
        self.exit(ConfigError.exit_code, f"{self.prog}: {message}\nsee `{self.prog} --help`\n")


def _parser() -> _Parser:
    parser = _Parser(prog="beadwork", description="Force-field server for path-integral MD with i-PI.")
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the versions of beadwork and of i-PI",
    )
    parser.epilog = "`beadwork COMMAND --help` has an example of each"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _serving(commands)
    status = _command(commands, "status", _status, "how a run is doing; exit code 0 where it runs", "results")
    status.add_argument("out", type=Path, nargs="?", default=Path(), help="the run's --out (default: this folder)")
    status.add_argument(
        "--watch",
        type=_typed(float),
        nargs="?",
        const=WATCH_SECONDS,
        metavar="S",
        help=f"show it again every S seconds (default: {WATCH_SECONDS:g}) until the run has ended",
    )
    _json_option(status)
    _models(_family(commands, "models", "make and look at model bundles"))
    _queue(_family(commands, "queue", "look at the frames that were kept"))
    _report(commands)
    add_analyse(_family(commands, "analyse", "observables of runs, with error bars"), _command)
    _label_options(commands)
    _training(commands)
    text = "simulate, label, train, swap, and again; or go on with it"
    learn = _command(commands, "learn", _learn, text, "loop.toml")
    learn.add_argument("loop", type=Path, metavar="TOML", help="what to simulate, with which labeller and settings")
    learn.add_argument("--dry-run", action="store_true", help="read everything, and say what would be done")
    _examples(commands)
    text = "print what a shell needs to complete beadwork's commands, options and files"
    complete = _command(commands, "completion", _completion, text, "bash >> ~/.bashrc")
    complete.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="of which shell")
    qmc = _command(commands, "qmc-env", _qmc_env, "make the environment that quantum Monte Carlo labels need", "")
    qmc.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="where (default: where labels look for it)")
    return parser


def _command(commands: Any, name: str, call: Any, text: str, example: str) -> _Parser:
    """Add a command. call: what it does. text: in one line. example: what to type behind its name."""
    parser: _Parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.epilog = f"example:\n  {parser.prog} {example}".rstrip()
    parser.set_defaults(call=call, verbosity=0)
    for short, name, number, said in (
        ("-v", "--verbose", 1, "say more: each frame kept or not, and what other packages log"),
        ("-q", "--quiet", -1, "warnings and errors only: no progress"),
    ):
        parser.add_argument(short, name, dest="verbosity", action="store_const", const=number, help=said)
    return parser


def _json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json, for a command that prints its object there; errors come as one too, by `main`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout (docs/json.md)")


def _family(commands: Any, name: str, text: str) -> Any:
    """Add a command that has commands of its own; returns where they are added."""
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.epilog = f"`{parser.prog} COMMAND --help` has an example of each"
    return parser.add_subparsers(required=True, metavar="COMMAND")


def _serving(commands: Any) -> None:
    """The commands that take every option of a server."""
    models = "--baseline models/water --delta models/water-delta"
    for name, call, text, example in (
        ("serve", _serve, "answer an i-PI that is running or about to be started", f"input.xml {models}"),
        ("run", _serve, "the same, and start i-PI too; ends with i-PI's exit code", f"input.xml {models} --queue q.db"),
        ("bench", _bench, "where this simulation's step goes, and what would help", f"input.xml {models} --steps 50"),
        ("doctor", _doctor, "before a long run: what is wrong, what is slow, how long it takes", f"input.xml {models}"),
        ("plan", _plan, "beads, springs and time steps that hold an error, cheapest first", "run.toml --error 0.01"),
    ):
        parser = _command(commands, name, call, text, example)
        # argparse would list all options in front of the only word that is always needed
        parser.usage = "%(prog)s [options] simulation [options]"
        parser.epilog = (
            f"Name the simulation first: an option with several values takes what follows it.\n\n{parser.epilog}"
        )
        if name == "bench":
            parser.add_argument(
                "--steps", type=_typed(int), default=20, metavar="N", help="steps to run, elsewhere (default: 20)"
            )
        if name in ("bench", "doctor", "plan"):
            _json_option(parser)
        if name == "plan":
            _plan_options(parser)
        parser.set_defaults(start=name == "run")
        _serve_options(parser, several=name not in ("bench", "plan"))


def _plan_options(parser: _Parser) -> None:
    text = "of kinetic energies and the potential that is allowed (default: 0.01)"
    parser.add_argument("--error", type=_typed(float), default=0.01, metavar="X", help=text)
    text = "the same of mean squared forces (default: 0.03)"
    parser.add_argument("--force-error", type=_typed(float), default=0.03, metavar="X", help=text)
    text = "i-PI input whose nm_gle thermostat is looked at too (inputs/water-piglet/input.xml has one)"
    parser.add_argument("--piglet", type=Path, metavar="FILE", help=text)
    text = "steps of the cheapest plan with real i-PI, elsewhere (default: 0, none)"
    parser.add_argument("--measure", type=_typed(int), default=0, metavar="N", help=text)


def _training(commands: Any) -> None:
    text = "learn a Δ committee from labels, a baseline, or models of dipoles"
    train = _command(commands, "train", _train, text, "queue.db --baseline models/water --out models/gen-1")
    train.add_argument("labels", help="queue, or an extended XYZ file with REF_energy and REF_forces")
    what = train.add_mutually_exclusive_group(required=True)
    what.add_argument("--baseline", type=Path, metavar="DIR", help="bundle that Δ will be added to")
    what.add_argument("--as-baseline", action="store_true", help="learn the labels themselves: one model, a baseline")
    what.add_argument(
        "--as-dipole",
        action="store_true",
        help="learn the labels' dipoles, and their polarizabilities where all have them: for --also dipole=DIR",
    )
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the committee, or the bundle")
    text = "what is added by formula where the models will be served, and so is taken from the labels (docs/models.md)"
    train.add_argument("--add", type=_named, nargs="+", default=[], metavar="KIND=PARAMETERS", help=text)
    train.add_argument(
        "--from",
        dest="previous",
        type=Path,
        metavar="DIR",
        help="start from this committee's weights; of a baseline a bundle, a MACE's file or a name of mace-torch's",
    )
    train.add_argument("--settings", type=Path, metavar="TOML", help="members, epochs, … (docs/configuration.md)")
    train.add_argument("--head", help="of a file with several heads: which one to start from")
    train.add_argument("--trust-pickle", action="store_true", help="a file can run code: say that this one may")
    group = _add_keys(train, "of the labels to take; in a file, frames that name none are of it")
    for name, units in (("dipole", _DIPOLE_UNITS), ("polarizability", _POLARIZABILITY_UNITS)):
        text = f"with --as-dipole: what a file calls its {name}"
        group.add_argument(f"--{name}-key", default=f"REF_{name}", metavar="NAME", help=text)
        text = f"and in which unit (default: {units[0]})"
        group.add_argument(f"--{name}-unit", choices=units, default=units[0], help=text)
    text = "errors and spread of a committee on frames that it never saw"
    validate = _command(commands, "validate", _validate, text, "models/gen-1")
    validate.add_argument("committee", type=Path, help="folder that beadwork train made")
    validate.add_argument("--page", type=Path, metavar="FILE", help="default: validation.html in that folder")
    validate.add_argument("--baseline", type=Path, metavar="DIR", help="of the Δ: for --labels and --curve")
    group = _add_keys(validate, "of the labels to take")
    group.add_argument("--labels", metavar="Q", help="queue or file with further labels, instead of those held out")
    _json_option(validate)
    group = validate.add_argument_group("learning curve")
    group.add_argument("--curve", action="store_true", help="a learning curve too: trains two more committees")
    group.add_argument("--settings", type=Path, metavar="TOML", help="of the trainings for --curve")


class _Version(argparse.Action):
    """Prints the versions, which takes time to find out, only when it is asked to."""

    def __call__(self, parser: argparse.ArgumentParser, *ignored: Any) -> None:
        from importlib.metadata import version

        print(f"beadwork {version('beadwork')}, i-PI {version('ipi')}")
        parser.exit()


def _serve_options(parser: argparse.ArgumentParser, several: bool) -> None:
    """Every setting of a server, in its group, and absent unless typed, so that a TOML file can set it.

    several: whether the command knows of more servers than one.
    """
    for group in GROUPS:
        part = parser.add_argument_group(title(group))
        for entry in declared(group):
            if entry.name == "simulation":
                parser.add_argument("simulation", help=entry.setting.text)
                part.add_argument(
                    "--simulation",
                    dest="instead",
                    metavar=entry.setting.metavar,
                    help="i-PI's XML or RESTART in place of the one that the TOML file names",
                )
            elif several or entry.name != "devices":
                _option(part, entry, _help(entry))
            else:
                # known all the same: `_configured` says why it is not for this command
                _option(part, entry, argparse.SUPPRESS)


def _help(entry: Declared) -> str:
    """The text of a setting with its unit and default; a percent sign means something to argparse."""
    default = "" if entry.kind is bool else entry.shown
    notes = [entry.setting.unit, f"default: {default}" if default else ""]
    note = "; ".join(filter(None, notes))
    return (entry.setting.text + (f" [{note}]" if note else "")).replace("%", "%%")


def _option(parser: argparse._ArgumentGroup, entry: Declared, said: str) -> None:
    """Add the option of a setting, which takes what the setting's type holds."""
    setting = entry.setting
    # `X | None`: the option, where it is typed, has an X
    kind = typing.get_args(entry.kind)[0] if isinstance(entry.kind, types.UnionType) else entry.kind
    part = (typing.get_args(kind) or (kind,))[0]
    how: dict[str, Any] = {"type": _typed(part), "metavar": setting.metavar or {int: "N", float: "X"}.get(part)}
    if kind is bool:
        # an option says what is not the default, which for periodic is --not-periodic
        how = {"action": "store_false" if setting.negation else "store_true"}
    elif setting.commas:
        how["type"] = lambda text: text.split(",")
    elif typing.get_origin(kind) is dict:
        how |= {"type": {"at": _role, "also": _pair}.get(entry.key, _named), "nargs": "+"}
    elif typing.get_origin(kind) is list:
        how["nargs"] = "+"
    if setting.choices:
        how["choices"] = setting.choices
    name = f"--{setting.negation or entry.key}"
    parser.add_argument(name, dest=entry.name, default=argparse.SUPPRESS, help=said, **how)


def _typed(kind: type) -> Callable[[str], Any]:
    """Read a word of the command line as an int, a float or a str."""

    def read(text: str) -> Any:
        try:
            # argparse itself would say "invalid int value"
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {WORDS[kind][0]}") from None

    return read


def _role(text: str) -> tuple[str, str]:
    # from the right: a forcefield's name may hold the sign
    name, equals, role = text.rpartition("=")
    if not equals or role not in ROLES:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ROLE with a role of {', '.join(ROLES)}")
    return name, role


def _pair(text: str) -> tuple[str, str]:
    # from the left: a path may hold the sign
    role, equals, path = text.partition("=")
    if not equals or role not in ALSO or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=DIR with a role of {', '.join(ALSO)}")
    return role, path


def _named(text: str) -> tuple[str, str]:
    kind, equals, value = text.partition("=")
    if not equals or kind not in ADDITIONS or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=PARAMETERS with a kind of {', '.join(ADDITIONS)}")
    return kind, value


def _resolved(args: argparse.Namespace) -> ServeConfig:
    """What was typed, joined with a TOML file."""
    typed = {
        key: value
        for key, value in vars(args).items()
        # what argparse or a command has added, and is no setting of a server
        if key not in ("call", "start", "steps", "instead", "verbosity", "json")
    }
    for key in {"at", "also", "add"} & typed.keys():
        typed[key] = _by_name(key, typed[key])
    return resolve(typed, args.instead)


def _by_name(key: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The pairs that argparse collects. Raises ConfigError for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ConfigError(f"--{key} names one of {', '.join(name for name, _ in pairs)} twice", "name each once")
    return found


def _configured(args: argparse.Namespace, config: ServeConfig | None = None) -> tuple[ServeConfig, str]:
    """The configuration of one server; and threads set, which must be before PyTorch is imported."""
    config = config or _resolved(args)
    if config.devices:
        raise ConfigError(
            f"devices {','.join(config.devices)} are a server each, and this times one: --device cuda is a GPU"
        )
    from beadwork.potential.threads import set_threads

    if config.threads:  # what was asked for here wins over the environment
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(config.threads)
    return config, set_threads(config.threads or _cores())


def _cores() -> int:
    # the cores that a batch job or a container leaves to this process, not those of the machine
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(args: argparse.Namespace) -> int:
    config = _resolved(args)
    if config.devices:
        # imported where it is used, here and below: `beadwork --help` must not wait for PyTorch
        from beadwork.serve.supervisor import Devices

        return Devices(config, _cores(), args.start).run()
    config, threads = _configured(args, config)
    from beadwork.serve.session import Session

    return Session(config, threads).run(start_ipi=args.start)


def _bench(args: argparse.Namespace) -> int:
    config, threads = _configured(args)
    from beadwork.doctor.bench import bench, format_bench

    found = bench(config, args.steps, threads)
    print(as_json(found) if args.json else format_bench(found))
    return 0


def _plan(args: argparse.Namespace) -> int:
    asked = {name: getattr(args, name) for name in PLANNED}
    for name in PLANNED:
        delattr(args, name)
    config, threads = _configured(args)
    from beadwork.doctor.plan import Asked, format_plan, plan

    found = plan(config, Asked(**asked), threads)
    print(as_json(found) if args.json else format_plan(found))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    config = _resolved(args)
    if config.devices:
        from beadwork.serve.supervisor import plan

        # the first server stands for all: they differ in device, port and folder alone
        config = plan(config, _cores())[0]
    config, _ = _configured(args, config)
    from beadwork.doctor.report import doctor, visit

    # as lines, so that a user sees each finding as it comes; a script waits for the whole object
    if not args.json:
        return doctor(config)
    found = visit(config)
    print(as_json(found))
    return found.exit_code


def _status(args: argparse.Namespace) -> int:
    from beadwork.observe.status import ENDED
    from beadwork.serve.supervisor import format_status, observed, read_statuses

    if args.watch is not None and not args.watch > 0:
        raise ConfigError(f"--watch is {args.watch:g}", "give the seconds between two looks, more than 0")
    # a terminal is cleared before each look; elsewhere one stands below the other
    clear = "\033[H\033[J" if args.watch and sys.stdout.isatty() and not args.json else ""
    while True:
        found = read_statuses(args.out)
        text, code = format_status(found)
        print(as_json(observed(found), line=bool(args.watch)) if args.json else f"{clear}{text}", flush=True)
        if not args.watch or code == ENDED:
            return code
        time.sleep(args.watch)


def _add_keys(parser: argparse.ArgumentParser, method: str) -> argparse._ArgumentGroup:
    """Which labels, and what a file calls them. method: the help of --method."""
    group = parser.add_argument_group("labels")
    add = group.add_argument
    add("--method", help=method)
    add("--energy-key", default="REF_energy", metavar="NAME", help="what a file calls its energies in eV")
    add("--forces-key", default="REF_forces", metavar="NAME", help="what it calls its forces in eV/Å; none: learn none")
    return group


def _train(args: argparse.Namespace) -> int:
    from beadwork.potential.threads import set_threads

    set_threads(1)
    from beadwork.train.baseline import train_model
    from beadwork.train.committee import train_committee
    from beadwork.train.foundation import open_foundation
    from beadwork.train.label_file import ResponseKeys, read_examples
    from beadwork.train.response import train_response
    from beadwork.train.settings import TrainSettings

    settings = TrainSettings.read(args.settings) if args.settings else TrainSettings()
    # for the cards of the models, which say how they were made
    command = " ".join(("beadwork", *sys.argv[1:]))
    start = args.previous
    if args.as_dipole and start is not None:
        raise ConfigError("models of dipoles do not go on from others", "leave --from out")
    # a file of somebody else becomes a bundle for the length of this training
    with tempfile.TemporaryDirectory(prefix="beadwork-foundation-") as folder:
        foundation = None
        if args.as_baseline and start is not None and not start.is_dir():
            foundation = open_foundation(start, Path(folder) / "bundle", args.head, args.trust_pickle)
            start = None
        elif args.head or args.trust_pickle:
            raise ConfigError(
                "--head and --trust-pickle are of a file that --from names, of a baseline", "leave them out"
            )
        response = None
        if args.as_dipole:
            if args.add:
                raise ConfigError("--add is of energies, and dipoles are learned (--as-dipole)", "leave it out")
            response = ResponseKeys(
                args.dipole_key, args.polarizability_key, args.dipole_unit, args.polarizability_unit
            )
        keys = args.energy_key, args.forces_key, response
        examples = read_examples(args.labels, args.baseline, args.method, *keys, add=_by_name("add", args.add))
        if args.as_dipole:
            train_response(examples, args.out, settings, print_progress, command)
        elif args.as_baseline:
            train_model(examples, args.out, settings, None, print_progress, command, start, foundation)
        else:
            train_committee(examples, args.baseline, args.out, settings, start, print_progress, command)
    return 0


def _validate(args: argparse.Namespace) -> int:
    from beadwork.potential.threads import set_threads

    set_threads(1)
    from beadwork.train.dataset import Dataset
    from beadwork.train.label_file import read_examples
    from beadwork.train.settings import TrainSettings
    from beadwork.train.validate import PAGE, as_form, validate, write_page

    if (args.labels or args.curve) and args.baseline is None:
        raise ConfigError("--labels and --curve need the baseline that Δ is added to", "give --baseline")
    keys = args.energy_key, args.forces_key
    labels = None
    if args.labels:
        # as the committee's own: what is added to the baseline is no choice any more
        add = Dataset.read(args.committee).add
        labels = read_examples(args.labels, args.baseline, args.method, *keys, add=add)
    settings = TrainSettings.read(args.settings) if args.settings else TrainSettings()
    say = partial(logger.info, "%s") if args.json else print_progress
    validation = validate(args.committee, labels, settings if args.curve else None, args.baseline, say)
    page = args.page or args.committee / PAGE
    write_page(validation, page)
    if args.json:
        print(as_json(as_form(validation, page)))
    else:
        print("\n".join(map(painted, [*validation.lines(), f"with pictures: {page}"])))
    return 0


def _models(commands: Any) -> None:
    text = "make a bundle of a TorchScript model, or of a pickle that you trust"
    make = _command(commands, "import", _import, text, "water.model --out models/water")
    make.add_argument("file", type=Path, help="of a MACE model; for one of mace's own (medium, …) download it first")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder, which is made")
    make.add_argument("--head", help="which head of a multi-head model")
    make.add_argument(
        "--committee", action="store_true", help="all heads of a multi-head model, as a committee that shares a trunk"
    )
    for name, what in (("charges", "total charges, e"), ("spins", "numbers of unpaired electrons")):
        make.add_argument(
            f"--{name}", type=int, nargs="+", metavar="N", help=f"{what}, of what it was trained on: others are refused"
        )
    text = "of a model of dipoles, the unit of its labels (default: mace-torch's own for its class)"
    make.add_argument("--dipole-unit", choices=_DIPOLE_UNITS, help=text)
    text = "of a model of polarizabilities, the unit of its labels, which mace-torch does not say"
    make.add_argument("--polarizability-unit", choices=_POLARIZABILITY_UNITS, help=text)
    text = "of a model of dipoles, the charges that its labels are less the sum of, times positions: whole numbers"
    make.add_argument("--oxidation", type=_oxidation, nargs="+", metavar="ELEMENT=N", help=text)
    make.add_argument("--trust-pickle", action="store_true", help="a pickle can run code: say that this file may")
    show = _command(commands, "show", _show_model, "print a bundle's card and check its files", "models/water")
    show.add_argument("bundle", type=Path, help="a bundle, or a committee's folder")
    show.add_argument("--frames", action="store_true", help="a line for every frame that it learned from")
    text = "let bundles know what they were trained on, so that they can say which atoms are new to them"
    novelty = _command(commands, "novelty", _novelty, text, "models/water --frames training.xyz")
    novelty.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles, or a committee's folder")
    novelty.add_argument(
        "--frames",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="structures that the models were trained on, of any kind that ASE reads; default: dataset.json of "
        "`beadwork train`. Keys `simulation` and `step` in the frames' info keep neighbours in time together",
    )
    text = "let a file name this committee: servers that watch the file activate it"
    point = _command(commands, "point", _point, text, "current models/gen-2")
    point.add_argument("file", type=Path, help="that servers were given as --delta")
    point.add_argument("committee", type=Path, help="the committee's folder")


def _oxidation(text: str) -> tuple[str, int]:
    element, _, number = text.partition("=")
    try:
        return element, int(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ELEMENT=N, such as O=-2") from None


def _import(args: argparse.Namespace) -> int:
    from beadwork.potential.bundle import FILES
    from beadwork.potential.importer import import_model

    keys = ("charges", "spins", "dipole_unit", "polarizability_unit")
    about = {key: value for key in keys if (value := getattr(args, key)) is not None}
    if args.oxidation:
        about["oxidation"] = dict(args.oxidation)
    card = import_model(
        args.file, args.out, head=args.head, trust_pickle=args.trust_pickle, committee=args.committee, **about
    )
    heads = f", a committee of {card.about['heads']} heads" if args.committee else ""
    print(f"{card.path}{heads}: {card.hash}")
    for engine in FILES:
        why = card.without(engine)
        remedy = card.about.get(f"{engine}_remedy")
        print(f"engine {engine}: {why or 'yes'}{f'; {remedy}' if why and remedy else ''}")
    return 0


def _show_model(args: argparse.Namespace) -> int:
    from beadwork.potential.bundle import COMMITTEE, format_card, members_of
    from beadwork.train.provenance import chain

    members = members_of([args.bundle])
    if members != [args.bundle]:
        print((args.bundle / COMMITTEE).read_text(encoding="utf-8").strip() if args.bundle.is_dir() else args.bundle)
    for member in members:
        print("\n".join(filter(None, (format_card(member), chain(member, args.frames)))))
    return 0


def _novelty(args: argparse.Namespace) -> int:
    from beadwork.potential.bundle import members_of
    from beadwork.train.fit_novelty import fit_bundle, learned, read_frames

    for named in args.bundles:
        frames, block = read_frames(args.frames) if args.frames else learned(named)
        for bundle in members_of([named]):
            fit_bundle(bundle, frames, block, print_progress)
    return 0


def _point(args: argparse.Namespace) -> int:
    from beadwork.potential.bundle import LEARN_MORE, worse_than_baseline, write_pointer

    write_pointer(args.file, args.committee)
    print(f"{args.file} names {args.committee}")
    if said := worse_than_baseline(args.committee):
        print(painted(Alarm(f"{said}; {LEARN_MORE}")))
    return 0


def _examples(commands: Any) -> None:
    from beadwork.examples.init import KINDS

    text = "make a folder that can be run from: i-PI's input, run.toml and models, to begin with"
    make = _command(commands, "init", _init, text, "mine --kind npt")
    kinds = "; ".join(f"{kind}: {what}" for kind, (_, what) in KINDS.items())
    make.add_argument("folder", type=Path, metavar="DIR", help="the folder, which is made")
    make.add_argument("--kind", choices=tuple(KINDS), default="water", help=f"{kinds} (default: water)")
    text = "make such a folder of liquid water and run it: 16 beads of 32 H2O, 120 steps, a real i-PI"
    demo = _command(commands, "demo", _demo, text, "demo")
    demo.add_argument("folder", type=Path, metavar="DIR", help="the folder, which is made")


def _init(args: argparse.Namespace) -> int:
    from beadwork.examples.init import init

    print(f"{args.folder}: {', '.join(init(args.folder, args.kind))}")
    print(f"cd {shlex.quote(str(args.folder))}\nbeadwork doctor run.toml\nbeadwork run run.toml")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from beadwork.examples.init import init

    init(args.folder, "water")
    os.chdir(args.folder)  # where i-PI works is where it is started
    run = _parser().parse_args(["run", "run.toml"])
    code = int(run.call(run))
    if code == 0:
        print(f"now: beadwork report {shlex.quote(str(args.folder))}")
    return code


def _completion(args: argparse.Namespace) -> int:
    import shtab

    parser = _parser()
    _complete_files(parser)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Let shells complete names of files wherever a value is taken that is none of a few words."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner)
        elif action.choices is None and action.nargs != 0 and action.type in (None, Path):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _qmc_env(args: argparse.Namespace) -> int:
    from beadwork.label.codes.qmc_env import default, install

    folder = args.folder or default()
    print(f"{folder}: {install(folder)}")
    return 0


def _label_options(commands: Any) -> None:
    text = "compute labels of the frames that wait in a queue"
    parser = _command(commands, "label", _label, text, "queue.db --with labeller.toml --most 50")
    parser.add_argument("queue", help="SQLite file or PostgreSQL URL")
    parser.add_argument("--with", dest="labeller", type=Path, required=True, metavar="TOML", help="which code, and how")
    parser.add_argument("--most", type=_typed(int), metavar="N", help="label so many frames at most, the oldest first")
    parser.add_argument(
        "--choose", type=Path, metavar="BUNDLE", help="not the oldest, but those that teach this model most"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and about how long it takes")
    parser.add_argument("--again", action="store_true", help="frames that were set aside, too")
    parser.add_argument(
        "--mix-methods", action="store_true", help="labels of other methods in the queue may stay there"
    )


def _label(args: argparse.Namespace) -> int:
    from beadwork.harvest.queue import Queue
    from beadwork.label.command import command
    from beadwork.label.spec import read_spec

    spec, queue = read_spec(args.labeller), Queue(args.queue)
    many = {"most": args.most, "by": args.choose}
    print(command(queue, spec, **many, mix=args.mix_methods, again=args.again, dry=args.dry_run))
    return 0


def _learn(args: argparse.Namespace) -> int:
    if args.dry_run:
        from beadwork.loop.loop import plan

        print(plan(args.loop))
        return 0
    from beadwork.potential.threads import set_threads

    set_threads(_cores())
    from beadwork.loop.generations import write_page
    from beadwork.loop.loop import learn, read_loop

    learn(args.loop, partial(logger.info, "%s"))
    print(f"the generations side by side: {write_page(read_loop(args.loop))}")
    return 0


def _queue(commands: Any) -> None:
    table = _command(commands, "list", _queue_list, "a line a frame", "queue.db --status waiting")
    show = _command(commands, "show", _queue_show, "all that is known of one frame", "queue.db 7")
    text = "write extended XYZ, with labels where there are"
    export = _command(commands, "export", _queue_export, text, "queue.db frames.xyz --status labelled")
    text = "put frames of your own into it, to be labelled; makes it where there is none"
    add = _command(commands, "add", _queue_add, text, "queue.db simulation.pos_0.xyz --every 20")
    text = "read every frame; which of them a failing disk has damaged"
    check = _command(commands, "check", _queue_check, text, "queue.db --save whole.db")
    check.add_argument("--save", type=Path, metavar="FILE", help="a new queue, with all that is whole")
    for command in (table, show):
        _json_option(command)
    for command in (table, show, export, add, check):
        command.add_argument("queue", help="SQLite file or PostgreSQL URL")
    for command in (table, export):
        command.add_argument("--status", choices=("waiting", "claimed", "labelled", "failed"), help="only these frames")
    show.add_argument("row", type=_typed(int), help="its number in `queue list`")
    export.add_argument("file", type=Path, help="where it goes: .xyz or .extxyz, or /dev/stdout")
    add.add_argument("files", type=Path, nargs="+", metavar="FILE", help="i-PI's trajectories, or whatever ASE reads")
    add.add_argument(
        "--every", type=_typed(int), default=1, metavar="N", help="of each file every N-th frame (default: 1)"
    )
    add.add_argument("--not-periodic", action="store_true", help="the frames have no periodic cell, whatever they say")


def _queue_list(args: argparse.Namespace) -> int:
    from beadwork.harvest.listing import format_table, listed
    from beadwork.harvest.queue import Queue

    rows = Queue(args.queue).rows(status=args.status)
    print(as_json(listed(rows)) if args.json else format_table(rows))
    return 0


def _queue_show(args: argparse.Namespace) -> int:
    from beadwork.harvest.listing import format_row, shown
    from beadwork.harvest.queue import Queue

    row = Queue(args.queue).get(args.row)
    print(as_json(shown(row)) if args.json else format_row(row))
    return 0


def _queue_export(args: argparse.Namespace) -> int:
    from beadwork.disk import in_place
    from beadwork.harvest.listing import export
    from beadwork.harvest.queue import Queue

    rows = Queue(args.queue).rows(status=args.status)
    export(rows, args.file)
    labels = sum(row.label is not None for row in rows)
    # not among the frames, where they go to /dev/stdout
    said = sys.stderr if in_place(args.file) else sys.stdout
    print(f"{len(rows)} frames in {args.file}, {labels} with their label", file=said)
    return 0


def _queue_check(args: argparse.Namespace) -> int:
    from beadwork.errors import QueueError
    from beadwork.harvest.queue import Queue

    queue = Queue(args.queue, report=lambda text: None)  # all are printed below
    damaged = queue.damaged()
    for said in damaged.values():
        print(said)
    if args.save:
        print(f"{queue.save(args.save)} frames are whole, and copied to {args.save}")
    elif damaged:
        raise QueueError(f"the queue {queue.name} is damaged", "--save FILE copies what is whole into a new one")
    else:
        print(f"{len(queue)} frames, all of them whole")
    return 0


def _queue_add(args: argparse.Namespace) -> int:
    from beadwork.harvest.queue import Queue
    from beadwork.label.user_frames import add

    queue = Queue(args.queue, create=True)
    code = 0
    for path in args.files:
        try:
            print(f"{path}: {add(queue, path, args.every, False if args.not_periodic else None)}")
        except ConfigError as error:  # of this file, and no reason to leave out the others
            logger.error("%s", error)
            code = error.exit_code
    return code


def _report(commands: Any) -> None:
    parser = _command(commands, "report", _write_report, "one page about a run, to be opened in a browser", "results")
    parser.add_argument("run", type=Path, help="folder of beadwork.out and summary.json")
    parser.add_argument("--page", type=Path, metavar="FILE", help="where the page goes (default: RUN/report.html)")
    parser.add_argument("--queue", metavar="Q", help="queue, where it is not the one that the run names")
    parser.add_argument(
        "--csv",
        type=Path,
        nargs="?",
        const=True,
        metavar="FILE",
        help="every curve of the page with its error bars too (default: RUN/report.csv)",
    )


def _write_report(args: argparse.Namespace) -> int:
    from beadwork.report.write import report

    csv = args.run / "report.csv" if args.csv is True else args.csv
    print(report(args.run, args.page, args.queue, csv))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
