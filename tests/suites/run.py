"""Other people's tests with beadwork's client in place of theirs, and docs/suites.md with what came of it.

    python tests/suites/run.py [--ipi CHECKOUT]

i-PI's own come from its repository at the tag below (cloned unless a checkout is given), and run against the i-PI that
is installed here; ASE's come with the ASE that is installed here. Nothing of either is kept.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY, TAG = "https://github.com/i-pi/i-pi", "v3.3.0"
#: seconds that a run of theirs may take
TIMEOUT = 120
#: the potentials of i-PI's drivers that have an analytic twin here
OURS = {"harm3d", "gas"}
REGRESSION = "ipi_tests/regression_tests"
COMMUNICATION = "ipi_tests/unit_tests/communication"
SOCKETIO = "ase/test/calculator/socketio"
#: the restart tests whose potential is one of ours
RESTARTS = ("dynamics", "minimize")

#: why a test says nothing about a client of i-PI's sockets
NO_CLIENT = {
    f"{COMMUNICATION}/test_ffdirect.py": "a potential inside i-PI's process: no socket, no client",
    f"{COMMUNICATION}/test_ffmpi.py": "MPI instead of sockets, and a driver that the test itself plays",
    f"{COMMUNICATION}/test_ffmpi_mpirun.py": "MPI instead of sockets",
    f"{COMMUNICATION}/test_ffmpi_multi_mpirun.py": "MPI instead of sockets",
    f"{COMMUNICATION}/test_ffmpi_water_mpirun.py": "MPI instead of sockets",
    f"{SOCKETIO}/test_socket_io_mpi_line.py": "builds command lines of Quantum Espresso and Abinit, opens no socket",
    f"{SOCKETIO}/test_integration.py": "the client is Quantum Espresso or Abinit itself",
    f"{SOCKETIO}/test_h2_stiffness.py": "the client is Abinit, Quantum Espresso, NWChem, FHI-aims or Siesta itself",
}


@dataclass(frozen=True)
class Row:
    """One test. answered: structures that our client answered in it, None where it was not run."""

    suite: str
    test: str
    result: str
    answered: int | None = None

    def __str__(self) -> str:
        return f"| {self.suite} | {self.test} | {'' if self.answered is None else self.answered} | {self.result} |"


def checkout(given: Path | None, folder: Path) -> Path:
    """Copy what is needed of i-PI's repository: not `ipi` itself, for the installed one is tested."""
    source = given
    if source is None:
        source = folder / "clone"
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", TAG, REPOSITORY, str(source)]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{REPOSITORY} cannot be cloned; give a checkout of {TAG} with --ipi (make suites IPI=…)")
    if not (source / REGRESSION).is_dir():
        raise SystemExit(f"{source} is no checkout of i-PI's repository: it has no {REGRESSION}; give one of {TAG}")
    copy = folder / "i-pi"
    shutil.copytree(source / "ipi_tests", copy / "ipi_tests")
    (copy / "drivers" / "py").mkdir(parents=True)
    shutil.copy(HERE / "ipi_driver.py", copy / "drivers" / "py" / "driver.py")
    return copy


def foreign(tests: Path) -> Counter[str]:
    """Remove the regression tests of other potentials, and count them by potential."""
    counted: Counter[str] = Counter()
    for case in sorted(path.parent for path in tests.rglob("input.xml")):
        settings = case / "test_settings.dat"
        lines = settings.read_text().splitlines() if settings.exists() else []
        models = {line.split()[1] for line in lines if line.startswith("driver_model")}
        python = any(line.split() == ["driver_code", "python"] for line in lines)
        if not models or python or not models <= OURS:
            name = ", ".join(sorted(models)) or "no driver of its own"
            counted[name + (" (Python driver)" if python else "")] += 1
            shutil.rmtree(case)
    return counted


def program(folder: Path) -> Path:
    """A folder with our `i-pi-driver`, to be first on PATH."""
    folder.mkdir()
    script = folder / "i-pi-driver"
    script.write_text(f"#!{sys.executable} -IS\n{(HERE / 'thin.py').read_text()}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return folder


def pytest(suite: str, where: Path, tests: list[str], folder: Path, **environment: str) -> list[Row]:
    """Run tests of theirs as they stand, and return a row for each."""
    report = folder / f"{suite}.xml"
    counts = folder / f"counts-{suite}"
    counts.mkdir()
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    python_path = os.pathsep.join([str(HERE), str(where)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "--rootdir", str(where), f"--junitxml={report}"]
    subprocess.run(
        [*command, "-p", "no:cacheprovider", *tests],
        cwd=where,
        env={
            **os.environ,
            "PATH": path,
            "PYTHONPATH": python_path,
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "BEADWORK_SUITES_FOLDER": str(counts),
            "BEADWORK_SUITES_TIMEOUT": str(TIMEOUT),
            "BEADWORK_SUITES_CLIENT": str(folder / "client"),
            **environment,
        },
        check=False,
    )
    return [_row(suite, case, where) for case in ET.parse(report).iter("testcase")]


def _row(suite: str, case: ET.Element, where: Path) -> Row:
    answered = next((int(p.get("value", 0)) for p in case.iter("property") if p.get("name") == "answered"), 0)
    name = case.get("name", "").replace("[tests/", "[")
    file = case.get("classname", "").rpartition(".")[2]
    bad = next((child for tag in ("failure", "error", "skipped") if (child := case.find(tag)) is not None), None)
    if bad is None:
        result = "passes" if answered else "**FAILED**: passes, but without our client"
    else:
        text = " ".join((bad.get("message") or "").split())[:160].replace("|", "\\|")
        result = f"skipped: {text}" if bad.tag == "skipped" else f"**FAILED**: {text}"
    return Row(suite, f"{file}: {name}", result, answered)


def page(rows: list[Row], others: list[Row]) -> str:
    """The table as Markdown."""
    good = sum(row.result == "passes" for row in rows)
    used = ", ".join(f"{name} {version(name)}" for name in ("beadwork", "ipi", "ase"))
    return "\n".join(
        [
            "# Other people's tests",
            "",
            "The tests of i-PI and ASE that have a client at the other end of a socket, with beadwork's client in "
            "place of theirs. `make suites` fetches and runs them and writes this page.",
            "",
            f"{good} of {len(rows)} pass on {date.today().isoformat()}, with {used}, Python "
            f"{platform.python_version()}; i-PI's tests are those of its repository at {TAG}, run against the "
            "installed i-PI. *Structures* counts what beadwork's client answered, so that a test that passes without "
            "it would be seen.",
            "",
            "How the client is put there: `i-pi-driver` is found first on PATH, `drivers/py/driver.py` is replaced, "
            "and ASE's `SocketClient` and `PySocketIOClient` are replaced before its tests import them "
            "([tests/suites](../tests/suites)). All of them end in beadwork's own server, transport and protocol, "
            "with an analytic potential, or EMT for ASE, behind the engines' contract.",
            "",
            "What was changed for it: the tests' files are as they stand, their limit of 20 s a run is "
            f"{TIMEOUT} s. `i-pi-driver` starts at once, because one process has imported beadwork beforehand and "
            "forks for each: the restart tests give a client less than a second. For ASE's tests the units are "
            "converted with ASE's constants: i-PI's differ in the ninth digit, and the tests ask for more. The gas "
            "has a virial of 1e-200 Hartree in place of zero, as in i-PI's own driver.",
            "",
            "| suite | test | structures | result |",
            "|---|---|---|---|",
            *map(str, rows),
            "",
            "## Not run",
            "",
            "| suite | test | | why it does not apply |",
            "|---|---|---|---|",
            *map(str, others),
            "",
        ]
    )


def main() -> int:
    """Fetch, run, write; 1 where a test that applies does not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ipi", type=Path, help=f"a checkout of i-PI's repository at {TAG}; cloned if not given")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "suites.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beadwork-suites-") as name:
        folder = Path(name).resolve()
        copy = checkout(options.ipi, folder)
        program(folder / "bin")
        skipped = foreign(copy / REGRESSION / "tests")
        restarts = [f"{REGRESSION}/test_restart.py::test_restart_matches_regression_reference[{r}]" for r in RESTARTS]
        rows = pytest("i-PI communication", copy, [f"{COMMUNICATION}/test_sockets.py"], folder)
        waiting = subprocess.Popen([sys.executable, str(HERE / "client.py"), "--wait", str(folder / "client")])
        try:
            rows += pytest("i-PI regression", copy, [f"{REGRESSION}/test_run.py", *restarts], folder)
        finally:
            waiting.terminate()
            waiting.wait()
        spec = find_spec("ase")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        site = Path(spec.submodule_search_locations[0]).parent
        mine = [f"{SOCKETIO}/test_ipi_protocol_bfgs.py", f"{SOCKETIO}/test_python_interface.py"]
        rows += pytest("ASE", site, mine, folder, BEADWORK_SUITES_ASE="1")
    others = [Row("ASE" if f.startswith("ase") else "i-PI", f, why) for f, why in NO_CLIENT.items()]
    others += [
        Row("i-PI", f"{REGRESSION}: {count} of {model}", "another potential than harm3d and gas")
        for model, count in sorted(skipped.items())
    ]
    others.append(Row("i-PI", f"{REGRESSION}/test_restart.py: four more", "another potential than harm3d and gas"))
    options.out.write_text(page(rows, others))
    failed = [row for row in rows if row.result != "passes"]
    print(f"{len(rows) - len(failed)} of {len(rows)} pass; {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
