"""beadwork against everything that drives MACE through i-PI: one command, one table, one plot.

`python benchmarks/run.py` finds each peer's best settings, starts it beside beadwork and nothing else, checks that they
agree, and lets them take turns. What is measured is written to OUT/cpu.json as it goes; the same command goes on from
there after an interruption. `--quick` only checks, in a minute or two, that everything works.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import peers as p
from peers import Builder, Peer, PeerError, Place, Setting
from system import QUICK, Plan, Size, committees, models

from report import report

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("beadwork", "ipi", "mace-torch", "torch", "symmetrix-xl", "ase", "numpy", "numba", "vesin", "e3nn")
#: potential at step 0 and at the last step, of its own size; forces of the largest one (i-PI prints six digits)
TOLERANCE = {"potential": 1e-6, "force": 2e-5, "trajectory": 1e-4}
#: seconds kept back for a last word
MARGIN = 60.0
#: evaluations from one with a trunk's force spread to the next, as it is by default
FORCE_SPREAD_EVERY = 10
#: of the time; the rest is for the committee, whose rounds are the longest
LOOP_SHARE = 0.65

Choice = tuple[Builder, Setting]


def candidates(cores: int) -> dict[str, list[Choice]]:
    """What each peer may be run with; the best by a short search is taken, and P2 is run with the defaults as well."""
    one, all_ = Setting(1), Setting(cores)
    split = Setting(1, clients=cores)  # a client a core
    waits = [replace(all_, latency=latency) for latency in (1e-3, 1e-2)]
    return {
        "P1": [(p.py_driver, all_), (p.py_driver, split)],
        "P2 defaults": [(p.py_driver_batched, Setting(None))],
        "P2": [(p.py_driver_batched, s) for s in (*waits, replace(split, latency=1e-3))],
        "P3": [(p.ffdirect, all_), (p.ffdirect, one)],
        "P4": [(p.ase_client, all_), (p.ase_client, split)],
        "torchscript": [(p.ours_torchscript, s) for s in (*waits, replace(split, latency=1e-3))],
        "native": [(p.ours_native, s) for s in (all_, *waits, replace(split, latency=1e-3))],
        "P5": [(p.ffcommittee_sockets, one), (p.ffcommittee_direct, all_)],
        "committee": [(p.ours_committee, s) for s in (*waits, replace(split, latency=1e-3))],
        "trunk": [(p.ours_trunk, s) for s in (*waits, replace(split, latency=1e-3))],
        "gas": [(p.gas, s) for s in (one, replace(one, latency=1e-3))],
        "zero": [(p.ours_zero, s) for s in (one, replace(one, latency=1e-3))],
    }


#: who takes turns with whom, with nothing else in memory: peers that wait slow some of those that work by 40 %, and
#: beadwork hardly. The first is what the others' forces are held to.
SITTINGS = {
    "wire": [("gas", "zero")],
    "loop": [
        *(("native", peer) for peer in ("P3", "P2", "P2 defaults", "P1", "P4")),
        *(("torchscript", peer) for peer in ("P2", "P2 defaults")),
    ],
    "committee": [("committee", "trunk", "P5")],
}


def names(*groups: str) -> list[str]:
    """Who sits in these groups, each once."""
    return list(dict.fromkeys(name for group in groups for sitting in SITTINGS[group] for name in sitting))


class Bench:
    """One benchmark and its file."""

    def __init__(self, plan: Plan, out: Path, work: Path, minutes: float) -> None:
        self.plan = plan
        self.out = out
        self.work = work
        self.begin = time.monotonic()
        self.seconds = 60 * minutes - MARGIN
        self.cores = len(os.sched_getaffinity(0))
        self.choices = candidates(self.cores)
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "cpu.json"
        fresh = {
            "plan": plan.as_json(),
            "machine": machine(),
            "settings": {},
            "parity": {},
            "tolerance": TOLERANCE,
            "errors": {},
            "rounds": {name: [] for name in SITTINGS},
        }
        old = json.loads(self.file.read_text()) if self.file.exists() else {}
        same = all(old.get(key) == json.loads(json.dumps(fresh[key])) for key in ("plan", "machine"))
        if old and not same:
            say("the results that are there are of another plan, machine or version: starting anew")
        self.data: dict[str, Any] = old if same else fresh
        self.save()

    def save(self) -> None:
        """Write what is known so far."""
        self.data["date"] = datetime.now(timezone.utc).isoformat(timespec="minutes")
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        temporary.replace(self.file)

    def left(self, share: float) -> float:
        """Seconds until this share of the time is used up."""
        return self.begin + share * self.seconds - time.monotonic()

    def peer(self, name: str, choice: Choice, size: Size) -> Peer:
        """A peer of this name, not started."""
        build, setting = choice
        folder = self.work / f"models-{size.channels}-{size.cutoff:g}"
        folder.mkdir(parents=True, exist_ok=True)
        bundles = [] if name in names("wire") else models(folder, size.channels, size.cutoff, 1)
        if name in names("committee"):
            bundles += committees(folder, size.channels, size.cutoff, size.members)
        address = f"beadwork-bench-{os.getpid()}-{name.replace(' ', '-')}"
        files = [bundle.with_suffix(".model") for bundle in bundles[: 1 + size.members]]
        place = Place(self.work / "run" / name.replace(" ", "-"), size, files, bundles, address)
        return Peer(name, place, setting, build, self.plan.patience)

    def parts(self, name: str, threads: int) -> None:
        """Run a part that needs no i-PI, in a process of its own."""
        if name in self.data:
            return
        say(name)
        folder = self.work / f"models-{self.plan.loop.channels}-{self.plan.loop.cutoff:g}"
        folder.mkdir(parents=True, exist_ok=True)
        models(folder, self.plan.loop.channels, self.plan.loop.cutoff, 1 + self.plan.loop.members)
        command = [sys.executable, str(ROOT / "benchmarks" / "parts.py"), name, "--models", str(folder)]
        command += ["--threads", str(threads), *(["--quick"] if self.plan == QUICK else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            self.fail(name, (done.stderr.strip().splitlines() or ["no last words"])[-1])
        else:
            self.data[name] = json.loads(done.stdout.splitlines()[-1])
            self.save()

    def fail(self, name: str, why: str) -> None:
        """Record what went wrong with a peer; the others go on."""
        say(f"{name} FAILED: {why}")
        self.data["errors"][name] = why
        self.save()

    def search(self, name: str, size: Size | None, steps: int, warm_up: int) -> None:
        """Find a peer's best settings, each candidate started alone for a few steps. size None: take the first."""
        if name in self.data["settings"]:
            return
        tried: dict[str, float | None] = {}
        choices = self.choices[name]
        small = size or self.plan.loop
        for build, setting in choices if size and len(choices) > 1 else []:
            label = f"{build.__name__}, {setting}"
            peer = self.peer(name, (build, setting), small)
            with p.running([peer]):
                try:
                    peer.start()
                    tried[label] = float(np.median(peer.turn(steps, warm_up)))
                except PeerError as error:
                    say(f"{name}: {label}: {error}")
                    tried[label] = None
            say(f"search: {name}: {label}: {tried[label]} s per step")
        seconds = [np.inf if s is None else s for s in tried.values()]
        best = int(np.argmin(seconds)) if tried else 0
        build, setting = choices[best]
        self.data["settings"][name] = {
            "best": best,
            "label": f"{build.__name__}, {setting}",
            "seconds_a_step": tried,
            "waters": size.waters if size else None,
        }
        self.save()

    def group(self, name: str, size: Size, steps: int, warm_up: int, share: float) -> None:
        """All sittings of a group. share: of the time in all, after which no round is begun."""
        for sitting in SITTINGS[name]:
            self.sitting(name, sitting, size, steps, warm_up, share)

    def sitting(self, group: str, names: Sequence[str], size: Size, steps: int, warm_up: int, share: float) -> None:
        """Start these peers, check that they agree, and let them take turns; go on where an earlier command ended."""
        rounds = self.data["rounds"][group]
        done = sum(set(names) <= set(r) for r in rounds)
        if done >= self.plan.rounds or self.left(share) <= 0:
            return
        members = [self.peer(n, self.choices[n][self.data["settings"][n]["best"]], size) for n in names]
        with p.running(members):
            ready = self.ready(members)
            longest = 0.0
            while done < self.plan.rounds and len(ready) > 1 and self.left(share) > 1.1 * longest:
                begin = time.monotonic()
                times: dict[str, list[float]] = {}
                # every other round backwards, so that no peer always follows the same one
                for peer in list(ready) if done % 2 == 0 else ready[::-1]:
                    try:
                        times[peer.name] = _turn(peer, steps, warm_up)
                        say(f"{group}: round {done + 1}: {peer.name}: {np.median(times[peer.name]):.4f} s/step")
                    except PeerError as error:
                        self.fail(peer.name, str(error))
                        peer.end()
                        ready.remove(peer)
                rounds.append(times)
                done += 1
                self.save()
                longest = max(longest, time.monotonic() - begin)
            self.trajectories(ready)

    def ready(self, members: Sequence[Peer]) -> list[Peer]:
        """Start them, and return those that agree with the first one."""
        ready: list[Peer] = []
        for peer in members:
            say(f"starting {peer.name} ({self.data['settings'][peer.name]['label']})")
            try:
                peer.start()
            except PeerError as error:
                self.fail(peer.name, str(error))
                continue
            first = ready[0] if ready else peer
            parity = compare(first, peer)
            self.data["parity"][peer.name] = {"with": first.name, **parity}
            if all(parity[key] <= TOLERANCE[key] for key in parity):
                ready.append(peer)
            else:
                self.fail(peer.name, f"its answer is not that of {first.name}: {parity}")
                peer.end()
        self.save()
        return ready

    def trajectories(self, ready: Sequence[Peer]) -> None:
        """Compare the last step that all of them reached."""
        if not ready:
            return
        runs = {peer.name: peer.properties() for peer in ready}
        last = min(len(run) for run in runs.values()) - 1
        first = runs[ready[0].name][last]
        for name, run in runs.items():
            away = float(np.abs(run[last, 1:] - first[1:]).max() / max(1e-12, abs(first[2])))
            if not away <= TOLERANCE["trajectory"]:
                self.fail(name, f"its trajectory left that of {ready[0].name} by {away:.1e}; do not trust its time")
            self.data["parity"][name] |= {
                "trajectory_steps": last,
                "trajectory": away,
            }
        self.save()


def _turn(peer: Peer, steps: int, warm_up: int) -> list[float]:
    """Seconds of each timed step; of a trunk the mean over one that has the force spread and the others.

    The compiled engine makes ten steps while a peer makes one: a single one of half a second would be a short
    measurement on a machine that other programs share.
    """
    if peer.name == "trunk":
        return [float(np.mean(peer.turn(FORCE_SPREAD_EVERY, warm_up)))]
    return peer.turn(10 * steps if peer.name == "native" else steps, warm_up)


def compare(first: Peer, other: Peer) -> dict[str, float]:
    """Relative differences at step 0."""
    one, two = first.properties()[0, 1], other.properties()[0, 1]
    force, theirs = first.forces(), other.forces()
    return {
        "potential": float(abs(two - one) / max(abs(one), 1e-12)),
        "force": float(np.abs(theirs - force).max() / max(np.abs(force).max(), 1e-12)),
    }


def machine() -> dict[str, Any]:
    """What a reader needs to know of the machine, and nothing that names it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["beadwork"] += _commit()  # rounds of two versions do not mix
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _commit() -> str:
    """What git calls this version of the code, with a mark where files differ from it."""
    told = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return f"+{told.stdout.strip()}" if told.returncode == 0 else ""


_BEGIN = time.monotonic()


def say(text: str) -> None:
    """Progress, with the minutes since the start."""
    print(f"[{(time.monotonic() - _BEGIN) / 60:5.1f} min] {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny case: a check that it works, no measurement")
    parser.add_argument("--rounds", type=int, help="rounds in which the peers take turns")
    parser.add_argument("--minutes", type=float, default=45.0, help="no new round is begun that would end later")
    parser.add_argument("--out", type=Path, help="where results are written (default: benchmarks/results)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="scratch")
    parser.add_argument("--report", action="store_true", help="only make table and plot of the results that are there")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    work = args.work.resolve() / ("quick" if args.quick else "full")
    out = args.out or (work if args.quick else ROOT / "benchmarks" / "results")
    if args.report:
        print(report(out / "cpu.json"))
        return
    # what the clients import is this checkout, installed or not
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "driver"), os.environ.get("PYTHONPATH")]))
    bench = Bench(plan, out, work, args.minutes)
    if args.rounds:
        bench.plan = replace(plan, rounds=args.rounds)
    wire = replace(plan.loop, beads=plan.wire_beads)
    stages: list[Callable[[], None]] = [
        lambda: bench.parts("graph", 1),
        lambda: bench.parts("scaling", bench.cores),
        lambda: bench.parts("step", bench.cores),
        *(lambda name=name: bench.search(name, wire, plan.wire_steps, 10) for name in names("wire")),
        lambda: bench.group("wire", wire, plan.wire_steps, 10, 0.3),
        *(lambda name=name: bench.search(name, plan.search, 1, 1) for name in names("loop", "committee")),
        lambda: bench.group("loop", plan.loop, plan.steps, 1, LOOP_SHARE),
        lambda: bench.group("committee", plan.loop, plan.steps, 1, 1.0),
    ]
    for stage in stages:
        stage()
    print(report(bench.file))


if __name__ == "__main__":
    main()
