"""From what was measured to a table and a plot. `python benchmarks/run.py --report` makes both anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

#: (what, group, against, ours, must, aim): how many times faster ours is than the peer
RATIOS = [
    ("full loop, native", "loop", "P2 defaults", "native", 36.0, 40.0),
    ("full loop, native", "loop", "P2", "native", 21.0, 25.0),
    ("full loop, native", "loop", "P1", "native", 14.0, 20.0),
    ("full loop, native", "loop", "P3", "native", 36.0, 40.0),
    ("full loop, native", "loop", "P4", "native", 14.0, 20.0),
    ("full loop, torchscript", "loop", "P2 defaults", "torchscript", 1.5, None),
    ("full loop, torchscript", "loop", "P2", "torchscript", 1.0, None),
    ("baseline + committee, separate", "committee", "P5", "committee", 12.0, 25.0),
    ("baseline + committee, one trunk", "committee", "P5", "trunk", 30.0, 40.0),
    ("graph, rebuilt", "graph", "mace", "rebuilt", 4.0, None),
    ("graph, kept list", "graph", "mace", "kept", 15.0, None),
]
NAMES = {
    "P1": "P1 i-pi-py_driver -m mace",
    "P2": "P2 the same, batched, best settings",
    "P2 defaults": "P2 the same, batched, i-PI's defaults",
    "P3": "P3 ffdirect mace, batched",
    "P4": "P4 ASE SocketClient + MACECalculator",
    "P5": "P5 ffcommittee over MACE forcefields",
    "gas": "i-pi-py_driver -m gas, batched",
    "mace": "MACE AtomicData + collate",
}
#: what the picture calls them
LABELS = {
    "P2 defaults": "i-PI's MACE driver, batched, its defaults",
    "P2": "the same, best settings",
    "P1": "i-PI's MACE driver, unbatched",
    "P3": "ffdirect MACE, batched",
    "P4": "ASE SocketClient + MACECalculator",
    "torchscript": "beadwork, TorchScript",
    "native": "beadwork, compiled",
    "P5": "ffcommittee over five MACE models",
    "committee": "beadwork, the same five, compiled",
    "trunk": "beadwork, the four on one trunk, compiled",
}
#: i-PI's time a step with our zero potential over that with its own zero-cost driver may be this
WIRE_MOST = 1.5


def rounds(data: dict[str, Any], group: str) -> list[dict[str, list[float]]]:
    """What was measured of a group."""
    if group == "graph":
        return list(data.get("graph", {}).get("rounds", []))
    return list(data["rounds"].get(group, []))


def ratios(data: dict[str, Any], group: str, above: str, below: str) -> list[float]:
    """The ratio of medians in each round that has both."""
    return [float(np.median(r[above]) / np.median(r[below])) for r in rounds(data, group) if above in r and below in r]


def seconds(data: dict[str, Any], group: str, name: str) -> float | None:
    """Median over the rounds of the median step."""
    values = [float(np.median(r[name])) for r in rounds(data, group) if name in r]
    return float(np.median(values)) if values else None


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{1e3 * value:.4g}"


def table(data: dict[str, Any]) -> str:
    """The whole report in Markdown."""
    plan, machine = data["plan"], data["machine"]
    loop = plan["loop"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# beadwork and its peers",
        "",
        *(["A tiny case, made to check that the command works: NO MEASUREMENT.", ""] if plan["search"] is None else []),
        f"{data['date'][:10]}, {machine['processor']}, {machine['cores']} cores, {machine['memory_GiB']} GiB, "
        f"{machine['system']}, Python {machine['python']}; {versions}.",
        *(["", data["note"]] if "note" in data else []),
        "",
        f"Full loop: {loop['beads']} beads of {loop['waters']} H2O, MACE with random weights, {loop['channels']}x0e + "
        f"{loop['channels']}x1o, two layers, {loop['cutoff']:g} Å, float64; real i-PI, NVT. The committee is the "
        f"baseline and {loop['members']} heads of one trunk of the same size; i-PI's drivers, and beadwork once, have "
        "each head as a model of its own, with the same weights. Wire and graph: "
        f"{plan['wire_beads']} beads of {loop['waters']} H2O. Each peer beside beadwork alone, nothing else in "
        f"memory. A round: one warm-up and {plan['steps']} timed steps of a peer, ten times as many of beadwork's "
        f"compiled engine (wire: {plan['wire_steps']} steps; one trunk: the mean of ten, one of which has the force "
        "spread); a ratio is that of the medians in one round, and the table has the median (lowest to highest) of "
        "the rounds.",
        "",
        _line(["work", "against", "ours, ms", "theirs, ms", "times faster", "rounds", "must", "aim", ""]),
        _line(["---"] * 9),
    ]
    for what, group, against, ours, must, aim in RATIOS:
        got = ratios(data, group, against, ours)
        known = f"{np.median(got):.1f} ({min(got):.1f} to {max(got):.1f})" if got else "not measured"
        verdict = ("shown" if np.median(got) >= must else "missed") if got else ""
        lines.append(
            _line(
                [
                    what,
                    NAMES[against],
                    _ms(seconds(data, group, ours)),
                    _ms(seconds(data, group, against)),
                    known,
                    str(len(got)),
                    f"{must:g}",
                    "" if aim is None else f"{aim:g}",
                    verdict,
                ]
            )
        )
    got = ratios(data, "wire", "zero", "gas")
    known = f"{np.median(got):.2f} times its time ({min(got):.2f} to {max(got):.2f})" if got else "not measured"
    verdict = ("shown" if np.median(got) <= WIRE_MOST else "missed") if got else ""
    wire = [_ms(seconds(data, "wire", "zero")), _ms(seconds(data, "wire", "gas"))]
    lines.append(
        _line(["wire, gather, reply, extras", NAMES["gas"], *wire, known, str(len(got)), f"≤ {WIRE_MOST}", "", verdict])
    )
    lines += [_line(row) for row in _growth(data)]
    lines += _parts(data) + _scaling(data) + _settings(data)
    if data["errors"]:
        lines += ["", "## What failed", ""]
        lines += [f"- {name}: {why}" for name, why in data["errors"].items()]
    return "\n".join(lines) + "\n"


def exponents(data: dict[str, Any]) -> dict[str, float]:
    """b of time = a * atoms^b, fitted to each series of sizes."""
    found = {}
    for series in ("beads", "atoms"):
        cases = data.get("scaling", {}).get(series, [])
        if len(cases) > 1:
            atoms = np.log([c["beads"] * c["atoms"] for c in cases])
            found[series] = float(np.polyfit(atoms, np.log([c["seconds"] for c in cases]), 1)[0])
    return found


def _growth(data: dict[str, Any]) -> list[list[str]]:
    rows = []
    for series, exponent in exponents(data).items():
        cases = data["scaling"][series]
        what = f"{series} {cases[0][series]} to {cases[-1][series]}"
        times = [_ms(cases[-1]["seconds"]), _ms(cases[0]["seconds"])]
        verdict = "shown" if exponent <= 1 else "missed"
        known = f"time grows as the work to the {exponent:.2f}"
        rows.append([what, "itself (most and least)", *times, known, str(data["plan"]["rounds"]), "≤ 1", "", verdict])
    return rows


def _parts(data: dict[str, Any]) -> list[str]:
    if "step" not in data:
        return []
    parts = data["step"]["seconds"]
    whole = sum(parts.values())
    lines = ["", f"## Where an evaluation goes: baseline and committee, {data['step']['threads']} threads", ""]
    lines += [_line(["part", "ms", "%"]), _line(["---"] * 3)]
    lines += [_line([name, _ms(value), f"{100 * value / whole:.2f}"]) for name, value in parts.items()]
    return [
        *lines,
        "",
        "Separate models, of which the mean Δ force needs all at every step. The reduction holds the sum and the "
        "spreads of energy and forces.",
    ]


def _scaling(data: dict[str, Any]) -> list[str]:
    if "scaling" not in data:
        return []
    lines = ["", f"## Our own evaluation, native, {data['scaling']['threads']} threads", ""]
    lines += [f"The process took {data['scaling']['peak_GiB']:.1f} GiB at most.", ""]
    lines += [_line(["beads", "atoms", "ms", "µs/atom"]), _line(["---"] * 4)]
    for series in ("beads", "atoms"):
        for case in data["scaling"][series]:
            atoms = case["beads"] * case["atoms"]
            each = f"{1e6 * case['seconds'] / atoms:.1f}"
            lines.append(_line([str(case["beads"]), str(case["atoms"]), _ms(case["seconds"]), each]))
    return lines


def _settings(data: dict[str, Any]) -> list[str]:
    lines = ["", "## Settings and agreement", ""]
    lines += [
        "Settings were found by a short search at a smaller size (tried values are in the JSON). Agreement: relative "
        "difference of the potential and the forces at step 0, and of potential, conserved quantity and kinetic energy "
        "at the last step that both reached, from what sits beside it (of the wire i-PI's gas); ASE has other unit "
        "constants than i-PI.",
        "",
        _line(["peer", "settings", "potential", "forces", "last step", "steps"]),
        _line(["---"] * 6),
    ]
    for name, setting in data["settings"].items():
        parity = data["parity"].get(name, {})
        figures = [f"{parity[key]:.0e}" if key in parity else "–" for key in ("potential", "force", "trajectory")]
        lines.append(_line([name, setting["label"], *figures, str(parity.get("trajectory_steps", "–"))]))
    return lines


def plot(data: dict[str, Any], file: Path) -> None:
    """Time a step of every peer, and how ours grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    bars = [(n, seconds(data, g, n), g) for g in ("loop", "committee") for n in names(data, g)]
    bars = [(n, s, g) for n, s, g in bars if s is not None]
    ours = ("native", "torchscript", "committee", "trunk")
    order = list(LABELS)
    bars.sort(key=lambda bar: order.index(bar[0]) if bar[0] in order else len(order))
    labels = [LABELS.get(n, n) for n, _, _ in bars]
    left.barh(labels, [s for _, s, _ in bars], color=["C1" if n in ours else "C0" for n, _, _ in bars])
    for row, (_, value, _) in enumerate(bars):
        left.text(value, row, f" {value:.3g}", va="center")
    left.margins(x=0.15)
    left.invert_yaxis()
    left.set_xlabel("seconds per step")
    left.set_title("8 beads of 64 H2O with real i-PI, 2 cores")
    for series in ("beads", "atoms"):
        cases = data.get("scaling", {}).get(series, [])
        if cases:
            atoms = np.array([c["beads"] * c["atoms"] for c in cases])
            label = f"{cases[0]['atoms']} atoms, more beads" if series == "beads" else "one bead, more atoms"
            right.loglog(atoms, [c["seconds"] for c in cases], "o-", label=label)
            right.loglog(atoms, cases[0]["seconds"] * atoms / atoms[0], ":", color="grey")
    right.set_xlabel("atoms in all")
    right.set_ylabel("seconds an evaluation")
    right.set_title("our evaluation; dotted: as the work grows")
    if right.lines:
        right.legend(frameon=False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def names(data: dict[str, Any], group: str) -> list[str]:
    """Who was measured in a group."""
    return list(dict.fromkeys(name for r in rounds(data, group) for name in r))


def report(file: Path) -> str:
    """Write FILE's table (.md) and plot (.png) beside it, and return the table."""
    data = json.loads(file.read_text())
    text = table(data)
    file.with_suffix(".md").write_text(text)
    plot(data, file.with_suffix(".png"))
    return text
