"""Arguments in, calls out, exit codes. Nothing is computed here."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from beadwork.config import DTYPES, ENGINES, NOVELTY_OF, ON_MARK, ROLES, ServeConfig, resolve
from beadwork.errors import BeadworkError, ConfigError
from beadwork.signals import Interrupted, handled, interrupt

#: characters of a path that a message shows
LONG = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or that of the BeadworkError which ended it.

    Where nobody reads our words any more (`| head`) it is the command's own if that has come to its end, else 141, as
    shells have it for a program that SIGPIPE ends.
    """
    for stream in _streams():
        stream.reconfigure(errors="backslashreplace")  # in a locale that has no Å it is \xc5, and ends no run
    try:
        with handled({signal.SIGINT: interrupt, signal.SIGTERM: interrupt}):
            args = _parser().parse_args(arguments)
            return int(args.call(args))
    except (BeadworkError, Interrupted) as error:
        with suppress(OSError):  # a log on the disk that is full; the exit code says it too
            print(f"beadwork: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not any(map(_unread, _streams())):
            raise  # of another pipe: a fault of ours
        return 128 + signal.SIGPIPE
    except (OSError, RecursionError, OverflowError) as error:
        if (said := _about_input(error)) is None:
            raise  # a fault of ours
        with suppress(OSError):
            print(f"beadwork: {said}", file=sys.stderr)
        return ConfigError.exit_code
    finally:
        for stream in _streams():
            with suppress(OSError, ValueError):  # of the disk that is full, and of a stream that is closed
                stream.flush()
            if _unread(stream):  # or Python says so at its end, with an exit code of its own
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _about_input(error: Exception) -> str | None:
    """What Python says of a path or a value that was given to us, as a sentence; None where it says it of our own."""
    if isinstance(error, OSError):
        if error.filename is None:
            return None
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
        short = name if len(name) <= LONG else f"{name[:LONG]}… ({len(os.fsencode(name))} bytes)"
        return f"cannot use {short}: {error.strerror}; check the path and your rights to it"
    if isinstance(error, RecursionError):
        return "a file that was given is nested too deeply to be read; see whether it is the one that you meant"
    return f"a number that was given is too large ({error}); correct it, here or in the file that has it"


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
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="beadwork", description="Force-field server for path-integral MD with i-PI.")
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the versions of beadwork and of i-PI",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="answer an i-PI that is running or about to be started")
    serve.set_defaults(call=_serve, start=False)
    run = commands.add_parser("run", help="the same, and start i-PI too; ends with i-PI's exit code")
    run.set_defaults(call=_serve, start=True)
    bench = commands.add_parser("bench", help="where this simulation's step goes, and what would help")
    bench.add_argument("--steps", type=int, default=20, metavar="N", help="steps to run, elsewhere (default: 20)")
    bench.set_defaults(call=_bench)
    doctor = commands.add_parser("doctor", help="before a long run: what is wrong, what is slow, how long it takes")
    doctor.set_defaults(call=_doctor)
    for command in (serve, run, bench, doctor):
        command.epilog = "Name the simulation first: an option with several values takes what follows it."
        _serve_options(command, several=command is not bench)
    status = commands.add_parser("status", help="how a run is doing; exit code 0 where it runs")
    status.add_argument("out", type=Path, nargs="?", default=Path(), help="the run's --out (default: this folder)")
    status.set_defaults(call=_status)
    _models(commands.add_parser("models", help="make and look at model bundles"))
    _queue(commands.add_parser("queue", help="look at the frames that were kept"))
    _report(commands.add_parser("report", help="one page about a run, to be opened in a browser"))
    _label_options(commands.add_parser("label", help="compute labels of the frames that wait in a queue"))
    train = commands.add_parser("train", help="learn a Δ committee from labels")
    train.add_argument("labels", help="queue, or an extended XYZ file with REF_energy and REF_forces")
    train.add_argument("--baseline", type=Path, required=True, metavar="DIR", help="bundle that Δ will be added to")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the committee")
    train.add_argument("--from", dest="previous", type=Path, metavar="DIR", help="go on from this committee's weights")
    train.add_argument("--settings", type=Path, metavar="TOML", help="members, epochs, … (docs/training.md)")
    train.add_argument("--method", help="of the labels to take; for a file, of frames that do not say")
    _add_keys(train)
    train.set_defaults(call=_train)
    validate = commands.add_parser("validate", help="errors and spread of a committee on frames that it never saw")
    validate.add_argument("committee", type=Path, help="folder that beadwork train made")
    validate.add_argument("--labels", metavar="Q", help="queue or file with further labels, instead of those held out")
    validate.add_argument("--baseline", type=Path, metavar="DIR", help="of the Δ: for --labels and --curve")
    validate.add_argument("--method", help="of the labels to take")
    _add_keys(validate)
    validate.add_argument("--curve", action="store_true", help="a learning curve too: trains two more committees")
    validate.add_argument("--settings", type=Path, metavar="TOML", help="of the trainings for --curve")
    validate.add_argument("--page", type=Path, metavar="FILE", help="default: validation.html in that folder")
    validate.set_defaults(call=_validate)
    learn = commands.add_parser("learn", help="simulate, label, train, swap, and again; or go on with it")
    learn.add_argument("loop", type=Path, metavar="TOML", help="what to simulate, with which labeller and settings")
    learn.set_defaults(call=_learn)
    qmc = commands.add_parser("qmc-env", help="make the environment that quantum Monte Carlo labels need")
    qmc.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="where (default: where labels look for it)")
    qmc.set_defaults(call=_qmc_env)
    return parser


class _Version(argparse.Action):
    """Prints the versions, which takes time to find out, only when it is asked to."""

    def __call__(self, parser: argparse.ArgumentParser, *ignored: Any) -> None:
        from importlib.metadata import version

        print(f"beadwork {version('beadwork')}, i-PI {version('ipi')}")
        parser.exit()


def _serve_options(parser: argparse.ArgumentParser, several: bool) -> None:
    """Every option is a field of ServeConfig, and absent unless typed, so that a TOML file can set it.

    several: whether the command knows of more servers than one.
    """
    default = ServeConfig()

    def add(name: str, text: str, shown: bool = True, **kwargs: Any) -> None:
        value = getattr(default, name.replace("-", "_"))
        note = f" (default: {value})" if value not in (None, [], {}, False) else ""
        said = text + note if shown else argparse.SUPPRESS
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=said, **kwargs)

    parser.add_argument("simulation", help="i-PI's XML or RESTART file, or a TOML file with these options")
    parser.add_argument(
        "--simulation",
        dest="instead",
        metavar="FILE",
        help="i-PI's XML or RESTART in place of the one that the TOML file names",
    )
    add("baseline", "bundle of the baseline model", metavar="DIR")
    add("delta", "bundles of the Δ models, or a committee's folder, or a file that names one", nargs="+", metavar="DIR")
    add(
        "at",
        "what a forcefield of the XML is served, where it has several: sum, baseline or delta",
        nargs="+",
        type=_role,
        metavar="NAME=ROLE",
    )
    add("engine", "auto takes native where it is there and agrees with torchscript", choices=ENGINES)
    add("dtype", "precision of the models", choices=DTYPES)
    add("device", "cpu or cuda", metavar="DEVICE")
    add(
        "devices",
        "start a server on each of these, with commas between them, or on all GPUs",
        several,
        type=lambda text: text.split(","),
        metavar="DEVICES",
    )
    add(
        "servers", "how many share this i-PI, here and on other machines (default: one a device)", type=int, metavar="N"
    )
    add("threads", "threads of the engines (default: every core)", type=int, metavar="N")
    add("sockets-prefix", "what i-PI has as -S, if it is started with that; `run` starts it so", metavar="PREFIX")
    add("host", "where i-PI runs, if its inet address cannot be dialled as it stands", metavar="HOST")
    add("connections", "connections a forcefield, 0 for as many as fill a ring polymer", type=int, metavar="N")
    add("patience", "seconds to wait for an i-PI that is not there", type=float, metavar="S")
    add("silence", "seconds that a connected i-PI may ask for nothing, 0 for ever", type=float, metavar="S")
    add("alpha", "scale of the members' deviations in forces (default: their card's)", type=float, metavar="A")
    add("energy-alpha", "the same in energies (default: --alpha if given, else the card's)", type=float, metavar="A")
    add("weights", "one a member (default: the committee card's)", type=float, nargs="+", metavar="W")
    add("baseline-uncertainty", "eV of the whole system; turns the weighted baseline on", type=float, metavar="S")
    add("baseline-uncertainty-atom", "eV/atom; the same for systems of any size", type=float, metavar="S")
    add("member-forces", "send every member's forces and virial in the extras", action="store_true")
    add("queue", "keep what the committee is unsure of: SQLite file or PostgreSQL URL", metavar="Q")
    add(
        "keep-force",
        "band of the largest force spread, eV/Å (default: its card's)",
        type=float,
        nargs="+",
        metavar="MARK",
    )
    add("keep-novelty", "frames with an atom of this novelty or more are kept; inf for none", type=float, metavar="X")
    add("keep-novelty-of", "whose novelty that is", choices=NOVELTY_OF)
    add("keep-energy", "band of the energy spread, eV/atom", type=float, nargs="+", metavar="MARK")
    add("cooldown", "steps between two kept frames", type=int, metavar="N")
    add(
        "keep-most",
        "frames kept in one run, with those of this input that the queue holds without a label",
        type=int,
        metavar="N",
    )
    add("distance", "Å; structures closer than this are the same (docs/formulas.md)", type=float, metavar="D")
    add("on-mark", "what is done when a mark is passed: stop i-PI, or count and go on", choices=ON_MARK)
    add("mark-distance", "no two atoms may be closer, Å; 0 for no mark", type=float, metavar="D")
    add("mark-force", "no atom's force may be larger, eV/Å; inf for no mark", type=float, metavar="F")
    add("mark-novelty", "no atom's novelty may be larger; inf (the default) for no mark", type=float, metavar="X")
    add("mark-spread", "no atom's force spread may be larger, eV/Å; inf for no mark", type=float, metavar="S")
    add("out", "folder for beadwork.out, status.json and summary.json", metavar="DIR")
    add("metrics", "serve Prometheus metrics here; without a host only this machine can ask", metavar="[HOST:]PORT")
    parser.add_argument(
        "--not-periodic",
        dest="periodic",
        action="store_false",
        default=argparse.SUPPRESS,
        help="the system has no periodic cell",
    )


def _role(text: str) -> tuple[str, str]:
    name, equals, role = text.rpartition("=")
    if not equals or role not in ROLES:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ROLE with a role of {', '.join(ROLES)}")
    return name, role


def _resolved(args: argparse.Namespace) -> ServeConfig:
    """What was typed, joined with a TOML file."""
    typed = {key: value for key, value in vars(args).items() if key not in ("call", "start", "steps", "instead")}
    if "at" in typed:
        typed["at"] = dict(typed["at"])
    return resolve(typed, args.instead)


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
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(args: argparse.Namespace) -> int:
    config = _resolved(args)
    if config.devices:
        from beadwork.serve.supervisor import Devices

        return Devices(config, _cores(), args.start).run()
    config, threads = _configured(args, config)
    from beadwork.serve.session import Session

    return Session(config, threads).run(start_ipi=args.start)


def _bench(args: argparse.Namespace) -> int:
    config, threads = _configured(args)
    from beadwork.doctor.bench import bench

    print(bench(config, args.steps, threads))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    config = _resolved(args)
    if config.devices:
        from beadwork.serve.supervisor import plan

        config = plan(config, _cores())[0]
    config, _ = _configured(args, config)
    from beadwork.doctor.report import doctor

    return doctor(config)


def _status(args: argparse.Namespace) -> int:
    from beadwork.serve.supervisor import tell

    text, code = tell(args.out)
    print(text)
    return code


def _add_keys(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--energy-key", default="REF_energy", metavar="NAME", help="what a file calls its energies in eV")
    add("--forces-key", default="REF_forces", metavar="NAME", help="what it calls its forces in eV/Å; none: learn none")


def _train(args: argparse.Namespace) -> int:
    from beadwork.potential.threads import set_threads

    set_threads(1)
    from beadwork.train.committee import train_committee
    from beadwork.train.label_file import read_examples
    from beadwork.train.settings import TrainSettings

    settings = TrainSettings.read(args.settings) if args.settings else TrainSettings()
    examples = read_examples(args.labels, args.baseline, args.method, args.energy_key, args.forces_key)
    command = " ".join(("beadwork", *sys.argv[1:]))
    train_committee(examples, args.baseline, args.out, settings, args.previous, print, command)
    return 0


def _validate(args: argparse.Namespace) -> int:
    from beadwork.potential.threads import set_threads

    set_threads(1)
    from beadwork.train.label_file import read_examples
    from beadwork.train.settings import TrainSettings
    from beadwork.train.validate import PAGE, validate, write_page

    if (args.labels or args.curve) and args.baseline is None:
        raise ConfigError("--labels and --curve need the baseline that Δ is added to; give --baseline")
    keys = args.energy_key, args.forces_key
    labels = read_examples(args.labels, args.baseline, args.method, *keys) if args.labels else None
    settings = TrainSettings.read(args.settings) if args.settings else TrainSettings()
    validation = validate(args.committee, labels, settings if args.curve else None, args.baseline, print)
    page = args.page or args.committee / PAGE
    write_page(validation, page)
    print(f"{validation}\n{page}")
    return 0


def _models(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser("import", help="make a bundle of a TorchScript model, or of a pickle that you trust")
    make.add_argument("file", type=Path, help="of a MACE model; for one of mace's own (medium, …) download it first")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder, which is made")
    make.add_argument("--head", help="which head of a multi-head model")
    make.add_argument("--trust-pickle", action="store_true", help="a pickle can run code: say that this file may")
    make.set_defaults(call=_import)
    show = commands.add_parser("show", help="print a bundle's card and check its files")
    show.add_argument("bundle", type=Path, help="a bundle, or a committee's folder")
    show.add_argument("--frames", action="store_true", help="a line for every frame that it learned from")
    show.set_defaults(call=_show_model)
    novelty = commands.add_parser(
        "novelty", help="let bundles know what they were trained on, so that they can say which atoms are new to them"
    )
    novelty.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles, or a committee's folder")
    novelty.add_argument(
        "--frames",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="structures that the models were trained on, of any kind that ASE reads; default: dataset.json of "
        "`beadwork train`. Keys `simulation` and `step` in the frames' info keep neighbours in time together",
    )
    novelty.set_defaults(call=_novelty)
    point = commands.add_parser("point", help="let a file name this committee: servers that watch the file take it up")
    point.add_argument("file", type=Path)
    point.add_argument("committee", type=Path)
    point.set_defaults(call=_point)


def _import(args: argparse.Namespace) -> int:
    from beadwork.potential.importer import WITHOUT, import_model

    card = import_model(args.file, args.out, head=args.head, trust_pickle=args.trust_pickle)
    print(f"{card.path}: {'TorchScript and native' if card.native else 'TorchScript'}, {card.hash}")
    if not card.native:
        print(f"no native model: {'; '.join(str(card.about[key]) for key in WITHOUT if key in card.about)}")
    return 0


def _show_model(args: argparse.Namespace) -> int:
    from beadwork.potential.bundle import COMMITTEE, describe, members_of
    from beadwork.train.provenance import chain

    members = members_of([args.bundle])
    if members != [args.bundle]:
        print((args.bundle / COMMITTEE).read_text(encoding="utf-8").strip() if args.bundle.is_dir() else args.bundle)
    for member in members:
        print("\n".join(filter(None, (describe(member), chain(member, args.frames)))))
    return 0


def _novelty(args: argparse.Namespace) -> int:
    from beadwork.potential.bundle import members_of
    from beadwork.train.fit_novelty import fit_bundle, learned, read_frames

    for named in args.bundles:
        frames, block = read_frames(args.frames) if args.frames else learned(named)
        for bundle in members_of([named]):
            fit_bundle(bundle, frames, block, print)
    return 0


def _point(args: argparse.Namespace) -> int:
    from beadwork.potential.bundle import LEARN_MORE, point, worse_than_baseline

    point(args.file, args.committee)
    print(f"{args.file} names {args.committee}")
    if said := worse_than_baseline(args.committee):
        print(f"{said}; {LEARN_MORE}")
    return 0


def _qmc_env(args: argparse.Namespace) -> int:
    from beadwork.label.codes.qmc_env import default, install

    folder = args.folder or default()
    print(f"{folder}: {install(folder)}")
    return 0


def _label_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", help="SQLite file or PostgreSQL URL")
    parser.add_argument("--with", dest="labeller", type=Path, required=True, metavar="TOML", help="which code, and how")
    parser.add_argument("--most", type=int, metavar="N", help="label so many frames at most, the oldest first")
    parser.add_argument(
        "--choose", type=Path, metavar="BUNDLE", help="not the oldest, but those that teach this model most"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and about how long it takes")
    parser.add_argument("--again", action="store_true", help="frames that were set aside wait once more")
    parser.add_argument(
        "--mix-methods", action="store_true", help="labels of other methods in the queue may stay there"
    )
    parser.set_defaults(call=_label)


def _label(args: argparse.Namespace) -> int:
    from beadwork.harvest.queue import Queue
    from beadwork.label.run import command
    from beadwork.label.spec import read

    spec, queue = read(args.labeller), Queue(args.queue)
    many = {"most": args.most, "by": args.choose}
    print(command(queue, spec, **many, mix=args.mix_methods, again=args.again, dry=args.dry_run))
    return 0


def _learn(args: argparse.Namespace) -> int:
    from beadwork.potential.threads import set_threads

    set_threads(_cores())
    from beadwork.loop.generations import write_page
    from beadwork.loop.loop import learn, read

    learn(args.loop, lambda text: print(f"beadwork: {text}", file=sys.stderr, flush=True))
    print(f"the generations side by side: {write_page(read(args.loop))}")
    return 0


def _queue(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table = commands.add_parser("list", help="a line a frame")
    table.set_defaults(call=_queue_list)
    show = commands.add_parser("show", help="all that is known of one frame")
    show.set_defaults(call=_queue_show)
    export = commands.add_parser("export", help="write extended XYZ, with labels where there are")
    export.set_defaults(call=_queue_export)
    add = commands.add_parser(
        "add", help="put frames of your own into it, to be labelled; makes it where there is none"
    )
    add.set_defaults(call=_queue_add)
    check = commands.add_parser("check", help="read every frame; which of them a failing disk has damaged")
    check.set_defaults(call=_queue_check)
    check.add_argument("--save", type=Path, metavar="FILE", help="a new queue, with all that is whole")
    for command in (table, show, export, add, check):
        command.add_argument("queue", help="SQLite file or PostgreSQL URL")
    for command in (table, export):
        command.add_argument("--status", choices=("waiting", "claimed", "labelled", "failed"), help="only these frames")
    show.add_argument("row", type=int)
    export.add_argument("file", type=Path)
    add.add_argument("files", type=Path, nargs="+", metavar="FILE", help="i-PI's trajectories, or whatever ASE reads")
    add.add_argument("--every", type=int, default=1, metavar="N", help="of each file every N-th frame (default: 1)")
    add.add_argument("--not-periodic", action="store_true", help="the frames have no periodic cell, whatever they say")


def _queue_list(args: argparse.Namespace) -> int:
    from beadwork.harvest.listing import table
    from beadwork.harvest.queue import Queue

    print(table(Queue(args.queue).rows(status=args.status)))
    return 0


def _queue_show(args: argparse.Namespace) -> int:
    from beadwork.harvest.listing import describe
    from beadwork.harvest.queue import Queue

    print(describe(Queue(args.queue).get(args.row)))
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

    queue = Queue(args.queue, say=lambda text: None)  # all is said below
    damaged = queue.damaged()
    for said in damaged.values():
        print(said)
    if args.save:
        print(f"{queue.save(args.save)} frames are whole, and copied to {args.save}")
    elif damaged:
        raise QueueError(f"the queue {queue.name} is damaged; --save FILE copies what is whole into a new one")
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
            print(f"beadwork: {error}", file=sys.stderr)
            code = error.exit_code
    return code


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of beadwork.out and summary.json")
    parser.add_argument("--page", type=Path, metavar="FILE", help="where the page goes (default: RUN/report.html)")
    parser.add_argument("--queue", metavar="Q", help="queue, where it is not the one that the run names")
    parser.set_defaults(call=_write_report)


def _write_report(args: argparse.Namespace) -> int:
    from beadwork.report.write import report

    print(report(args.run, args.page, args.queue))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
