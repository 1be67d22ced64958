"""Try a wheel as a stranger has it: python packaging/check.py dist/beadwork-….whl [PYTHON …]; `make wheel` does.

For every Python that is there: an empty environment in an empty HOME, the wheel with the versions of constraints.txt,
and then `beadwork demo`, `report`, a second run in a folder that is in use, a Δ of another baseline and one that names
none, `beadwork init` of each kind, two steps each, and the report of a cluster, which has no g(r). It prints what took
how long, and ends with 1 where something was not as it should be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWN = 'aria-label="radial distribution function'
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")


def environment(home: Path) -> dict[str, str]:
    """Ours without what a stranger has not: our HOME, our environment, our settings of threads."""
    ours = ("PYTHON", "VIRTUAL_ENV", "XDG_", "OMP_", "MKL_", "SYMMETRIX_", "PIP_CACHE_DIR")
    left = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    path = os.pathsep.join(part for part in left["PATH"].split(os.pathsep) if ".venv" not in part)
    return {**left, "HOME": str(home), "PATH": path}


def timed(command: list[str], folder: Path, said: dict[str, str], code: int = 0) -> tuple[float, str]:
    """Run it, and return its seconds and what it said. Raises SystemExit where it ends with another code."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=said, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}, not {code}:\n{done.stdout[-4000:]}")
    return time.monotonic() - began, done.stdout


def try_wheel(wheel: Path, python: str) -> str:
    """One row: versions and seconds."""
    with tempfile.TemporaryDirectory(prefix="beadwork-wheel-") as name:
        home = Path(name)
        env = environment(home)
        version = timed([python, "--version"], home, env)[1].split()[1]
        timed([python, "-m", "venv", "env"], home, env)
        bin_ = home / "env" / "bin"
        install = [str(bin_ / "python"), "-m", "pip", "install", "-c", str(ROOT / "constraints.txt"), str(wheel)]
        installed, _ = timed(install, home, env)
        env["PATH"] = f"{bin_}{os.pathsep}{env['PATH']}"
        demo, told = timed(["beadwork", "demo", "demo"], home, env)
        summary = json.loads((home / "demo" / "summary.json").read_text())
        assert summary["steps"] == 120, summary
        assert "native" in told, told
        timed(["beadwork", "report", "demo"], home, env)
        page = (home / "demo" / "report.html").read_text()
        assert "not installed" not in page
        assert DRAWN in page
        again = second(home / "demo", env)
        baselines(home / "demo", env)
        kinds = re.findall(r"\{([a-z,]+)\}", timed(["beadwork", "init", "--help"], home, env)[1])[0].split(",")
        for kind in kinds:
            timed(["beadwork", "init", kind, "--kind", kind], home, env)
            xml = home / kind / "input.xml"
            xml.write_text(re.sub(r"<total_steps>\d+<", "<total_steps>2<", xml.read_text()))
            timed(["beadwork", "run", "run.toml"], home / kind, env)
            assert json.loads((home / kind / "summary.json").read_text())["steps"] == 2
        timed(["beadwork", "report", "cluster"], home, env)
        assert "there is no volume" in (home / "cluster" / "report.html").read_text()
        assert DRAWN not in (home / "cluster" / "report.html").read_text()
        size = sum(file.stat().st_size for file in (home / "env").rglob("*") if file.is_file()) / 1e6
        torch = timed(["python", "-c", "import torch; print(torch.__version__)"], home, env)[1].strip()
        cells = (version, torch, f"{installed:.0f}", f"{size:.0f}", f"{demo:.0f}", f"{again:.0f}", " ".join(kinds))
        return f"| {' | '.join(cells)} |"


def second(folder: Path, env: dict[str, str]) -> float:
    """The demonstration once more, with kernels that are there: its seconds. Another run in its folder is refused."""
    # of the run before, which would be taken for that of this one
    (folder / "status.json").unlink()
    began = time.monotonic()
    with subprocess.Popen(
        ["beadwork", "run", "run.toml"], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        while not (folder / "status.json").exists():
            assert first.poll() is None
            time.sleep(0.1)
        _, said = timed(["beadwork", "run", "run.toml"], folder, env, code=2)
        assert "a run is under way" in said, said
        assert first.wait() == 0
    return time.monotonic() - began


def baselines(folder: Path, env: dict[str, str]) -> None:
    """A Δ of another baseline is refused; of one that names none the log says so, and the report."""
    xml = folder / "input.xml"
    xml.write_text(re.sub(r"<total_steps>\d+<", "<total_steps>2<", xml.read_text()))
    timed(["beadwork", "init", "other", "--kind", "cluster"], folder, env)
    typed = ["beadwork", "run", "run.toml", "--baseline", "other/models/water-highlevel/baseline"]
    _, said = timed(typed, folder, env, code=4)
    assert "their sum means nothing" in said, said
    card = folder / "models" / "water-revpbe0-d3" / "delta-2" / "card.toml"
    card.write_text(re.sub(r"(?m)^baseline = .*\n", "", card.read_text()))
    _, said = timed(["beadwork", "run", "run.toml"], folder, env)
    timed(["beadwork", "report", "."], folder, env)
    for told in (said, (folder / "report.html").read_text()):
        assert "card of delta-2 does not say of which baseline" in told, told[-4000:]


def runs(python: str) -> bool:
    """Whether it is there; a version manager may have a name for what is not."""
    return bool(shutil.which(python)) and subprocess.run([python, "-V"], capture_output=True).returncode == 0


def main() -> None:
    """Every Python that was named, or else is on PATH."""
    wheel = Path(sys.argv[1]).resolve()
    print("| Python | torch | pip install, s | environment, MB | first demo, s | again, s | init, two steps each |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for python in sys.argv[2:] or filter(runs, PYTHONS):
        print(try_wheel(wheel, python), flush=True)


if __name__ == "__main__":
    main()
