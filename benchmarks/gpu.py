"""The benchmark on a GPU: checks first, then medians, then copies, synchronisations and idle time of the device.

`python benchmarks/gpu.py` wants CUDA and writes OUT/gpu.json as it goes: both engines alone and with separate members,
with heads on one trunk, with 1 to 64 beads beside i-PI's batched driver, and in large boxes. `--loop` adds the full
loop with i-PI, against `i-pi-py_driver -m mace` batched, `--compiled` torch.compile and cuEquivariance (see
compiled.py).
`--device cpu --quick` runs the same logic in a tiny case without a GPU.
The native engine's backend is picked by SYMMETRIX_BACKEND (say `cuda13-sm90`), which is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from compiled import compare
from system import Size, frames, models, trunk, water

from beadwork.errors import BeadworkError
from beadwork.frame import Frame

ROOT = Path(__file__).resolve().parent.parent
SIZE = Size(beads=32, waters=64, channels=128, dtype="float32", device="cuda")
TINY = Size(beads=2, waters=8, channels=8, cutoff=4.0, members=2, dtype="float32", device="cpu")
#: waters of the case in which the device is to be busy
LARGE = 512
#: beads with which an evaluation is timed, of the waters of SIZE
BEADS = (1, 2, 4, 8, 16, 32, 64)
#: of the committee on one trunk
HEADS = 8
#: what the profiler calls the evaluation
CALL = "evaluation"
#: float32 must agree with float64 within (eV/atom, of the largest force) before anything is timed
AGREE = (1e-4, 1e-3)


class Gpu:
    """One sitting on one device, and its file."""

    def __init__(self, size: Size, file: Path, work: Path, repeats: int) -> None:
        import torch

        self.torch = torch
        self.size = size
        self.file = file
        self.repeats = repeats
        cuda = size.device.startswith("cuda")
        self.cuda = cuda
        self.data: dict[str, Any] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
            "device": torch.cuda.get_device_name() if cuda else "CPU: the logic alone, no measurement",
            "torch": torch.__version__,
            "backend": os.environ.get("SYMMETRIX_BACKEND", "default"),
            "size": size.__dict__,
            "errors": {},
        }
        self.folder = folder = work / f"models-{size.channels}-{size.cutoff:g}"
        folder.mkdir(parents=True, exist_ok=True)
        self.bundles = models(folder, size.channels, size.cutoff, 1 + size.members)
        file.parent.mkdir(parents=True, exist_ok=True)

    def save(self, **news: Any) -> None:
        """Add what is known, and write it."""
        self.data |= news
        self.file.write_text(json.dumps(self.data, indent=1) + "\n")
        for name, what in news.items():
            print(f"{name}: {what}", flush=True)

    def attempt(self, name: str, call: Callable[..., Any], *what: Any) -> None:
        """Record what a part gives, or what it died of; the others go on."""
        try:
            self.save(**{name: call(*what)})
        except (BeadworkError, RuntimeError, ImportError, ValueError, OSError) as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            self.data["errors"][name] = words[-1][:300]
            self.save()

    def median(self, call: Callable[[], Any]) -> float:
        """Seconds of a call, after two that warm up, with the device idle before and after."""
        seconds = []
        for repeat in range(2 + self.repeats):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            if repeat >= 2:
                seconds.append(time.perf_counter() - begin)
        return float(np.median(seconds))

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.cuda:
            self.torch.cuda.synchronize()

    def potential(self, engine: str, dtype: str, members: int) -> Any:
        """Baseline and so many members in one engine."""
        from beadwork.potential.auto_engine import open_engine
        from beadwork.potential.potential import Potential

        opened = [open_engine(b, engine, dtype, self.size.device) for b in self.bundles[: 1 + members]]
        return Potential(opened[0], opened[1:])

    def structures(self, waters: int) -> list[Frame]:
        """The ring polymer."""
        return frames(water(waters), self.size.beads)

    def engine(self, name: str) -> dict[str, Any]:
        """One engine: its error against float64 TorchScript, then its time alone and as a committee."""
        every = self.structures(self.size.waters)
        alone = self.potential(name, self.size.dtype, 0)
        committee = self.potential(name, self.size.dtype, self.size.members)
        atoms = len(every[0].numbers)
        found: dict[str, Any] = self.held(name, alone, every) | {
            f"committee_{what}": error
            for what, error in self.held(f"{name}, a committee", committee, every, self.size.members).items()
        }
        found["seconds"] = self.median(lambda: alone.evaluate(every))
        found["us_per_atom_and_model"] = 1e6 * found["seconds"] / (atoms * len(every))
        found["committee_seconds"] = self.median(lambda: committee.evaluate(every))
        found["committee_over_alone"] = found["committee_seconds"] / found["seconds"]
        found["profile"] = self.profile(lambda: alone.evaluate(every))
        return found

    def held(self, name: str, potential: Any, every: Sequence[Frame], members: int = 0) -> dict[str, float]:
        """Errors against float64 TorchScript of the batch that is timed then, its first and its last structure.

        Raises ValueError beyond AGREE.
        """
        atoms, some = len(every[0].numbers), [0, len(every) - 1]
        exact = self.potential("torchscript", "float64", members).evaluate([every[k] for k in some])
        answer = potential.evaluate(every)
        forces = answer.forces.reshape(len(every), atoms, 3)[some].reshape(-1, 3)
        energy = float(np.abs(answer.energies[some] - exact.energies).max()) / atoms
        force = float(np.abs(forces - exact.forces).max())
        largest = float(np.abs(exact.forces).max())
        if not (energy < AGREE[0] and force < AGREE[1] * largest):
            raise ValueError(f"{name} does not agree with float64 ({energy:.1e} eV/atom, {force:.1e} eV/Å): not timed")
        return {"energy_error_eV_atom": energy, "force_error_eV_A": force, "largest_force_eV_A": largest}

    def large(self, name: str) -> dict[str, Any]:
        """The same with boxes so large that the device is never idle."""
        potential = self.potential(name, self.size.dtype, 0)
        every = self.structures(LARGE if self.size.waters == SIZE.waters else 2 * self.size.waters)
        errors = self.held(f"{name}, large", potential, every)
        seconds = self.median(lambda: potential.evaluate(every))
        atoms = sum(len(frame.numbers) for frame in every)
        return {
            **errors,
            "atoms": atoms,
            "seconds": seconds,
            "us_per_atom": 1e6 * seconds / atoms,
            "profile": self.profile(lambda: potential.evaluate(every)),
        }

    def profile(self, call: Callable[[], Any]) -> dict[str, float]:
        """Of one call: share of the time in which the device is busy, kernels, copies each way, synchronisations."""
        from torch.profiler import ProfilerActivity, profile, record_function

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        call()
        with profile(activities=activities) as seen:
            self.wait()
            begin = time.perf_counter()
            with record_function(CALL):
                call()
            self.wait()
            wall = 1e6 * (time.perf_counter() - begin)
        events = list(seen.events() or [])
        during = next(e.time_range for e in events if e.name == CALL)  # without the waits of this method
        device = [e for e in events if e.device_type == self.torch.autograd.DeviceType.CUDA]
        return {
            "busy": busy([(e.time_range.start, e.time_range.end) for e in device]) / wall,
            "kernels": sum("memcpy" not in e.name.lower() and "memset" not in e.name.lower() for e in device),
            "copies_in": sum("memcpy htod" in e.name.lower() for e in device),
            "copies_out": sum("memcpy dtoh" in e.name.lower() for e in device),
            "synchronisations": sum(
                "Synchronize" in e.name and during.start <= e.time_range.start <= during.end for e in events
            ),
        }

    def shared(self, name: str) -> dict[str, Any]:
        """Baseline and a committee on one trunk, with energies of the heads alone and with their spread of forces.

        Raises ValueError where it is not the mean of its heads, evaluated one by one.
        """
        from beadwork.potential.auto_engine import open_engine
        from beadwork.potential.potential import Potential

        size = self.size
        bundle = trunk(self.folder, size.channels, size.cutoff, HEADS)
        heads = open_engine(bundle, name, size.dtype, size.device)
        potential = Potential(open_engine(self.bundles[0], name, size.dtype, size.device), [heads])
        every = self.structures(size.waters)
        answer, whole = (potential.evaluate(every[:2], force_spread=forces) for forces in (False, True))
        error, largest = float(np.abs(answer.forces - whole.forces).max()), float(np.abs(whole.forces).max())
        if not error < AGREE[1] * largest:
            raise ValueError(f"{name}: the trunk is {error:.1e} eV/Å from the mean of its heads: not timed")
        return {
            "heads": HEADS,
            "force_error_eV_A": error,
            "energies_seconds": self.median(lambda: potential.evaluate(every, force_spread=False)),
            "forces_seconds": self.median(lambda: potential.evaluate(every)),
            "profile": self.profile(lambda: potential.evaluate(every, force_spread=False)),
        }

    def batches(self, name: str) -> dict[str, Any]:
        """Seconds of an evaluation of the baseline with 1 to 64 beads, ours and that of i-PI's batched driver: does
        batching speed beads up?
        """
        from ipi.pes._mace import BatchedMACE

        size = self.size
        ours = self.potential(name, size.dtype, 0)
        model = str(self.bundles[0].with_suffix(".model"))
        theirs = BatchedMACE(model_paths=model, device=size.device, default_dtype=size.dtype)
        found: dict[str, Any] = {}
        for count in BEADS if size.waters == SIZE.waters else BEADS[:2]:
            every = frames(water(size.waters), count)
            atoms = [frame.to_atoms() for frame in every]
            told = np.concatenate([answer["forces"] for answer in theirs.compute_batched(atoms)])
            forces = ours.evaluate(every).forces
            error = float(np.abs(told - forces).max())
            if not error < 2 * AGREE[1] * float(np.abs(forces).max()):
                raise ValueError(f"{name} and i-PI's MACE differ by {error:.1e} eV/Å with {count} beads: not timed")
            seconds = {
                "ours": self.median(lambda every=every: ours.evaluate(every)),
                "i-PI's MACE": self.median(lambda atoms=atoms: theirs.compute_batched(atoms)),
            }
            per_atom = {who: 1e6 * s / (count * len(every[0].numbers)) for who, s in seconds.items()}
            found[str(count)] = {"seconds": seconds, "us_per_atom": per_atom, "forces_differ_eV_A": error}
        return found

    def mace(self) -> dict[str, Any]:
        """P2's evaluation without its socket: i-PI's batched MACE."""
        from ipi.pes._mace import BatchedMACE

        size = self.size
        model = str(self.bundles[0].with_suffix(".model"))
        theirs = BatchedMACE(model_paths=model, device=size.device, default_dtype=size.dtype)
        atoms = [frame.to_atoms() for frame in self.structures(size.waters)]
        exact = self.potential("torchscript", "float64", 0).evaluate(self.structures(size.waters)[:2])
        force = np.concatenate([answer["forces"] for answer in theirs.compute_batched(atoms[:2])])
        error, largest = float(np.abs(force - exact.forces).max()), float(np.abs(exact.forces).max())
        if not error < AGREE[1] * largest:
            raise ValueError(f"i-PI's MACE does not agree with float64 ({error:.1e} eV/Å): not timed")
        return {"force_error_eV_A": error, "seconds": self.median(lambda: theirs.compute_batched(atoms))}

    def loop(self, work: Path) -> dict[str, Any]:
        """The full loop with i-PI, in turns; seconds per step, a list a round."""
        import peers as p

        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "driver"), os.environ.get("PYTHONPATH")]))
        waiting = p.Setting(None, latency=1e-2)
        cases: dict[str, tuple[p.Builder, p.Setting]] = {
            "P2 defaults": (p.py_driver_batched, p.Setting(None)),
            "P2": (p.py_driver_batched, waiting),
            "torchscript": (p.ours_torchscript, replace(waiting, latency=1e-3)),
            "native": (p.ours_native, replace(waiting, latency=1e-3)),
        }
        files = [bundle.with_suffix(".model") for bundle in self.bundles]
        found: dict[str, Any] = {name: [] for name in cases}
        running = []
        for name, (build, setting) in cases.items():
            address = f"beadwork-gpu-{os.getpid()}-{name.replace(' ', '-')}"
            place = p.Place(work / "run" / name.replace(" ", "-"), self.size, files, self.bundles, address)
            running.append(p.Peer(name, place, setting, build, 120.0))
        with p.running(running):
            for peer in list(running):
                try:
                    peer.start()
                    error = np.abs(peer.forces() - running[0].forces()).max() / np.abs(running[0].forces()).max()
                    found[f"{peer.name}: forces differ by"] = float(error)
                    if not error < AGREE[1]:
                        raise p.PeerError(f"its forces differ by {error:.1e} of the largest: not timed")
                except p.PeerError as why:
                    self.data["errors"][peer.name] = str(why)
                    peer.end()
                    running.remove(peer)
            for _ in range(max(1, self.repeats // 2)):
                for peer in running:
                    found[peer.name].append(peer.turn(3))
        return found


def busy(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, -np.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny case: a check that it works, no measurement")
    parser.add_argument("--compiled", action="store_true", help="torch.compile and cuEquivariance too")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="of compiled.py, these alone")
    parser.add_argument("--loop", action="store_true", help="the full loop with i-PI too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    args = parser.parse_args()
    size = replace(TINY if args.quick else SIZE, device=args.device)
    work = args.work.resolve() / ("gpu-quick" if args.quick else "gpu")
    sitting = Gpu(size, args.out / "gpu.json", work, 2 if args.quick else 10)
    for name in ("torchscript", "native"):
        sitting.attempt(name, sitting.engine, name)
        sitting.attempt(f"{name}, large", sitting.large, name)
        sitting.attempt(f"{name}, {HEADS} heads on one trunk", sitting.shared, name)
        sitting.attempt(f"{name}, beads", sitting.batches, name)
    sitting.attempt("mace", sitting.mace)
    if args.compiled:
        sitting.attempt("compiled", compare, size, sitting.bundles[0], sitting.repeats, args.only)
    if args.loop:
        sitting.attempt("loop", sitting.loop, work)


if __name__ == "__main__":
    main()
