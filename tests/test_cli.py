"""What a shell sees of any command: its exit code and its words, into a pipe that is closed and in any locale."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

import beadwork
from beadwork import cli
from beadwork.config import GROUPS
from beadwork.errors import BeadworkError, ConfigError
from beadwork.harvest.queue import Queue
from beadwork.settings import declared, title

#: a command that prints so many lines, and ends with this code
PRINTING = """
import sys
from beadwork import cli
cli._status = lambda args: print("word\\n" * {lines}) or {code}
sys.exit(cli.main(["status"]))
"""


def into_a_closed_pipe(*words: str, both: bool = False) -> tuple[int, str]:
    """The exit code and stderr of a Python whose stdout nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, *words],
            stdout=write,
            stderr=write if both else subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    finally:
        os.close(write)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        (1, 0, 0),  # all is in the buffer, and the command has come to its end
        (1, 8, 8),
        (100_000, 0, 141),
    ],
)
@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_reader_that_has_gone(lines: int, code: int, expected: int, flags: tuple[str, ...]) -> None:
    """`beadwork … | head` ends without a traceback: with its own code where that is known, or as SIGPIPE would."""
    ended, said = into_a_closed_pipe(*flags, "-c", PRINTING.format(lines=lines, code=code))
    assert said == ""
    assert ended == (141 if flags else expected)


def test_help_into_a_closed_pipe() -> None:
    """What argparse prints and ends itself."""
    assert into_a_closed_pipe("-m", "beadwork.cli", "run", "--help") == (0, "")


def test_errors_into_a_closed_pipe(tmp_path: Path) -> None:
    """With stderr in the same pipe (`2>&1 | head`) an error still ends with its own exit code."""
    ended, _ = into_a_closed_pipe("-m", "beadwork.cli", "status", str(tmp_path), both=True)
    assert ended == ConfigError.exit_code


def test_another_pipe_is_no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that breaks inside of us is a fault of ours, and is not taken for a reader that has gone."""

    def broken(args: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_status", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["status"])


@pytest.mark.parametrize("code", ["print('5 Å') or 0", "print('5 Å', file=sys.stderr) or 0"])
def test_a_locale_without_our_letters(code: str) -> None:
    """In a locale that has no Å nothing ends in a UnicodeEncodeError, least of all a run of days."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    program = PRINTING.replace('print("word\\n" * {lines}) or {code}', code)
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", program.replace("Å", "\\u00c5")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "5 \\xc5\n")


NESTED = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "x" * 300], "cannot use " + "x" * 189),
        (["report", "x" * 300], "File name too long"),
        (["queue", "list", "x" * 300], "(3"),
        (["models", "show", "x" * 300], "cannot use xxx"),
        (["models", "import", "x" * 300, "--out", "y"], "check the path and your rights to it"),
        (["queue", "show", "QUEUE", "1" + "0" * 23], "a number that was given is too large (Python int too large"),
        (["serve", "deep.toml"], "nested too deeply"),
        (["learn", "deep.toml"], "nested too deeply"),
        (["status", "deep"], "nested too deeply"),
        (["serve", "large.toml"], "a number that was given is too large (int too large to convert to float)"),
    ],
)
def test_what_was_given_is_a_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path that the system refuses, a number that no machine's has room for, a file nested beyond reading: exit code
    2 and one line, never a traceback."""
    monkeypatch.chdir(tmp_path)
    Path("deep.toml").write_text(f"a = {NESTED}")
    Path("large.toml").write_text(f"simulation = 'x'\nbaseline = 'b'\npatience = {'9' * 400}\n")
    Path("deep").mkdir()
    Path("deep", "status.json").write_text(NESTED)
    if "QUEUE" in words:
        Queue(tmp_path / "q.db", create=True)
    assert cli.main([word.replace("QUEUE", "q.db") for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("beadwork: ")
    assert said in err
    assert err.count("\n") == 1


#: commands that take a path, which is {} here; the doctor's findings are its output
PATHS = [
    ["serve", "{}"],
    ["run", "{}"],
    ["bench", "{}", "--baseline", "b"],
    ["status", "{}"],
    ["report", "{}"],
    ["queue", "list", "{}"],
    ["queue", "check", "{}"],
    ["queue", "export", "{}", "out.xyz"],
    ["queue", "add", "q.db", "{}"],
    ["models", "show", "{}"],
    ["models", "import", "{}", "--out", "y"],
    ["label", "q.db", "--with", "{}"],
    ["train", "{}", "--as-baseline", "--out", "y"],
    ["validate", "{}", "--labels", "q.db"],
    ["learn", "{}"],
    ["analyse", "properties", "{}"],
]


@pytest.mark.parametrize("words", PATHS, ids=lambda words: " ".join(words[: 1 if "{}" in words[1] else 2]))
def test_a_loop_of_links_is_a_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two links that name each other: one line and the exit code of an error of ours, whatever was to be read there."""
    monkeypatch.chdir(tmp_path)
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    Queue(tmp_path / "q.db", create=True)
    code = cli.main([word.replace("{}", "one") for word in words])
    err = capsys.readouterr().err
    assert code in {error.exit_code for error in every(BeadworkError)} - {BeadworkError.exit_code}
    assert err.startswith("beadwork: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", PATHS, ids=lambda words: " ".join(words[: 1 if "{}" in words[1] else 2]))
def test_what_may_not_be_read_is_a_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of another user's, as a file and inside a folder that may not be entered: one line, never a traceback."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:  # tmp_path is root's alone
        monkeypatch.chdir(name)
        Path(name).chmod(0o777)
        Path("hidden").mkdir(mode=0o700)
        for file in ("closed", "hidden/closed"):
            Path(file).write_text("1")
            Path(file).chmod(0o600)
        os.seteuid(65534)
        try:
            codes, said = [], []
            for path in ("closed", "hidden/closed"):
                codes.append(cli.main([word.replace("{}", path) for word in words]))
                said.append(capsys.readouterr().err)
        finally:
            os.seteuid(0)
        for code, err in zip(codes, said, strict=True):
            assert code in {error.exit_code for error in every(BeadworkError)} - {BeadworkError.exit_code}
            assert err.startswith("beadwork: ")
            assert "Traceback" not in err
            assert err.count("\n") == 1


def every(kind: type[BeadworkError]) -> set[type[BeadworkError]]:
    """This class and all that are made of it."""
    return {kind}.union(*(every(one) for one in kind.__subclasses__()))


def test_a_fault_of_ours_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system that names no file is nothing that a user has given: its traceback is kept."""

    def fails(*arguments: object) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("beadwork.cli._status", fails)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["status"])


def test_the_package_runs_and_knows_its_version(tmp_path: Path) -> None:
    """`python -m beadwork` is the script of that name, and the package says the version that is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "beadwork", "--version"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"beadwork {beadwork.__version__}, i-PI ")
    assert beadwork.__version__ == version("beadwork")


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff names the version that pyproject.toml does."""
    root = Path(__file__).parents[1]
    stated = [
        line.split(": ")[1] for line in (root / "CITATION.cff").read_text().splitlines() if line[:8] == "version:"
    ]
    assert f'\nversion = "{stated[0]}"\n' in (root / "pyproject.toml").read_text()


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command that does something, by what is typed for it."""
    found: dict[str, argparse.ArgumentParser] = {}
    left: list[argparse.ArgumentParser] = [cli._parser()]
    while left:
        parser = left.pop()
        below = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        left += [parser for choices in below for parser in choices.values()]
        if not below:
            found[parser.prog] = parser
    return found


SERVING = ("beadwork serve", "beadwork run", "beadwork bench", "beadwork doctor", "beadwork plan")


@pytest.mark.parametrize("name", SERVING)
def test_options_are_the_declared_settings(name: str) -> None:
    """Each setting of a server is an option in the group of its class, whose help is the declared text and unit; the
    option is absent unless typed, so that a file can set it."""
    groups = {group.title: group for group in commands()[name]._action_groups}
    for group in GROUPS:
        options = {action.dest: action for action in groups[title(group)]._group_actions}
        settings = {entry.name: entry for entry in declared(group)}
        assert [dest.replace("instead", "simulation") for dest in options] == list(settings)
        for name_, entry in settings.items():
            option = options["instead" if name_ == "simulation" else name_]
            assert option.option_strings == [f"--{entry.setting.negation or entry.key}"]
            assert option.default in (argparse.SUPPRESS, None)
            if name_ == "simulation" or (name in ("beadwork bench", "beadwork plan") and name_ == "devices"):
                continue
            assert option.help is not None
            assert option.help.startswith(entry.setting.text)
            assert (entry.setting.unit or "") in option.help.removeprefix(entry.setting.text)
            assert entry.shown in option.help or entry.kind is bool


@pytest.mark.parametrize("name", commands())
def test_help_has_an_example_that_is_understood(name: str) -> None:
    """The last line of each help is a command that the command line takes, for that command."""
    parser = commands()[name]
    example = parser.format_help().splitlines()[-1].strip()
    assert (example + " ").startswith(f"{name} ")
    typed = shlex.split(example.partition(" >")[0])  # what the shell does with its output is the shell's
    assert cli._parser().parse_args(typed[1:]).call is parser.get_default("call")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve --pateince 5 in.xml", "beadwork serve: --pateince is no option; did you mean --patience?"),
        ("run in.xml --keep-forces=0.1", "beadwork run: --keep-forces is no option; did you mean --keep-force?"),
        ("serve in.xml --periodic", "beadwork serve: --periodic is no option; did you mean --not-periodic?"),
        ("train q.db --basline b --out o", "beadwork train: --basline is no option; did you mean --baseline?"),
        ("status --verbatim", "beadwork status: --verbatim is no option; known are --help"),
        ("serv in.xml", "beadwork: argument COMMAND: there is no 'serv'; did you mean serve?"),
        ("queue lst q.db", "beadwork queue: argument COMMAND: there is no 'lst'; did you mean list?"),
        ("run in.xml --engine natvie", "beadwork run: argument --engine: there is no 'natvie'; did you mean native?"),
        ("run in.xml --cooldown ten", "beadwork run: argument --cooldown: 'ten' is not a whole number"),
        ("run in.xml --alpha big", "beadwork run: argument --alpha: 'big' is not a number"),
        ("queue show q.db x", "beadwork queue show: argument row: 'x' is not a whole number"),
        ("run in.xml other.xml", "beadwork run: other.xml is one too many"),
        ("run", "beadwork run: the following arguments are required: simulation"),
    ],
)
def test_a_slip_is_two_lines(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is mistyped is named with what was meant, and where help is; not a page of usage. Exit code 2."""
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(words.split())
    told = capsys.readouterr()
    first, second = told.err.splitlines()
    assert first.startswith(said)
    command = said.partition(":")[0]
    assert second == f"see `{command} --help`"
    assert told.out == ""


def test_options_may_be_cut_short() -> None:
    """As argparse takes them: a beginning that fits one option alone."""
    assert cli._parser().parse_args(["run", "in.xml", "--mark-f", "3", "--keep-m=4"]).mark_force == 3.0
