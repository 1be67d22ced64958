"""Simulate inputs/zundel in pieces, each with its own seed, as many as there is time for; each can be interrupted.

    python models/zundel-cc/simulate.py quantum build/zundel-cc/runs --until 18:00 --keep models/zundel-cc/runs
    python models/zundel-cc/simulate.py classical build/zundel-cc/runs --pieces 20

A piece is 1 ps, which is thrown away, and 10 ps. It is a folder of its own, begun at once where it was not and gone on
with from its RESTART where it was; --until ends it with a RESTART. What is kept of a finished piece: NAME.csv.gz, dc
and d_OO of the centroid and the members' energies every ten steps (`beadwork analyse series`), NAME.xml.gz, its
RESTART, and a line in pieces.csv with its seed, steps and seconds.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
INPUTS = HERE.parents[1] / "inputs" / "zundel"
#: the input of each kind, and what its seeds count from
KINDS = {"classical": ("classical.xml", 1000), "quantum": ("input.xml", 2000), "eco": ("eco.xml", 3000)}
COORDINATES = ("dc:O1,O2", "distance:O1,O2")
BEADWORK = (sys.executable, "-m", "beadwork")
#: exit code of coreutils' timeout
OUT_OF_TIME = 124
EQUILIBRATION = 1.0  # ps
STEP = 0.0005  # ps


def main() -> None:
    """Run piece after piece."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path, help="where the pieces run")
    parser.add_argument("--keep", type=Path, help="where the series of finished pieces go (default: the folder)")
    parser.add_argument("--pieces", type=int, default=1000, help="how many in all")
    parser.add_argument("--first", type=int, default=0, help="number of the first piece")
    parser.add_argument("--ps", type=float, default=10.0, help="length of a piece after its equilibration")
    parser.add_argument("--until", help="HH:MM UTC of today, when the piece under way is ended with a RESTART")
    parser.add_argument("--baseline", type=Path, default=HERE / "baseline")
    parser.add_argument("--delta", type=Path, default=HERE)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--mark-spread", default="5", help="eV/Å of force spread at which a run is stopped")
    options = parser.parse_args()
    keep = options.keep or options.folder
    keep.mkdir(parents=True, exist_ok=True)
    end = None if options.until is None else _today(options.until)
    for number in range(options.first, options.first + options.pieces):
        if (keep / f"{options.kind}-{number:02}.csv.gz").exists():
            continue
        if end is not None and time.time() > end:
            return
        if not _piece(options, number, keep, end):
            return


def _today(text: str) -> float:
    """Seconds since 1970 of HH:MM UTC."""
    hour, minute = map(int, text.split(":"))
    return datetime.datetime.now(datetime.timezone.utc).replace(hour=hour, minute=minute, second=0).timestamp()


def _piece(options: argparse.Namespace, number: int, keep: Path, end: float | None) -> bool:
    """Begin or go on with a piece; whether it is finished, and kept."""
    xml, seeds = KINDS[options.kind]
    name, steps = f"{options.kind}-{number:02}", round((options.ps + EQUILIBRATION) / STEP)
    folder = (options.folder / name).absolute()
    if not (folder / "done").exists() and not _run(options, folder, INPUTS / xml, seeds + number, steps, end):
        print(f"{name} is not finished: the same command goes on with it", flush=True)
        return False
    series = [*BEADWORK, "analyse", "series", str(folder), "--coordinate", *COORDINATES]
    subprocess.run([*series, "--not-periodic", "--skip", str(EQUILIBRATION), "--out", str(folder / name)], check=True)
    # i-PI's comment at its head names the machine and its folders
    restart = re.sub(rb"\A<!--.*?-->\s*", b"", (folder / "RESTART").read_bytes(), flags=re.DOTALL)
    (keep / f"{name}.xml.gz").write_bytes(gzip.compress(restart, mtime=0))
    _note(keep / "pieces.csv", name, seeds + number, steps, (folder / "seconds").read_text().split())
    # last: with it the piece counts as finished
    shutil.copy(folder / f"{name}.csv.gz", keep)
    return True


def _run(options: argparse.Namespace, folder: Path, xml: Path, seed: int, steps: int, end: float | None) -> bool:
    """Begin or go on with the simulation of a piece; whether it came to its last step."""
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / "RESTART"
    if not start.exists():
        shutil.copy(INPUTS / "init.xyz", folder)
        text = xml.read_text(encoding="utf-8")
        text = re.sub(r"<seed>\d+</seed>", f"<seed>{seed}</seed>", text)
        text = re.sub(r"<total_steps>\d+</total_steps>", f"<total_steps>{steps}</total_steps>", text)
        text = re.sub(r"<address>.*</address>", f"<address>beadwork-h5o2-{folder.name}</address>", text)
        start = folder / "input.xml"
        start.write_text(text, encoding="utf-8")
    command = [*BEADWORK, "run", start.name, "--not-periodic", "--threads", "1", "--dtype", options.dtype]
    command += ["--mark-spread", options.mark_spread]
    command += ["--baseline", str(options.baseline.absolute()), "--delta", str(options.delta.absolute())]
    if end is not None:  # SIGTERM, at which i-PI writes a RESTART
        command = ["timeout", "--foreground", f"{max(1.0, end - time.time()):.0f}", *command]
    begun = time.time()
    with open(folder / "log", "a", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    with open(folder / "seconds", "a", encoding="utf-8") as file:
        file.write(f"{time.time() - begun:.0f}\n")
    if code not in (0, OUT_OF_TIME):
        raise SystemExit(f"{folder.name} ended with {code}: {folder / 'log'}")
    if code == 0:
        (folder / "done").touch()
    return code == 0


def _note(table: Path, name: str, seed: int, steps: int, seconds: list[str]) -> None:
    """Add a line on a piece."""
    new = not table.exists()
    with open(table, "a", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if new:
            rows.writerow(["piece", "seed", "steps", "seconds"])
        rows.writerow([name, seed, steps, sum(map(int, seconds))])


if __name__ == "__main__":
    main()
