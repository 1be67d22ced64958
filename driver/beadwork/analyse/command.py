"""`beadwork analyse`: one observable a command, from runs to a table, a CSV file and a picture.

The libraries are imported where a command is carried out, so that `beadwork --help` does not wait for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beadwork.analyse.biased import Restraint

_COORDINATE = "dc:O1,O2, distance:O1,O2, transfer:O1,H5,O2, … or sums of these (docs/analyse.md)"


def add(commands: Any, command: Callable[..., Any]) -> None:
    """Add the commands. command: how `cli` adds one: name, what it does, a line about it, an example."""
    text = "free energy along a coordinate, and the coordinate's averages"
    example = "results --coordinate dc:O1,O2 --symmetric --at 0 0.2 0.4"
    energy = command(commands, "free-energy", _free_energy, text, example)
    _runs(energy, "free-energy", "RUN's folder, i-PI's input (XML) beside its outputs, or a file of `analyse series`")
    energy.add_argument("--coordinate", required=True, metavar="C", help=_COORDINATE)
    _sampling(energy)
    energy.add_argument("--bins", type=int, default=50, metavar="N", help="bins of the histogram (default: 50)")
    energy.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of the bins (default: all)")
    energy.add_argument("--zero", type=float, metavar="X", help="where F is 0 (default: in the lowest bin)")
    energy.add_argument("--at", type=float, nargs="+", default=[], metavar="X", help="places to print F at")
    energy.add_argument("--symmetric", action="store_true", help="X and -X are the same state")
    energy.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="FILE", help="curves of elsewhere: x and F, or PLUMED's"
    )
    energy.add_argument("--field", metavar="NAME", help="of a grid by PLUMED, which field the coordinate is")
    energy.add_argument("--scale", type=float, default=1.0, metavar="C", help="times x of --against (10 for nm)")
    energy.add_argument(
        "--centres",
        type=float,
        nargs="+",
        default=[],
        metavar="X",
        help="RUNs are umbrella windows: where each is held",
    )
    energy.add_argument(
        "--kappa", type=float, nargs="+", default=[], metavar="K",
        help="of the windows' K/2 (x - X)²: one, or one a RUN, in kJ/mol and the unit of x squared",
    )  # fmt: skip
    energy.add_argument("--restrained", metavar="C", help="what the windows hold (default: the coordinate itself)")
    text = "coordinates and the members' energies over a run as one small file, which free-energy reads"
    series = command(commands, "series", _series, text, "results --coordinate dc:O1,O2 distance:O1,O2")
    _runs(series, "series")
    series.add_argument("--coordinate", required=True, nargs="+", metavar="C", help=_COORDINATE)
    _sampling(series)
    text = "temperature, pressure, kinetic energies, radii of gyration, heat capacity: averages of what i-PI wrote"
    properties = command(commands, "properties", _properties, text, "results --skip 2")
    _runs(properties, "properties")
    properties.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="RUN", help="of another phase: the differences"
    )
    text = "free energy between two potentials, or between isotopes, by thermodynamic integration"
    integrate = command(
        commands, "integrate", _integrate, text, "l0 l1 l2 --lambdas 0 0.5 1 --of 'pot_component_raw(1)'"
    )
    _runs(integrate, "integrate")
    way = integrate.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--lambdas", type=float, nargs="+", metavar="L", help="each RUN's λ, with which V_0 + λ V_1 was run"
    )
    way.add_argument("--masses", type=float, nargs="+", metavar="M", help="each RUN's mass of the atoms of --of")
    integrate.add_argument("--of", required=True, metavar="P", help="i-PI's property: ∂V/∂λ, or a kinetic energy")
    integrate.add_argument("--less", metavar="P", help="∂V/∂λ is --of less this: B and A of (1 - λ) A + λ B")
    integrate.add_argument("--classical", action="store_true", help="of --masses: go on to the classical limit")
    text = "vibrational density of states of the centroid's velocities, by element, and its peaks"
    response = "RUN's folder, or i-PI's input (XML) beside its outputs of extras"
    text = "infrared spectrum of the dipoles in i-PI's extras, with the committee's band, and its peaks"
    light = command(commands, "infrared", _infrared, text, "results --window 1000 --skip 2")
    _runs(light, "infrared", response)
    text = "the same of Raman scattering, of the polarizabilities, for two directions of polarization"
    raman = command(commands, "raman", _raman, text, "results --incident 0 0 1 --scattered 0 0 1")
    _runs(raman, "raman", response)
    for name, what in (("incident", "light that comes in"), ("scattered", "light that is looked at")):
        raman.add_argument(
            f"--{name}", type=float, nargs=3, required=True, metavar=("X", "Y", "Z"), help=f"polarization of {what}"
        )
    for parser in (light, raman):
        _frequencies(parser)
    vdos = command(commands, "vdos", _vdos, text, "results --window 1000 --skip 2")
    _runs(vdos, "vdos")
    _frequencies(vdos)
    vdos.add_argument(
        "--members", action="store_true", help="each RUN is of one member: their mean and standard deviation"
    )


def _runs(
    parser: argparse.ArgumentParser, stem: str, text: str = "RUN's folder, or i-PI's input (XML) beside its outputs"
) -> None:
    """What every command knows."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=text)
    parser.add_argument(
        "--skip", type=float, default=0.0, metavar="PS", help="leave out what is before, from step 0 on"
    )
    parser.add_argument("--out", type=Path, metavar="STEM", help=f"where files go (default: RUN/{stem})")
    parser.set_defaults(stem=stem)


def _frequencies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--window", type=float, default=500, metavar="FS", help="of the autocorrelation (default: 500)")
    parser.add_argument("--highest", type=float, default=4500, metavar="CM", help="wavenumber, cm^-1 (default: 4500)")


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--of", choices=("centroid", "beads"), default="centroid", help="(default: centroid)")
    parser.add_argument("--not-periodic", action="store_true", help="distances are not those to the nearest image")


def _out(args: argparse.Namespace, ending: str) -> Path:
    first: Path = args.runs[0]
    stem: Path = args.out or (first if first.is_dir() else first.parent) / args.stem
    # not with_suffix, which would take a name with a point apart
    return stem.with_name(stem.name + ending)


def _free_energy(args: argparse.Namespace) -> int:
    import numpy as np

    from beadwork.analyse.coordinate import parse
    from beadwork.analyse.free_energy import free_energy, read_curve
    from beadwork.analyse.picture import draw_free_energy
    from beadwork.analyse.runs import open_run, sample
    from beadwork.analyse.series import ENDING, read_series
    from beadwork.analyse.table import notes, show, too_short, write_estimates
    from beadwork.disk import write_csv

    coordinate = parse(args.coordinate)
    restrained = parse(args.restrained or args.coordinate)
    restraints = _restraints(args)
    periodic = False if args.not_periodic else None
    wanted = [coordinate] if restrained.text == coordinate.text else [coordinate, restrained]
    pieces = [
        read_series(path, [one.text for one in wanted], args.skip)
        if path.name.endswith(ENDING)
        else sample(open_run(path), wanted, args.of, args.skip, periodic)
        for path in args.runs
    ]
    reach = tuple(args.range) if args.range else None
    found = free_energy(
        pieces, coordinate.text, args.bins, reach, args.zero, args.at, args.symmetric, restraints, restrained.text
    )
    curves = {
        path.name: read_curve(path, found.kelvin, args.field, args.scale, args.symmetric) for path in args.against
    }
    if args.zero is not None:
        # one zero for all, or curves could not be compared
        curves = {name: (x, energy - np.interp(args.zero, x, energy)) for name, (x, energy) in curves.items()}
    unit = coordinate.unit or "no unit"
    columns = {coordinate.label: found.x.tolist(), "F (kJ/mol)": found.energy.tolist()}
    columns["statistical (kJ/mol)"] = found.statistical.tolist()
    # None is an empty cell: 0 would mean that the members agree
    columns["committee (kJ/mol)"] = [None] * len(found.x) if found.committee is None else found.committee.tolist()
    columns["both (kJ/mol)"] = found.both.tolist()
    if found.members is not None:
        columns |= {f"member {k} (kJ/mol)": (found.energy + one).tolist() for k, one in enumerate(found.members.T)}
    estimates = {f"F({place:g})": (one, "kJ/mol") for place, one in found.at.items()}
    estimates |= {f"{name} of {coordinate.text}": (one, unit) for name, one in found.averages.items()}
    write_csv(_out(args, ".csv"), columns)
    write_estimates(_out(args, "-averages.csv"), estimates)
    draw_free_energy(_out(args, ".png"), {found.whose: found}, coordinate.label, curves)
    runs = f"{len(args.runs)} runs" if len(args.runs) > 1 else "one run"
    print(
        f"free energy along {coordinate.text}, {found.whose}, {found.kelvin:g} K: {found.samples} frames of {runs}, of "
        f"which about {found.independent:.0f} are independent"
    )
    print(show(estimates))
    for name, (x, energy) in curves.items():
        if places := list(found.at):
            told = ", ".join(f"{value:.2f}" for value in np.interp(places, x, energy))
            print(f"{name} at these places: {told} kJ/mol")
    if found.weighing:
        print(found.weighing)
    for note in [*notes(found.gap, found.wander), *too_short({f"the mean of {coordinate.text}": found.dependence})]:
        print(note)
    print(", ".join(str(_out(args, ending)) for ending in (".csv", "-averages.csv", ".png")))
    return 0


def _restraints(args: argparse.Namespace) -> list[Restraint]:
    """Of each run that which --centres and --kappa say."""
    from beadwork.analyse.biased import Restraint
    from beadwork.errors import ConfigError

    if not args.centres:
        if args.kappa or args.restrained:
            raise ConfigError("--kappa and --restrained are of umbrella windows", "say with --centres where each is")
        return []
    kappas = args.kappa * len(args.centres) if len(args.kappa) == 1 else args.kappa
    if len(kappas) != len(args.centres):
        raise ConfigError(
            f"{len(args.centres)} --centres have {len(kappas)} --kappa", "give one for all, or one for each"
        )
    return list(map(Restraint, args.centres, kappas))


def _properties(args: argparse.Namespace) -> int:
    from beadwork.analyse.picture import draw_observables
    from beadwork.analyse.properties import differences, properties
    from beadwork.analyse.runs import open_run
    from beadwork.analyse.table import notes, show, too_short, write_observables

    found, said = properties([open_run(path) for path in args.runs], args.skip)
    if args.against:
        there, also = properties([open_run(path) for path in args.against], args.skip)
        both = differences(found, there)
        alone = {one.name: None for one in (*found, *there)}.keys() - {one.name for one in both}
        said += [line for line in also if line not in said]
        said += [f"{name} is not on both sides in one unit, and is left out" for name in sorted(alone)]
        found = both
    write_observables(_out(args, ".csv"), found)
    draw_observables(_out(args, ".png"), found)
    print(show({one.name: (one.estimate, one.unit) for one in found}))
    said += notes("", max(one.wander for one in found)) + too_short({one.name: one.dependence for one in found})
    for line in [*said, ", ".join(str(_out(args, ending)) for ending in (".csv", ".png"))]:
        print(line)
    return 0


def _integrate(args: argparse.Namespace) -> int:
    from beadwork.analyse.integrate import between_masses, between_potentials
    from beadwork.analyse.picture import draw_integral
    from beadwork.analyse.runs import open_run
    from beadwork.analyse.table import notes, show, write_estimates
    from beadwork.disk import write_csv
    from beadwork.errors import ConfigError

    if (args.classical and args.lambdas) or (args.less and args.masses):
        raise ConfigError("--classical is of --masses, and --less of --lambdas", "leave it out")
    runs = [open_run(path) for path in args.runs]
    if args.masses:
        found = between_masses(runs, args.masses, args.of, args.classical, args.skip)
    else:
        found = between_potentials(runs, args.lambdas, args.of, args.less, args.skip)
    estimates = {"F(last) - F(first), spline": (found.total, "kJ/mol")}
    if found.mbar is not None:
        estimates["F(last) - F(first), MBAR"] = (found.mbar, "kJ/mol")
    write_estimates(_out(args, "-total.csv"), estimates)
    columns = {found.along: found.x.tolist(), "dF/dx (kJ/mol)": [one.value for one in found.integrand]}
    write_csv(_out(args, ".csv"), columns | {"statistical (kJ/mol)": [one.statistical for one in found.integrand]})
    draw_integral(_out(args, ".png"), found)
    points = zip(found.x, found.integrand, strict=True)
    print(show({f"dF/dx at {found.along} = {x:.4g}": (one, "kJ/mol") for x, one in points} | estimates))
    print(f"by the trapezoidal rule it is {found.trapezoidal:.4g} kJ/mol; where that is far off, add points")
    for line in filter(None, [found.words, *notes(found.gap, found.wander)]):
        print(line)
    print(", ".join(str(_out(args, ending)) for ending in (".csv", "-total.csv", ".png")))
    return 0


def _vdos(args: argparse.Namespace) -> int:
    import numpy as np

    from beadwork.analyse.picture import draw_spectrum
    from beadwork.analyse.runs import one_state, open_run
    from beadwork.analyse.spectrum import members, spectrum
    from beadwork.disk import write_csv

    runs = [open_run(path) for path in args.runs]
    one_state(runs, of_members=args.members)
    options = args.window, args.highest, args.skip
    # each member for itself: between them the spectra differ, within one the stretches do
    each = [spectrum([run], *options) for run in runs] if args.members else []
    found = members(each) if args.members else spectrum(runs, *options)
    bar, short = ("standard deviation of members", "members") if args.members else ("statistical", "statistical")
    columns = {"wavenumber (cm^-1)": found.wavenumbers.tolist()}
    for name, values in found.elements.items():
        columns |= {f"{name} (cm)": values.tolist(), f"{name} {bar} (cm)": found.errors[name].tolist()}
        if found.noise is not None:
            columns[f"{name} statistical error of a member (cm)"] = found.noise[name].tolist()
    for path, one in zip(args.runs, each, strict=False):
        columns[f"all, {path} (cm)"] = one.elements["all"].tolist()
    write_csv(_out(args, ".csv"), columns)
    curves = [(name, values, found.errors[name]) for name, values in found.elements.items()]
    draw_spectrum(_out(args, ".png"), found.wavenumbers, curves, "density of states (cm), ± " + short)
    over = f"{len(runs)} members" if args.members else _stretches(found.stretches)
    print(f"density of states from {over}; lines are {found.resolution:.0f} cm^-1 wide at half their height")
    for name, peaks in found.peaks.items():
        print(f"{name:4} {_peaks(peaks)}")
    for path, one in zip(args.runs, each, strict=False):
        print(f"{path}: {_peaks(one.peaks['all'])}")
    if found.noise is not None:
        wide, chance = (float(np.sqrt(np.mean(of["all"] ** 2))) for of in (found.errors, found.noise))
        print(
            f"the band is {wide:.2g} cm wide (root mean square), and "
            + (
                f"the statistical error of one member's run is {chance:.2g}: what members disagree about is what is "
                "above that"
                if np.isfinite(chance)
                else "each member's run is one stretch, so how much of the band is chance is not known"
            )
        )
    print(", ".join(str(_out(args, ending)) for ending in (".csv", ".png")))
    return 0


def _stretches(count: int) -> str:
    return f"{count} stretch" + ("es" if count != 1 else "")


def _peaks(wavenumbers: Sequence[float]) -> str:
    return f"peaks at {', '.join(f'{peak:.0f}' for peak in wavenumbers) or 'no'} cm^-1"


def _infrared(args: argparse.Namespace) -> int:
    from beadwork.analyse.response import infrared
    from beadwork.analyse.runs import open_run

    return _response(args, infrared([open_run(path) for path in args.runs], args.window, args.highest, args.skip))


def _raman(args: argparse.Namespace) -> int:
    from beadwork.analyse.response import raman
    from beadwork.analyse.runs import open_run

    runs = [open_run(path) for path in args.runs]
    return _response(args, raman(runs, args.incident, args.scattered, args.window, args.highest, args.skip))


def _response(args: argparse.Namespace, found: Any) -> int:
    """Write and draw a spectrum of a response, and tell its peaks."""
    import numpy as np

    from beadwork.analyse.picture import draw_spectrum
    from beadwork.disk import write_csv

    columns = {"wavenumber (cm^-1)": found.wavenumbers.tolist(), f"intensity ({found.unit})": found.intensity.tolist()}
    columns[f"statistical ({found.unit})"] = found.statistical.tolist()
    curves = [("± statistical", found.intensity, found.statistical)]
    if found.members is not None:
        columns[f"committee ({found.unit})"] = found.committee.tolist()
        columns |= {f"member {k} ({found.unit})": one.tolist() for k, one in enumerate(found.members.T)}
        curves = [("± committee", found.intensity, found.committee)]
    write_csv(_out(args, ".csv"), columns)
    draw_spectrum(_out(args, ".png"), found.wavenumbers, curves, f"intensity ({found.unit})")
    step = found.wavenumbers[1] - found.wavenumbers[0]
    print(
        f"{args.stem} spectrum from {_stretches(found.stretches)}"
        + ("" if found.members is None else f" by {found.members.shape[1]} members")
        + f"; lines are {found.resolution:.0f} cm^-1 wide at half their height; area "
        f"{np.sum(found.intensity) * step:.4g} {found.unit.removesuffix(' cm')}"
        # of the members' areas: a member that is too high is too high along a whole line
         + ("" if found.members is None else f", {(found.members.sum(axis=0) * step).std(ddof=1):.2g} between members")
    )
    print(_peaks(found.peaks))
    print(", ".join(str(_out(args, ending)) for ending in (".csv", ".png")))
    return 0


def _series(args: argparse.Namespace) -> int:
    from beadwork.analyse.coordinate import parse
    from beadwork.analyse.runs import open_run, sample
    from beadwork.analyse.series import ENDING, write_series
    from beadwork.errors import ConfigError

    if len(args.runs) > 1:
        raise ConfigError(f"{len(args.runs)} runs are named, and a series is of one", "make one of each run")
    periodic = False if args.not_periodic else None
    sampled = sample(open_run(args.runs[0]), list(map(parse, args.coordinate)), args.of, args.skip, periodic)
    write_series(_out(args, ENDING), sampled)
    print(f"{len(sampled.steps)} frames in {_out(args, ENDING)}")
    if sampled.gap:
        print(f"without the members' energies: {sampled.gap}")
    return 0
