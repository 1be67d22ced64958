"""A million structures asked and answered on the wire, by real i-PI, with the free particle: does anything grow?

    python benchmarks/soak.py [--exchanges 1000000] [--beads 64] [--batch 64]

One exchange is one structure that i-PI has sent and got an answer for. Memory (resident set), open descriptors and
threads of the server are read every so often; the first tenth is warm-up, and a straight line through the rest is the
slope. The command fails where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from beadwork.events import Evaluated, Event
from beadwork.ipi.transport import Address, Line
from beadwork.observe.record import Record
from beadwork.potential.analytic import FreeParticle
from beadwork.potential.potential import Potential
from beadwork.serve.server import Server
from beadwork.serve.service import Service

ROOT = Path(__file__).resolve().parents[1]
#: MB over the whole of the fitted part that are the allocator's noise
NOISE = 4.0
WARM_UP = 0.1

XML = """<simulation verbosity='quiet' sockets_prefix='{folder}/s-' safe_stride='1000000'>
<output prefix='run'><properties stride='{stride}' filename='out'> [ step, temperature ] </properties></output>
<total_steps>{steps}</total_steps><prng><seed>4242</seed></prng>
<ffsocket name='free' mode='unix' pbc='False'><address>free</address>{batch}<latency>1e-4</latency></ffsocket>
<system><initialize nbeads='{beads}'><file mode='xyz'>init.xyz</file>
<velocities mode='thermal' units='kelvin'>300</velocities></initialize><forces><force forcefield='free'/></forces>
<ensemble><temperature units='kelvin'>300</temperature></ensemble><motion mode='dynamics'><dynamics mode='nvt'>
<timestep units='femtosecond'>0.5</timestep><thermostat mode='pile_l'><tau units='femtosecond'>50</tau></thermostat>
</dynamics></motion></system></simulation>
"""
ATOMS = """3
# CELL(abcABC): 10 10 10 90 90 90 cell{angstrom} positions{angstrom}
O 0 0 0
H 0.957 0 0
H -0.24 0.927 0
"""


@dataclass(frozen=True)
class Sample:
    """What one process holds. rss: MB."""

    exchanges: int
    rss: float
    descriptors: int
    threads: int
    ipi: float  # i-PI's own resident set, MB


@dataclass(frozen=True)
class Result:
    """One run. Slopes: a million exchanges' worth, over the part after the warm-up."""

    beads: int
    batch: int
    steps: int
    exchanges: int
    seconds: float
    rss_first: float
    rss_last: float
    rss_slope: float
    rss_growth: float  # MB that the line rises in the part it was fitted to
    descriptors_first: int
    descriptors_last: int
    descriptors_slope: float
    threads_last: int
    ipi_slope: float
    ipi_exit_code: int

    @property
    def steady(self) -> bool:
        """Nothing grows, and i-PI has ended well."""
        same = self.descriptors_first == self.descriptors_last and abs(self.descriptors_slope) < 0.1
        return self.ipi_exit_code == 0 and self.rss_growth < NOISE and same

    def __str__(self) -> str:
        return (
            f"{self.exchanges} exchanges in {self.steps} steps and {self.seconds:.0f} s, "
            f"{self.exchanges / self.seconds:.0f} a second; memory {self.rss_first:.1f} MB after the warm-up, "
            f"{self.rss_last:.1f} MB at the end, slope {self.rss_slope:+.2f} MB a million exchanges; descriptors "
            f"{self.descriptors_first} and {self.descriptors_last}, slope {self.descriptors_slope:+.2f} a million"
        )


def _resident(pid: int | str) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(folder: Path, steps: int, beads: int, batch: int, tell: Callable[[str], None] = lambda line: None) -> Result:
    """Run i-PI for so many steps of a ring polymer of free water molecules, and serve it from this process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "init.xyz").write_text(ATOMS)
    tag = f"<batch_size>{batch}</batch_size>" if batch > 1 else ""
    xml = XML.format(folder=folder, stride=max(1, steps // 100), steps=steps, batch=tag, beads=beads)
    (folder / "input.xml").write_text(xml)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [str(Path(sys.executable).with_name("i-pi")), "input.xml"]
    with open(folder / "i-pi.log", "wb") as log:
        ipi = subprocess.Popen(program, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)
    record = Record(folder)
    samples: list[Sample] = []
    done = 0
    planned = (steps + 1) * beads
    every = max(1, planned // 400)  # few: what is kept of them is memory too

    def watch(event: Event) -> None:
        nonlocal done
        record(event)
        if not isinstance(event, Evaluated):
            return
        before, done = done, done + event.evaluated
        if before // every != done // every and ipi.poll() is None:
            descriptors = len(os.listdir("/proc/self/fd"))
            samples.append(Sample(done, _resident("self"), descriptors, threading.active_count(), _resident(ipi.pid)))
            if len(samples) % 40 == 0:
                tell(f"{done} of {planned}: {samples[-1].rss:.1f} MB, {descriptors} descriptors")

    wanted = -(-beads // batch)
    service = Service(
        Line(Address(path=folder / "s-free"), wanted), Potential(FreeParticle()), np.array([8, 1, 1]), beads
    )
    begin = time.monotonic()
    try:
        Server([service], watch=watch, stopped=lambda: ipi.poll() is not None).run()
        code = ipi.wait(60)
    finally:
        ipi.kill()
        ipi.wait()
        record.close({})
    seconds = time.monotonic() - begin
    late = [sample for sample in samples if sample.exchanges > WARM_UP * planned]
    x = np.array([sample.exchanges for sample in late]) / 1e6

    def slope(values: list[float]) -> float:
        return float(np.polyfit(x, values, 1)[0])

    rss = slope([sample.rss for sample in late])
    return Result(
        beads,
        batch,
        steps,
        done,
        seconds,
        late[0].rss,
        late[-1].rss,
        rss,
        rss * float(x[-1] - x[0]),
        late[0].descriptors,
        late[-1].descriptors,
        slope([sample.descriptors for sample in late]),
        late[-1].threads,
        slope([sample.ipi for sample in late]),
        code,
    )


def page(result: Result) -> str:
    """The figures as Markdown."""
    used = ", ".join(f"{name} {version(name)}" for name in ("beadwork", "ipi", "numpy"))
    rows = {
        "beads, structures a batch": f"{result.beads}, {result.batch}",
        "steps of i-PI": f"{result.steps}",
        "exchanges": f"{result.exchanges}",
        "seconds": f"{result.seconds:.0f}",
        "exchanges a second": f"{result.exchanges / result.seconds:.0f}",
        "memory after the first tenth, MB": f"{result.rss_first:.1f}",
        "memory at the end, MB": f"{result.rss_last:.1f}",
        "slope of memory, MB a million exchanges": f"{result.rss_slope:+.2f}",
        "descriptors after the first tenth, at the end": f"{result.descriptors_first}, {result.descriptors_last}",
        "slope of descriptors, a million exchanges": f"{result.descriptors_slope:+.2f}",
        "threads at the end": f"{result.threads_last}",
        "i-PI's own slope of memory, MB a million exchanges": f"{result.ipi_slope:+.2f}",
    }
    return "\n".join(
        [
            "# Soak",
            "",
            "Real i-PI, a ring polymer of one free water molecule, the free particle behind the engines' contract: the "
            "wire and everything around an evaluation, a million times. An exchange is a structure asked and answered. "
            "Slopes are those of a straight line through what was read after the first tenth. `make soak` runs it, "
            f"fails where memory rises by more than {NOISE:g} MB or a descriptor is kept, and writes this page.",
            "",
            f"{date.today().isoformat()}, {used}, Python {platform.python_version()}, {platform.system()} "
            f"{platform.machine()}, {os.cpu_count()} cores.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "",
        ]
    )


def main() -> int:
    """Run, print, write docs/soak.md; 1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--beads", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "soak.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beadwork-soak-") as folder:
        steps = -(-options.exchanges // options.beads)
        result = soak(Path(folder), steps, options.beads, options.batch, lambda line: print(line, flush=True))
    print(result)
    print(json.dumps(asdict(result)))
    options.out.write_text(page(result))
    if not result.steady:
        print("soak: something grows, or i-PI did not end well", file=sys.stderr)
    return 0 if result.steady else 1


if __name__ == "__main__":
    sys.exit(main())
