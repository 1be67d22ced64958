"""What quantum Monte Carlo labels are worth: against published energies, and as the only teacher of a Δ.

    python benchmarks/qmc.py published --table qmc_table.csv --water H2O_example01.xyz
    python benchmarks/qmc.py curve

`published` labels H2 and H2O by LRDMC and holds them to the published energies of the same lattice spacing,
determinant, basis and geometry (jQMC's examples 01 and 05; the table has columns system, geometry, method, energy_Ha,
stderr_Ha, source), H2O with two trial functions: one about as poor as the published one, and a better one. `curve`
labels H2 at twenty distances by LRDMC, energies alone, trains a PBE baseline and a Δ committee on these noisy labels,
and holds all to CCSD, exact for two electrons, in the limit of the basis. Both need jQMC's environment (`beadwork
qmc-env`) and one core, half an hour for H2, and some eight hours for H2O (four with `--jobs 2` and two cores); every
label is written to results/qmc.json as it comes, and is not computed again.
results/qmc.md and qmc_h2.png are made of that file.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import ase
import ase.io
import matplotlib
import numpy as np
from scipy.interpolate import CubicSpline

from beadwork.frame import Frame
from beadwork.label.codes.pyscf_labeller import PySCF
from beadwork.label.codes.qmc import JQMC
from beadwork.label.constants import BOHR, HARTREE
from beadwork.label.jobs import Jobs
from beadwork.label.label import Label, Labeller
from beadwork.potential.load import load
from beadwork.train.baseline import train_model
from beadwork.train.committee import train_committee
from beadwork.train.dataset import Example, difference
from beadwork.train.settings import TrainSettings

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "qmc.json"
MHA = HARTREE / 1000
#: Hartree, H2 at its minimum, 1.4011 Bohr (Kolos and Wolniewicz, J. Chem. Phys. 49, 404, 1968)
EXACT_MINIMUM = -1.17447
#: what was published, and how it is labelled here, in independent runs side by side, each with a trial function of its
#: own; the largest combined error in mHa
PUBLISHED = {
    "H2": {
        "row": ("H2", "LRDMC JAGP"),
        "most": 0.4,
        "runs": 1,
        "settings": {
            "basis": "ccpvtz",
            "mean_field": "LDA_X,LDA_C_PZ",
            "determinant": "JAGP",
            "one_body": 1.0,
            "three_body": "mo",
            "lattice_spacing": 0.10,
            "moves": 60,
            "optimisation_steps": 12,
            "target_error": 0.36 * MHA,
        },
    },
    # the published trial function has VMC at -16.972 Ha: a two-body Jastrow factor alone comes nearest to it
    "H2O": {
        "row": ("H2O", "LRDMC a=0.30"),
        "most": 2.0,
        "runs": 4,
        "settings": {
            "basis": "ccecp-ccpvtz",
            "ecp": "ccecp",
            "mean_field": "LDA_X,LDA_C_PZ",
            "three_body": "none",
            "lattice_spacing": 0.30,
            "moves": 30,
            "walkers": 256,
            "steps": 1400,
            "optimisation_samples": 20,
        },
    },
    "H2O, J3": {
        "row": ("H2O", "LRDMC a=0.15"),
        "most": 2.0,
        "runs": 8,
        "settings": {
            "basis": "ccecp-ccpvtz",
            "ecp": "ccecp",
            # the example's text makes a Hartree-Fock and an LDA determinant; its first step is of the latter (`FIRST`)
            "mean_field": "LDA_X,LDA_C_PZ",
            "lattice_spacing": 0.15,
            "moves": 50,
            "walkers": 256,
            "steps": 850,
            "optimisation_samples": 20,
        },
    },
}
#: Ha, before any optimisation, with a two-body Jastrow factor of 1 alone, as jQMC's example 01 lists it; which of the
#: example's two determinants that is
FIRST = (-16.5743, 0.0097)
FIELDS = ("RHF", "LDA_X,LDA_C_PZ")
#: Bohr, the lattice spacings of which the energy of an infinitely fine lattice is extrapolated, and with which J3
FINER, COARSER, GOOD = 0.15, 0.30, "ao-small"
START: dict[str, Any] = {"basis": "ccecp-ccpvtz", "ecp": "ccecp", "three_body": "none", "optimisation_steps": 0}
START |= {"walkers": 256, "moves": 40, "steps": 400}
VARIATIONAL = {"moves": 40, "steps": 600}
#: three-body Jastrow factors that are held to the published trial function by their VMC energies, which is this in Ha,
#: and the variance in Ha²
POORER = ("none", "mo")
PUBLISHED_VMC = (-16.97202, 0.00029, 1.99)
#: Å, of the labels; the exact curve is compared halfway between them too
DISTANCES = np.linspace(0.5, 1.45, 20)
FINE = np.linspace(0.5, 1.45, 39)
LABELS = {"sampler": "lrdmc", "basis": "ccpvtz", "one_body": 1.0, "lattice_spacing": 0.25, "optimisation_steps": 12}
LABELS |= {"three_body": "mo", "optimisation_samples": 40, "steps": 500}
NOISE = 1.2 * MHA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="what")
    published = commands.add_parser("published")
    published.add_argument("--table", type=Path, required=True)
    published.add_argument("--water", type=Path, required=True)
    published.add_argument("--only", choices=PUBLISHED)
    curve = commands.add_parser("curve")
    curve.add_argument("--work", type=Path, help="keeps the models; a run that was stopped goes on from here")
    for command in (published, curve):
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--jobs", type=int, default=1, help="labels at the same time")
    args = parser.parse_args()
    if args.what == "published":
        for name in [args.only] if args.only else PUBLISHED:
            against_published(name, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            against_exact(args.seed, args.jobs, args.work or Path(folder))
    report()


def against_published(name: str, args: argparse.Namespace) -> None:
    """Label one molecule, and write both energies, their difference and combined error down."""
    case = PUBLISHED[name]
    theirs, their_error, source = from_table(args.table, case["row"])
    frame = hydrogen(0.74) if name == "H2" else molecule(ase.io.read(args.water))
    labellers = [JQMC(sampler="lrdmc", seed=args.seed + k, **case["settings"]) for k in range(case["runs"])]
    with ThreadPoolExecutor(args.jobs) as pool:
        labels = list(pool.map(once, runs(name), labellers, [frame] * len(labellers)))
        if name == "H2O":
            started = [JQMC(sampler="vmc", seed=args.seed, mean_field=field, **START) for field in FIELDS]
            list(pool.map(once, [f"first step of H2O, {field}" for field in FIELDS], started, [frame] * len(FIELDS)))
            poorer = [case["settings"] | VARIATIONAL | {"three_body": three} for three in POORER]
            optimised = [JQMC(sampler="vmc", seed=args.seed, **settings) for settings in poorer]
            list(pool.map(once, [f"VMC of H2O, J3 {three}" for three in POORER], optimised, [frame] * len(POORER)))
    energy, error = together(labels)
    combined = float(np.hypot(error / HARTREE, their_error)) * 1000
    result = {
        "published_Ha": theirs,
        "published_error_mHa": their_error * 1000,
        "published_in": source,
        "published_method": case["row"][1],
        "ours_Ha": energy / HARTREE,
        "our_error_mHa": error / MHA,
        "difference_mHa": (energy / HARTREE - theirs) * 1000,
        "combined_error_mHa": combined,
        "largest_combined_error_mHa": case["most"],
    }
    if name != "H2":
        spacings = ("0.10", "0.15", "0.20", "0.25", "0.30")
        result["published_by_spacing"] = {a: from_table(args.table, ("H2O", f"LRDMC a={a}"))[:2] for a in spacings}
        result["published_limit"] = from_table(args.table, ("H2O", "LRDMC a->0"))[:2]
    write("results", f"against published {name}", result)
    print(json.dumps(result, indent=1))


def from_table(table: Path, wanted: tuple[str, str]) -> tuple[float, float, str]:
    """Published energy and error (Ha), and where."""
    with table.open() as lines:
        row = next(r for r in csv.DictReader(lines) if (r["system"], r["method"]) == wanted)
    return float(row["energy_Ha"]), float(row["stderr_Ha"]), row["source"]


def together(labels: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean energy and error (eV) of independent runs; of three or more the larger of what bars and scatter say.

    Weighted by length, not by error bar: a run that missed the rare low energies has a small bar, and lies too high.
    """
    weights = np.array([float(label["extra"]["measurements"]) for label in labels])
    weights /= weights.sum()
    energies, errors = (np.array([label[key] for label in labels]) for key in ("energy", "energy_error"))
    mean = float(weights @ energies)
    count = len(labels)
    scattered = rms(weights * (energies - mean)) * count / (count - 1) ** 0.5 if count > 2 else 0.0
    return mean, max(float(np.hypot.reduce(weights * errors)), scattered)


def runs(name: str) -> list[str]:
    """What the labels of a published molecule are called."""
    count = PUBLISHED[name]["runs"]
    return [f"published {name}" + (f", run {k + 1}" if k else "") for k in range(count)]


def against_exact(seed: int, jobs: int, folder: Path) -> None:
    """Twenty noisy energies, a Δ of them, and both against the exact curve."""
    frames = [hydrogen(d) for d in FINE]
    pbe = PySCF("PBE", "cc-pVTZ", grid=5)
    cheap = [Example(frame, pbe.label(frame, 0, 0), 0.0, None, "PBE", n) for n, frame in enumerate(frames)]
    settings = TrainSettings(members=1, held_out=0.0, epochs=600, batch_size=5, dtype="float64", r_max=4.0, jobs=Jobs())
    baseline = train_model(difference(cheap, None), folder / "baseline", settings, progress=print)
    truth, slope, at_minimum = exact_curve()
    labeller = JQMC(seed=seed, target_error=NOISE, **LABELS)
    with ThreadPoolExecutor(jobs) as pool:  # jQMC runs in processes of its own
        noisy = list(pool.map(lambda d: as_label(once(f"H2 {d:.3f}", labeller, hydrogen(d))), DISTANCES))
    examples = [
        Example(hydrogen(d), label, 0.0, None, "LRDMC", n)
        for n, (d, label) in enumerate(zip(DISTANCES, noisy, strict=True))
    ]
    settings = replace(settings, members=4, epochs=400)
    members = train_committee(difference(examples, baseline), baseline, folder / "delta", settings, progress=print)
    below = load(baseline).evaluate(frames)
    with_delta = load(baseline, members).evaluate(frames)
    at = [int(np.abs(FINE - d).argmin()) for d in DISTANCES]
    raw = np.array([label.energy for label in noisy]) - truth[at]
    errors = np.array([label.energy_error for label in noisy])
    inside = np.abs(FINE - FINE.mean()) < DISTANCES[-2] - FINE.mean() + 1e-6
    pbe_energies = np.array([e.label.energy for e in cheap])
    pbe_forces = np.array([pull(e.label.forces) for e in cheap])
    result = {
        "labels": noisy[0].method,
        "labels_cpu_seconds": sum(sum(label.extra["cpu_seconds"].values()) for label in noisy),
        "exact_basis_error_at_the_minimum_mHa": (at_minimum / HARTREE - EXACT_MINIMUM) * 1000,
        "rms_mHa": {
            "error_bars_of_the_labels": rms(errors) / MHA,
            "labels": rms(raw) / MHA,
            "labels_over_their_error_bars": rms(raw / errors),
            "pbe_shifted": rms(shifted(pbe_energies - truth)) / MHA,
            "model_at_the_labels": rms((with_delta.energies - truth)[at]) / MHA,
            "model": rms(with_delta.energies - truth) / MHA,
            "model_between_the_ends": rms((with_delta.energies - truth)[inside]) / MHA,
        },
        "rms_force_eV_A": {
            "pbe": rms(pbe_forces - slope),
            "baseline": rms(forces(below) - slope),
            "differences_of_neighbouring_labels": rms(
                -np.diff([label.energy for label in noisy]) / np.diff(DISTANCES) - slope[1::2]
            ),
            "baseline_between_the_ends": rms((forces(below) - slope)[inside]),
            "model": rms(forces(with_delta) - slope),
            "model_between_the_ends": rms((forces(with_delta) - slope)[inside]),
        },
        "curve": {
            "distances": FINE.tolist(),
            "exact": truth.tolist(),
            "exact_force": slope.tolist(),
            "pbe": pbe_energies.tolist(),
            "baseline": below.energies.tolist(),
            "baseline_force": forces(below).tolist(),
            "model": with_delta.energies.tolist(),
            "model_force": forces(with_delta).tolist(),
            "model_spread": with_delta.energy_spread.tolist(),
        },
        "label_distances": DISTANCES.tolist(),
        "label_energies": [label.energy for label in noisy],
        "label_errors": errors.tolist(),
    }
    write("results", "H2 curve", result)
    picture(result)
    print(json.dumps({key: result[key] for key in ("rms_mHa", "rms_force_eV_A")}, indent=1))


def exact_curve() -> tuple[np.ndarray, np.ndarray, float]:
    """Energies (eV) and -dE/dR (eV/Å) at FINE, and the energy at the minimum, of H2 in the limit of the basis.

    CCSD is exact for two electrons. cc-pVQZ with gradients, and on top what cc-pVQZ and cc-pV5Z say of the limit: the
    mean field of the larger one, the correlation energy as X^-3.
    """
    small, large = PySCF("CCSD", "cc-pVQZ"), PySCF("CCSD", "cc-pV5Z", forces=False)
    curve = [as_label(once(f"exact {d:.3f}", small, hydrogen(d))) for d in FINE]

    def lacks(name: str, distance: float) -> float:
        four = as_label(once(f"exact {name}", small, hydrogen(distance)))
        five = as_label(once(f"exact5 {name}", large, hydrogen(distance)))
        fields = [label.extra["scf_energy"] for label in (four, five)]
        correlation = [label.energy - field for label, field in zip((four, five), fields, strict=True)]
        limit = fields[1] + (125 * correlation[1] - 64 * correlation[0]) / (125 - 64)
        return limit - four.energy

    missing = CubicSpline(DISTANCES, [lacks(f"{d:.3f}", d) for d in DISTANCES])
    energies = np.array([label.energy for label in curve]) + missing(FINE)
    pulls = np.array([pull(label.forces) for label in curve]) - missing(FINE, 1)
    least = lacks("minimum", 1.4011 * BOHR) + as_label(read()["labels"]["exact minimum"]).energy
    return energies, pulls, least


def hydrogen(distance: float) -> Frame:
    """H2 along z, Å."""
    return molecule(ase.Atoms("H2", positions=[[0, 0, -distance / 2], [0, 0, distance / 2]]))


def molecule(atoms: ase.Atoms) -> Frame:
    atoms.pbc = False
    return Frame.from_atoms(atoms)


def pull(forces_of_both: np.ndarray) -> float:
    """-dE/dR of a diatomic along z: half the difference of its forces."""
    return float(forces_of_both[1, 2] - forces_of_both[0, 2]) / 2


def forces(answer: Any) -> np.ndarray:
    return np.array([pull(answer.forces[a:b]) for a, b in zip(answer.ptr[:-1], answer.ptr[1:], strict=True)])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def shifted(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def once(name: str, labeller: Labeller, frame: Frame) -> dict[str, Any]:
    """A label from results/qmc.json, or computed and put there. One of other settings is computed again."""
    stored = read()["labels"].get(name)
    if stored and stored["method"] == labeller.method:
        return stored
    print(f"{time.strftime('%H:%M')} {name}: {labeller.method}", flush=True)
    found = labeller.label(frame, 0, 0).to_dict()
    write("labels", name, found | {"date": date.today().isoformat(), "machine": machine()})
    print(
        f"{time.strftime('%H:%M')} {found['energy'] / HARTREE:.6f} +- {found['energy_error'] / HARTREE:.6f} Ha",
        flush=True,
    )
    return found


def as_label(stored: dict[str, Any]) -> Label:
    values = {key: value for key, value in stored.items() if key not in ("date", "machine")}
    return Label.from_dict(values | {"forces": None if values["forces"] is None else np.array(values["forces"])})


def machine() -> str:
    """Processor, and how busy the machine was, since seconds mean little without it."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {"labels": {}, "results": {}}


def write(kind: str, name: str, what: dict[str, Any]) -> None:
    """Put one more thing into results/qmc.json, to which others may be writing."""
    with (Path(tempfile.gettempdir()) / "beadwork-qmc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = read()
        data[kind][name] = what
        part = FILE.with_suffix(".part")
        part.write_text(json.dumps(data, indent=1, default=lambda array: array.tolist()) + "\n")
        part.replace(FILE)


def picture(result: dict[str, Any]) -> None:
    """Energies and forces against the exact ones."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curve = {key: np.array(value) for key, value in result["curve"].items()}
    at = np.interp(result["label_distances"], curve["distances"], curve["exact"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    left.axhline(0, color="black", linewidth=0.8)
    left.errorbar(
        result["label_distances"],
        (np.array(result["label_energies"]) - at) / MHA,
        np.array(result["label_errors"]) / MHA,
        fmt="o",
        markersize=3,
        color="tab:red",
        label="LRDMC labels, energies alone",
    )
    offset = (curve["model"] - curve["exact"]) / MHA
    spread = curve["model_spread"] / MHA
    left.fill_between(curve["distances"], offset - spread, offset + spread, color="tab:blue", alpha=0.2, linewidth=0)
    left.plot(curve["distances"], offset, color="tab:blue", label="baseline + Δ learned from them, ± spread")
    left.set(xlabel="distance / Å", ylabel="energy - exact / mHa")
    right.axhline(0, color="black", linewidth=0.8)
    right.plot(
        curve["distances"], curve["baseline_force"] - curve["exact_force"], color="tab:grey", label="PBE baseline"
    )
    right.plot(curve["distances"], curve["model_force"] - curve["exact_force"], color="tab:blue", label="baseline + Δ")
    right.set(xlabel="distance / Å", ylabel="force - exact / (eV/Å)")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "qmc_h2.png", dpi=120)


def about_water(labels: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Every run of H2O, what they say together, with which determinant, and in the limit of a fine lattice."""
    published = result["published_by_spacing"]
    lines = ["", "### H2O, run by run", ""]
    lines += ["| | walkers | measurements | energy, Ha | error, mHa | VMC, Ha |", "|---|---|---|---|---|---|"]
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    drift = []
    for name, label in labels.items():
        job = json.loads(label["input"]) if label["code"] == "jQMC" else {}
        if job.get("symbols") != ["O", "H", "H"] or job["method"] != "lrdmc":
            continue
        three = job["jastrow"]["three_body"] or "none"
        groups.setdefault((job["mean_field"], three, job["lattice_spacing"]), []).append(label)
        extra = label["extra"]
        lines.append(
            f"| {name} | {extra['walkers']} | {extra['measurements']} | {label['energy'] / HARTREE:.5f} "
            f"| {label['energy_error'] / MHA:.2f} | {extra['optimised_energy'] / HARTREE:.3f} |"
        )
        drift.append(float(np.ptp(list((extra.get("energy_by_window") or {"10": 0.0}).values()))) / MHA)
    lines += [
        "",
        "| orbitals | J3 | runs | a, Bohr | energy, Ha | error, mHa | from the published energy, mHa "
        "| combined error, mHa | within two |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    means = {key: together(runs_of_it) for key, runs_of_it in sorted(groups.items())}
    rows = [
        (f"{field} | {three} | {len(groups[field, three, a])}", f"{a:.2f}", *mean, *published[f"{a:.2f}"])
        for (field, three, a), mean in means.items()
    ]
    for field in FIELDS:
        (fine, fine_error), (coarse, coarse_error) = means[field, GOOD, FINER], means[field, GOOD, COARSER]
        share = FINER**2 / (COARSER**2 - FINER**2)  # the energy is linear in a²
        limit = fine + share * (fine - coarse)
        rows.append((f"{field} | {GOOD} | ", "to 0", limit, np.hypot((1 + share) * fine_error, share * coarse_error)))
        rows[-1] += tuple(result["published_limit"])
    for field, spacing, energy, error, theirs, their_error in rows:
        apart, combined = (energy / HARTREE - theirs) * 1000, float(np.hypot(error / MHA, their_error * 1000))
        lines.append(
            f"| {field} | {spacing} | {energy / HARTREE:.5f} | {error / MHA:.2f} | {apart:+.2f} | {combined:.2f} "
            f"| {'yes' if abs(apart) < 2 * combined else 'no'} |"
        )
    firsts = [(field, labels[f"first step of H2O, {field}"]) for field in FIELDS]
    said = ", ".join(
        f"{label['energy'] / HARTREE:.4f} ± {label['energy_error'] / HARTREE:.4f} ({f})" for f, label in firsts
    )
    lines += [
        "",
        f"VMC before any optimisation, with a two-body Jastrow factor of 1 alone: {said} Ha.",
        f"jQMC's example 01, whose text makes both determinants, lists {FIRST[0]} ± {FIRST[1]} Ha for its first step:",
        "that of the LDA determinant. The one trial function of this geometry that jQMC's repository has held (example",
        "02 of July 2025, with another Jastrow factor) has LDA's orbitals too, to 1e-5.",
        "",
        *variational(labels),
        "",
        *falls(means, published),
        *scatter(groups),
        "",
        "The energy with the weights of 5 to 40 measurements multiplied (10 count) differs by at most",
        f"{max(drift):.2f} mHa, and 64 and 256 walkers agree: the walkers are not too few.",
    ]
    return lines


def falls(means: dict[tuple[str, str, float], tuple[float, float]], published: dict[str, list[float]]) -> list[str]:
    """How much the energy falls from the finer lattice to the coarser one: the lattice's bias, the Jastrow factor's."""
    theirs = [published[f"{spacing:.2f}"] for spacing in (COARSER, FINER)]
    words = [
        f"{(theirs[1][0] - theirs[0][0]) * 1000:.1f} ± {np.hypot(theirs[0][1], theirs[1][1]) * 1000:.1f} (published)"
    ]
    for field in FIELDS:
        (coarse, coarse_error), (fine, fine_error) = means[field, GOOD, COARSER], means[field, GOOD, FINER]
        words.append(f"{(fine - coarse) / MHA:.1f} ± {np.hypot(fine_error, coarse_error) / MHA:.1f} ({field})")
    return [
        f"With J3 {GOOD} the energy falls by {', '.join(words)} mHa from a = {FINER} to {COARSER}.",
    ]


def variational(labels: dict[str, dict[str, Any]]) -> list[str]:
    """How good the trial functions are, by VMC: the lattice's bias depends on it."""

    def told(energy: float, error: float, variance: float) -> str:
        return f"{energy:.4f} ± {error:.4f} Ha, variance {variance:.1f} Ha²"

    found = []
    for three, label in ((three, labels.get(f"VMC of H2O, J3 {three}")) for three in POORER):
        if label is None:
            continue
        values = label["energy"] / HARTREE, label["energy_error"] / HARTREE, label["extra"]["variance"] / HARTREE**2
        found.append(f"{told(*values)} (J3 {three})")
    if not found:
        return []
    return [
        "The lattice's bias depends on the Jastrow factor. VMC with an optimised two-body factor and LDA's orbitals:",
        f"{'; '.join(found)}; with J3 {GOOD} -17.15 to -17.19 Ha and 0.5 Ha². The published trial function has",
        f"{told(*PUBLISHED_VMC)}. Its text names J3 mo, whose",
        "variance it has, but its energy is not that of an optimised one; by energy J3 none is the nearest to it.",
    ]


def scatter(groups: dict[tuple[str, str, float], list[dict[str, Any]]]) -> list[str]:
    """Whether runs differ by more than their error bars say, each with a trial function optimised anew."""
    lines = []
    for (field, three, spacing), labels in sorted(groups.items()):
        if len(labels) > 2:
            energies, errors = (np.array([label[key] for label in labels]) / MHA for key in ("energy", "energy_error"))
            mean = np.average(energies, weights=errors**-2.0)
            lines.append(
                f"Runs of {field}, J3 {three}, at {spacing:.2f}: chi square "
                f"{(((energies - mean) / errors) ** 2).sum():.1f} for {len(labels) - 1} degrees of freedom; by their "
                f"scatter the mean's error is {energies.std(ddof=1) / len(labels) ** 0.5:.1f} mHa."
            )
    return lines


def verdict(row: dict[str, Any]) -> str:
    """Whether a label agrees with what was published, and whether it is precise enough to say so."""
    agrees = abs(row["difference_mHa"]) < 2 * row["combined_error_mHa"]
    precise = row["combined_error_mHa"] <= row["largest_combined_error_mHa"]
    return ("yes" if agrees else "no") + ("" if precise else ", but the error is above the aim: not shown")


def report() -> None:
    """results/qmc.md from results/qmc.json."""
    data = read()
    lines = ["# Quantum Monte Carlo labels", "", "Made by `python benchmarks/qmc.py`; every figure is in qmc.json.", ""]
    rows = [(name, data["results"].get(f"against published {name}")) for name in PUBLISHED]
    if any(row for _, row in rows):
        lines += ["## Against published LRDMC energies", ""]
        lines += ["Same lattice spacing, determinant, basis and geometry; the Jastrow factor is our own.", ""]
        lines += ["| | published, Ha | here, Ha | difference, mHa | combined error, mHa | within two | core seconds |"]
        lines += ["|---|---|---|---|---|---|---|"]
    for name, row in rows:
        if row:
            labels = [data["labels"][run] for run in runs(name)]
            published = f"{row['published_Ha']:.5f} ± {row['published_error_mHa']:.2f} mHa"
            lines.append(
                f"| {name}, {row['published_method']} | {published} "
                f"| {row['ours_Ha']:.5f} ± {row['our_error_mHa']:.2f} mHa | {row['difference_mHa']:+.2f} "
                f"| {row['combined_error_mHa']:.2f} (aim {row['largest_combined_error_mHa']}) "
                f"| {verdict(row)} "
                f"| {sum(sum(label['extra']['cpu_seconds'].values()) for label in labels):.0f} |"
            )
    known = [(name, row) for name, row in rows if row and name != "H2"]
    if len(known) == 2:
        ratios = [f"{row['difference_mHa'] / row['combined_error_mHa']:+.2f}" for _, row in known]
        lines += [
            "",
            f"H2O lies {ratios[0]} combined errors from the published energy with the two-body Jastrow factor alone,",
            f"whose VMC energy is near the published trial function's, and {ratios[1]} with a better one (J3): the",
            "lattice's bias is the trial function's, so energies of one spacing agree only as far as these are alike.",
            "Towards a = 0, where they need not be, they agree (below).",
        ]
    if water := data["results"].get("against published H2O, J3"):
        lines += about_water(data["labels"], water)
    curve = data["results"].get("H2 curve")
    if curve:
        energies, pulls, spread = curve["rms_mHa"], curve["rms_force_eV_A"], curve["curve"]["model_spread"]
        lines += ["", "## H2 at twenty distances: a Δ of noisy energies alone", "", f"Labels: {curve['labels']}.", ""]
        lines += ["Root mean square against CCSD, cc-pVQZ and cc-pV5Z extrapolated, 0.5 to 1.45 Å (its error at the "]
        lines[-1] += "minimum, where the exact energy is known: "
        lines[-1] += f"{curve['exact_basis_error_at_the_minimum_mHa']:+.2f} mHa)."
        lines += [""]
        lines += ["| | energy, mHa | force, eV/Å |", "|---|---|---|"]
        lines += [
            f"| the labels | {energies['labels']:.2f} (error bars: {energies['error_bars_of_the_labels']:.2f}) | "
            f"{pulls['differences_of_neighbouring_labels']:.3f} (differences of neighbours) |",
            f"| PBE, its mean taken off | {energies['pbe_shifted']:.2f} | {pulls['pbe']:.3f} |",
            f"| baseline learned from PBE | | {pulls['baseline']:.3f} |",
            f"| baseline + Δ | {energies['model']:.2f} | {pulls['model']:.3f} |",
            f"| baseline, without the two ends | | {pulls['baseline_between_the_ends']:.3f} |",
            f"| baseline + Δ, without the two ends | {energies['model_between_the_ends']:.2f} | "
            f"{pulls['model_between_the_ends']:.3f} |",
            "",
            "Without the ends: from the second label to the last but one. Every member learns from both ends; before",
            "that was so, two of four had not seen the first label, and the force there was 5.9 eV/Å off (in all",
            "0.958).",
            f"Spread there {spread[0] / MHA:.1f} mHa, median of all {np.median(spread) / MHA:.1f}.",
            "",
            "![energies and forces against the exact ones](qmc_h2.png)",
        ]
    made = [stored for stored in data["labels"].values() if stored["code"] == "jQMC"]
    if made:
        label = made[-1]
        versions = ", ".join(f"{name} {number}" for name, number in label["extra"]["versions"].items())
        days = sorted({stored["date"] for stored in made})
        lines += ["", f"{versions}; {label['machine']}; {', '.join(days)}. Seeds stand in each label."]
    (RESULTS / "qmc.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
