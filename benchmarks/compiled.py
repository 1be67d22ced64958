"""torch.compile and cuEquivariance against TorchScript: the same weights, in the same evaluator, in turns.

    python benchmarks/compiled.py [--device cuda] [--models FOLDER] [--quick]

Each variant is held to TorchScript (energy, forces, virial) before it is timed. Where a variant cannot be made or
run, the reason is the result. cuEquivariance is measured where `cuequivariance` and `cuequivariance-torch` (with
`cuequivariance-ops-torch-cu13` for its CUDA kernels) are installed; beadwork needs none of them.
Writes OUT/compiled-DEVICE.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from system import Size, frames, models, water

ROOT = Path(__file__).resolve().parent.parent
#: as many edges as the engine gives to TorchScript at once on the CPU
CPU = Size(beads=1, waters=64)
CUDA = Size(beads=32, waters=64, channels=128, dtype="float32", device="cuda")
QUICK = Size(beads=1, waters=8, channels=8, cutoff=4.0)
#: (eV/atom; forces and virials, of the largest) within which a variant must agree with TorchScript
AGREE = {"float64": (1e-9, 1e-7), "float32": (1e-5, 1e-3)}
OF = ("energies", "forces", "virials")
#: compiled for one number of edges
FIXED = "torch.compile"
PACKAGES = ("torch", "mace-torch", "e3nn", "cuequivariance", "cuequivariance-torch", "cuequivariance-ops-torch-cu13")


class Wrapped:
    """A module that is called in another way; for all else it is the module."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def to(self, *where: Any) -> Wrapped:
        """Move the module, as torch.nn.Module does."""
        self._module.to(*where)
        return self

    def eval(self) -> Wrapped:
        """Switch the module to evaluation."""
        self._module.eval()
        return self


class Optimised(Wrapped):
    """TorchScript with its profiling executor, which may fuse operations and which the engine switches off."""

    def __call__(self, data: dict[str, Any], **options: Any) -> Any:
        """Evaluate."""
        import torch

        with torch.jit.optimized_execution(True):
            return self._module(data, **options)


class Compiled(Wrapped):
    """torch.compile of an eager MACE, prepared and called as mace-torch's own calculator does it."""

    def __init__(self, module: Any, mode: str, dynamic: bool | None) -> None:
        import torch

        super().__init__(module)
        self._compiled = torch.compile(module, mode=mode, dynamic=dynamic)

    def __call__(self, data: dict[str, Any], **options: Any) -> Any:
        """Evaluate."""
        data["positions"].requires_grad_(True)  # what is compiled cannot do it
        return self._compiled(data, **(options | {"training": True}))


def eager(file: Path) -> Any:
    """The model as mace-torch pickles it; written by `models`, so it is to be trusted."""
    import torch

    return torch.load(file, map_location="cpu", weights_only=False)


def prepared(model: Any) -> Any:
    """The same with e3nn's modules as plain Python, so that they can be compiled."""
    from mace.tools.compile import prepare
    from mace.tools.scripts_utils import extract_model

    return prepare(extract_model)(model=model, map_location="cpu")


def cueq(model: Any, device: str) -> Any:
    """The same with cuEquivariance's operations in place of e3nn's."""
    for package in ("cuequivariance", "cuequivariance-torch"):
        metadata.version(package)  # mace-torch would say only that something is None
    from mace.cli.convert_e3nn_cueq import run

    return run(model, device="cuda" if device.startswith("cuda") else "cpu")


def simplified(model: Any) -> Any:
    """What mace-torch's calculator does to a cuEquivariance model before it compiles it."""
    from mace.tools.compile import disable_e3nn_codegen, simplify

    with disable_e3nn_codegen():
        return simplify(model)


def variants(bundle: Path, device: str) -> dict[str, Callable[[], Any]]:
    """What makes each module, by name."""
    from beadwork.potential.bundle import MODEL
    from beadwork.potential.torchscript import load_module

    file = bundle.with_suffix(".model")
    with_graphs = "reduce-overhead" if device.startswith("cuda") else "default"
    return {
        "TorchScript, optimised": lambda: Optimised(load_module(bundle / MODEL, device)),
        "eager": lambda: eager(file),
        FIXED: lambda: Compiled(prepared(eager(file)), with_graphs, False),
        "torch.compile, any size": lambda: Compiled(prepared(eager(file)), "default", True),
        "cuEquivariance": lambda: cueq(eager(file), device),
        "cuEquivariance, torch.compile": lambda: Compiled(simplified(cueq(eager(file), device)), "default", None),
    }


def versions() -> dict[str, str]:
    """What is installed of what counts."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no words"]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def cpu_seconds() -> float:
    """Of this process, and of the C++ compilers that it has started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def compare(
    size: Size, bundle: Path, rounds: int, only: Sequence[str] | None = None, save: Callable[[Any], None] = print
) -> dict[str, Any]:
    """Each variant: parity, seconds of its first calls, then rounds in turns with TorchScript; saved as they come."""
    import torch

    from beadwork.potential.architecture import mace_imported
    from beadwork.potential.bundle import MODEL
    from beadwork.potential.graph import build
    from beadwork.potential.torchscript import ModuleEvaluator, load_module

    graph = build(frames(water(size.waters), size.beads), size.cutoff)
    other = build(frames(water(size.waters, seed=5), size.beads, seed=6), size.cutoff)
    result: dict[str, Any] = {
        "size": asdict(size),
        "edges": [len(graph.neighbor), len(other.neighbor)],
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "variants": {},
    }
    plain = ModuleEvaluator(load_module(bundle / MODEL, size.device), None, size.dtype, size.device)

    # one thread's own time does not suffer from what else the machine does
    clock = cpu_seconds if size.device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    result["clock"] = clock.__name__

    def seconds(call: Callable[..., Any], *what: Any) -> float:
        begin = clock()
        call(*what)  # an evaluation has waited for the device
        return clock() - begin

    def errors(evaluator: Any, some: Any) -> dict[str, float]:
        """Against TorchScript. Raises ValueError where they do not agree."""
        exact, got = plain.evaluate(some), evaluator.evaluate(some)
        off = {name: float(np.abs(getattr(got, name) - getattr(exact, name)).max()) for name in OF}
        most = {name: float(np.abs(getattr(exact, name)).max()) for name in OF}
        energy, rest = AGREE[size.dtype]
        if not (off["energies"] < energy * some.ptr[1] and all(off[name] < rest * most[name] for name in OF[1:])):
            raise ValueError(f"it does not agree with TorchScript, so it is not timed: it is off by {off} of {most}")
        return off

    def measure(make: Callable[[], Any], found: dict[str, Any], name: str) -> None:
        with _default_dtype(torch.float64):  # that of the file
            module = make()
        with _default_dtype(getattr(torch, size.dtype)):
            evaluator = ModuleEvaluator(module, None, size.dtype, size.device)
            found["first_call_s"] = seconds(evaluator.evaluate, graph)
            found["off_by"] = errors(evaluator, graph)
            pairs = []
            for turn in range(rounds + 1):
                order = (plain, evaluator) if turn % 2 else (evaluator, plain)
                took = {id(e): seconds(e.evaluate, graph) for e in order}
                pairs.append((took[id(plain)], took[id(evaluator)]))
            times = np.array(pairs[1:])  # the first one warms up
            faster = times[:, 0] / times[:, 1]
            found["torchscript_s"], found["seconds"] = times.T.tolist()
            found["times_faster"] = float(np.median(faster))
            found["range"] = [float(faster.min()), float(faster.max())]
            if name != FIXED:
                found["first_call_other_edges_s"] = seconds(evaluator.evaluate, other)
                found["other_edges_s"] = seconds(evaluator.evaluate, other)
                found["other_edges_off_by"] = errors(evaluator, other)

    with mace_imported(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in variants(bundle, size.device).items():
            if only and name not in only:
                continue
            found = result["variants"][name] = {"date": datetime.now(timezone.utc).isoformat(timespec="minutes")}
            try:
                measure(make, found, name)
            except Exception as error:  # noqa: BLE001 - whatever a compiler dies of is this benchmark's result
                found["failed"] = reason(error)
            torch._dynamo.reset()
            save(result)
    return result


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def table(data: dict[str, Any]) -> str:
    """The page that is committed."""
    size = data["size"]
    lines = [
        f"# torch.compile and cuEquivariance against TorchScript, {size['device']}",
        "",
        f"{data['date']}, {data['machine']}, " + ", ".join(f"{k} {v}" for k, v in data["versions"].items()) + ".",
        f"{size['beads']} x {size['waters']} H2O, {size['channels']} channels, {size['cutoff']:g} Å, {size['dtype']}, "
        f"{data['edges'][0]} edges in one call, random weights, threads: {data['threads']}.",
        "",
        f"Seconds ({data['clock']}) are medians; times faster than TorchScript: median, range and number of rounds in "
        "turns. The first call has all that is compiled in it; other edges: the first call on "
        f"{data['edges'][1]} edges.",
        "",
        "| variant | TorchScript, s | variant, s | times faster | forces off, eV/Å | first call, s | other edges, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in data["variants"].items():
        if "range" not in found:
            lines.append(f"| {name} | | failed | | | | |")
            continue
        low, high = found["range"]
        another = found.get("first_call_other_edges_s")
        lines.append(
            f"| {name} | {np.median(found['torchscript_s']):.3f} | {np.median(found['seconds']):.3f} | "
            f"{found['times_faster']:.2f} ({low:.2f} to {high:.2f}, {len(found['seconds'])}) | "
            f"{found['off_by']['forces']:.0e} | {found['first_call_s']:.1f} | "
            f"{'compiles again' if another is None else f'{another:.1f}'} |"
        )
    failed = [f"- {name}: {found['failed']}" for name, found in data["variants"].items() if "failed" in found]
    return "\n".join([*lines, *(["", "What failed, and how:", "", *failed] if failed else [])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "build" / "bench" / "compiled", help="where they are made"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="these variants alone; what OUT has of others stays"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny case: a check that it works, no measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(args.threads))
    import torch

    torch.set_num_threads(args.threads)
    cuda = args.device.startswith("cuda")
    size = replace(QUICK if args.quick else CUDA if cuda else CPU, device=args.device)
    folder = args.models / f"models-{size.channels}-{size.cutoff:g}"
    folder.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"compiled-{args.device.split(':')[0]}"
    data = {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "machine": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "rounds": args.rounds,
    }

    kept: dict[str, Any] = {}
    if args.only and stem.with_suffix(".json").exists():
        kept = json.loads(stem.with_suffix(".json").read_text())["variants"]

    def save(result: dict[str, Any]) -> None:
        name = list(result["variants"])[-1]
        result = result | {"variants": kept | result["variants"]}
        stem.with_suffix(".json").write_text(json.dumps(data | result, indent=1) + "\n")
        stem.with_suffix(".md").write_text(table(data | result))
        print(f"{name}: {result['variants'][name]}", flush=True)

    compare(size, models(folder, size.channels, size.cutoff, 1)[0], args.rounds, args.only, save)
    print(table(json.loads(stem.with_suffix(".json").read_text())))


if __name__ == "__main__":
    main()
